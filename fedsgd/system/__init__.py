"""The process and the machine: fork server, memory, profiling, global generators, torch threads, folders."""
