"""What carries messages between server and clients."""

from fedsgd.runtime.in_process import InProcess

__all__ = ["InProcess"]
