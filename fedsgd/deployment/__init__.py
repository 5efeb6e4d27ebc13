"""Scenarios as real deployments: Flower's SuperLink and SuperNodes started, watched, measured and stopped on this machine.

`fedsgd.flower` runs inside Flower's processes; this package starts and stops these processes, and does not import Flower. Names
are imported when they are first used: the guard of a deployment needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsgd.deployment.run import Deployed, deploy
    from fedsgd.deployment.watch import Watched

_HOME = {"Deployed": "run", "Watched": "watch", "deploy": "run"}

__all__ = ["Deployed", "Watched", "deploy"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"fedsgd.deployment.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fedsgd.deployment' has no attribute {name!r}")
