"""Benchmarks of the codec, local training, whole rounds, reports and deployments; some compare fedsgd with other programs."""
