"""How much memory a run has needed."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory(status: Path = Path("/proc/self/status")) -> int | None:
    """The most memory that this process has had at once since its program began, in bytes; None where the system does not say.

    It is what the process had in real memory. Not in it: workers, which are processes of their own, and what lies in files,
    as client states do on disk and with workers. On Linux the maximum that `getrusage` gives is no good: who is started by a
    large process inherits its maximum. The kernel's VmHWM begins anew with each program. status: where it is.
    """
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
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
