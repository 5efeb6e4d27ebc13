"""Compression schemes: compressors with memory."""
