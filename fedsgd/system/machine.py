"""Peak memory of this process, and the time of a memory copy on this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

_POOL_BYTES = 2**25
"""Intended bytes of all arrays of a measurement; two arrays of more than 16 MiB each are larger."""
_MAX_COPIED_NUMBERS = 2**24
"""Numbers from which on a vector is copied in blocks: two arrays of 64 MiB do not fit in a cache."""
_N_COPIES = 15
"""Number of copies in a measurement, whose median is the result."""


def measure_peak_memory(status_file: Path = Path("/proc/self/status")) -> int | None:
    """Return the peak resident memory of this process since its program started, in bytes; None if unknown.

    Workers, which are separate processes, and files, such as client states on disk, are not included. On Linux, `getrusage`
    includes the parent process's maximum; the kernel's VmHWM restarts with each program.
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
    """Return the median seconds of copying `size` float32 numbers, in turn between arrays of at least 22 MB together.

    Encoding and decoding times are given as multiples of this time, so that results of different machines are comparable.
    """
    n_blocks = max(1, size // _MAX_COPIED_NUMBERS)  # a longer vector is copied in blocks, to save memory
    size //= n_blocks
    n = max(2, _POOL_BYTES // (4 * size)) if size else 2
    pool = np.ones((n, size), dtype=np.float32)  # ones, not empty, so that all pages exist
    durations = []
    for i in range(_N_COPIES):
        start = time.perf_counter()
        np.copyto(pool[i % len(pool)], pool[(i + len(pool) // 2) % len(pool)])
        durations.append(time.perf_counter() - start)
    return max(1e-9, n_blocks * sorted(durations)[_N_COPIES // 2])
