"""Runtimes, which carry messages between the server and its clients: in this process, or in worker processes."""

from fedsgd.runtime.in_process import InProcessRuntime
from fedsgd.runtime.workers.pool import WorkerPool

__all__ = ["InProcessRuntime", "WorkerPool"]
