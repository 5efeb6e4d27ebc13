"""Peak memory of this process, and the time of a copy on this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

_POOL_BYTES = 2**25
"""Memory of all arrays of a measurement, larger than caches."""
_N_COPIES = 15
"""Copies of a measurement, of which the median is returned."""


def measure_peak_memory(status_file: Path = Path("/proc/self/status")) -> int | None:
    """Return the peak resident memory of this process since its program started, in bytes; None if unknown.

    It excludes workers, which are separate processes, and files, such as client states on disk. On Linux, the maximum of
    `getrusage` is inherited from the parent process; the kernel's VmHWM restarts with each program.

    Args:
        status_file: file with VmHWM of this process.
    """
    try:
        lines = status_file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource  # not on every system
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memcpy_seconds(size: int) -> float:
    """Return the median seconds of copying `size` float32 numbers from and to memory that is not cached.

    The time is the unit of encoding and decoding times, so that these are comparable between machines. Caches that are larger
    than 32 MB may be used.
    """
    n = max(2, _POOL_BYTES // (4 * size)) if size else 2
    pool = np.ones((n, size), dtype=np.float32)  # ones, not empty, so that all pages exist
    durations = []
    for i in range(_N_COPIES):
        start = time.perf_counter()
        np.copyto(pool[i % len(pool)], pool[(i + len(pool) // 2) % len(pool)])
        durations.append(time.perf_counter() - start)
    return max(1e-9, sorted(durations)[_N_COPIES // 2])
