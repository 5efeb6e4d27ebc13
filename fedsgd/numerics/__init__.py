"""Arithmetic that is equal on every machine: arrays, parameter layout, random streams, reductions, compiled kernels."""
