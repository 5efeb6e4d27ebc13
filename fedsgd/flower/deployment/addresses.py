"""Addresses that identify a deployment's processes whose environment cannot be read, by their command lines."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fedsgd.flower.deployment.guard import Guard


@dataclass
class ProcessAddresses:
    """Current address of each process that serves children, by the process's name. The guard receives the same addresses.

    A port may belong to a different deployment before and afterwards. An address is therefore dropped when its process is
    restarted at another address, loses its port to another process, or ends. Processes that are older than `start_time`,
    seconds since the epoch, do not belong to the deployment.
    """

    guard: Guard | None = None
    start_time: float = field(default_factory=time.time)
    address_by_name: dict[str, str] = field(default_factory=dict)

    def assign(self, name: str, address: str) -> None:
        """Set the address of a process before the process is started, and drop its earlier address."""
        self.drop(name)
        self.address_by_name[name] = address
        if self.guard is not None:
            self.guard.register_address(address)

    def drop(self, name: str) -> None:
        """Remove the address of a process, if it has one. Processes at this address are then no longer ended."""
        address = self.address_by_name.pop(name, None)
        if address is not None and self.guard is not None:
            self.guard.unregister_address(address)
