"""Recorded training steps: recording, passes, compiled programs."""
