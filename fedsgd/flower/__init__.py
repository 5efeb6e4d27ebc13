"""Flower integration: compression for any Flower app, and deployments of fedsgd's scenarios.

    from fedsgd.flower import CompressedStrategy, compression_mod

    app = ClientApp(mods=[compression_mod()])
    strategy = CompressedStrategy(FedAvg(), {"name": "top-k", "density": 0.01}, error_feedback="persist")

Exported names are imported on first use: Flower starts a new ClientApp process for each message, and imports delay each start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsgd.flower.app.client_mod import compression_mod
    from fedsgd.flower.app.strategy import CompressedStrategy
    from fedsgd.flower.app.tied_weights import tied_names

_EXPORT_MODULES = {"CompressedStrategy": "app.strategy", "compression_mod": "app.client_mod", "tied_names": "app.tied_weights"}

__all__ = ["CompressedStrategy", "compression_mod", "tied_names"]


def __getattr__(name: str) -> object:
    if name in _EXPORT_MODULES:
        return getattr(importlib.import_module(f"fedsgd.flower.{_EXPORT_MODULES[name]}"), name)
    raise AttributeError(f"module 'fedsgd.flower' has no attribute {name!r}")
