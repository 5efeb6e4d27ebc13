"""Compression for a user's Flower app: strategy wrapper on the server, mod on the nodes."""
