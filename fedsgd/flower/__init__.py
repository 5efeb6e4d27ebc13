"""Flower: fedsgd's own scenarios as a real deployment."""
