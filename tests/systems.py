"""What some tests need of the system that they run on."""

from __future__ import annotations

from pathlib import Path

import pytest

linux = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(),
    reason="it counts a process's open files, or reads its memory, in /proc, which only Linux has; what is tested needs no /proc",
)
