"""What carries messages between server and clients: to this process's own, or to those of worker processes."""

from fedsgd.runtime.in_process import InProcessRuntime
from fedsgd.runtime.workers.pool import WorkerPool

__all__ = ["InProcessRuntime", "WorkerPool"]
