"""Benchmarks: what the codec takes, beside a memcpy and beside what others offer; what a round takes, beside other simulators."""
