"""Benchmarks: what the codec takes, beside a memcpy and beside what others offer."""
