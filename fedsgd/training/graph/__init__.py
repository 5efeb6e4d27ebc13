"""Recorded training steps: recorder, passes over graphs, compiled programs."""
