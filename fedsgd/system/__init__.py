"""Process and machine: fork server, memory, profiling, global generators, torch settings, folders and files."""
