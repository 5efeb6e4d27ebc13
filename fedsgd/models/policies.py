"""Policies for batch norm and other buffers that training changes."""

from __future__ import annotations

from typing import Literal

BatchNormPolicy = Literal["refuse", "batch", "group", "mean", "local", "frozen"]
"""Policy for batch norm: see `Model`."""
BufferPolicy = Literal["refuse", "mean", "local"]
"""Policy for other buffers that training changes: see `Model`."""
