"""Deployments of scenarios over Flower: a SuperLink and SuperNodes as processes on this machine.

All other modules of `fedsgd.flower` run inside Flower's processes. This package starts, monitors, measures and stops these
processes. The launching process does not import Flower. Names are imported on first use, because the guard process needs no
large module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsgd.flower.deployment.monitor import DeploymentCallbacks
    from fedsgd.flower.deployment.resumption import resume_deployment
    from fedsgd.flower.deployment.runner import DeploymentConfig, DeploymentResult, deploy

_EXPORT_MODULES = {
    "DeploymentCallbacks": "monitor",
    "DeploymentConfig": "runner",
    "DeploymentResult": "runner",
    "deploy": "runner",
    "resume_deployment": "resumption",
}

__all__ = ["DeploymentCallbacks", "DeploymentConfig", "DeploymentResult", "deploy", "resume_deployment"]


def __getattr__(name: str) -> object:
    if name in _EXPORT_MODULES:
        return getattr(importlib.import_module(f"fedsgd.flower.deployment.{_EXPORT_MODULES[name]}"), name)
    raise AttributeError(f"module 'fedsgd.flower.deployment' has no attribute {name!r}")
