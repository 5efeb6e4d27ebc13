"""Benchmark of Flower deployments: the bytes and seconds that Flower adds to the frames."""
