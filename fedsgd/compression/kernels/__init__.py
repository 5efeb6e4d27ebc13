"""Compiled loops of the compressors."""
