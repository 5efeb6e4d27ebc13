"""Compression operators: compressors without memory."""
