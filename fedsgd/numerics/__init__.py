"""Arithmetic with equal results on every machine: arrays, parameter layout, random streams, reductions, compiled kernels."""
