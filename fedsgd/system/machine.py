"""How much memory a run has needed, and how quickly this machine copies it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

_POOL_BYTES = 2**25
_N_COPIES = 15


def measure_peak_memory(status_file: Path = Path("/proc/self/status")) -> int | None:
    """The most memory that this process has had at once since its program began, in bytes; None where the system does not say.

    It is what the process had in real memory. Not in it: workers, which are processes of their own, and what lies in files,
    as client states do on disk and with workers. On Linux the maximum that `getrusage` gives is no good: who is started by a
    large process inherits its maximum. The kernel's VmHWM begins anew with each program. status: where it is.
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
    """The median time of copying `size` float32 numbers, which lie where no cache has them (below 32 MB all together: where one
    may). It is the unit of what encoding and decoding cost, so that this does not depend on whose machine measured it."""
    n = max(2, _POOL_BYTES // (4 * size)) if size else 2
    pool = np.ones((n, size), dtype=np.float32)  # written to, so that its pages are there
    taken = []
    for i in range(_N_COPIES):
        begun = time.perf_counter()
        np.copyto(pool[i % len(pool)], pool[(i + len(pool) // 2) % len(pool)])
        taken.append(time.perf_counter() - begun)
    return max(1e-9, sorted(taken)[_N_COPIES // 2])
