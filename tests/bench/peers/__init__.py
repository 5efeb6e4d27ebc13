"""Benchmark of fedsgd and three other simulators on the same work."""
