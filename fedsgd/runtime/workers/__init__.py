"""Worker processes that train clients."""
