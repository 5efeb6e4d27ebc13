"""Hostile frames: the mutators that make them, and every decoder as a target that must withstand them."""
