"""Marks for tests that need a certain operating system."""

from __future__ import annotations

from pathlib import Path

import pytest

linux = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(),
    reason="the test reads a process's open files or memory in /proc, which only Linux has; the tested code needs no /proc",
)
