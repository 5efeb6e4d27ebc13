"""Compression in a user's own Flower app: strategy wrapper and client mod."""
