"""Hostile frames: mutators of valid frames, and all decoders as targets."""
