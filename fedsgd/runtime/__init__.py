"""What carries messages between server and clients: to this process's own, or to those of worker processes."""

from fedsgd.runtime.in_process import InProcess
from fedsgd.runtime.workers import Workers

__all__ = ["InProcess", "Workers"]
