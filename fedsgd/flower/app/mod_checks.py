"""Checks of the mods that a ClientApp has behind `compression_mod`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from flwr.clientapp.typing import ClientAppCallable

from fedsgd.errors import ScenarioError

_SECURE_AGGREGATION_PACKAGE = "flwr.client.mod.secure_aggregation"
"""Package of Flower's mods for SecAgg and SecAgg+."""


def check_mods(call_next: ClientAppCallable) -> None:
    """Raise ScenarioError for a mod behind `call_next` in Flower's chain that cannot work with compressed updates."""
    for mod in _find_mods(call_next):
        if getattr(mod, "__module__", "").startswith(_SECURE_AGGREGATION_PACKAGE):
            name = getattr(mod, "__name__", type(mod).__name__)
            raise ScenarioError(
                f"mods: got {name} behind compression_mod(), expected no secure aggregation, which masks vectors of integers: "
                "a compressed update is not a vector of integers"
            )


def _find_mods(call_next: object) -> Iterator[object]:
    """Yield the mods in Flower's chain. Each function of the chain is a closure over a mod and the next function."""
    while inspect.isfunction(call_next):
        variables = inspect.getclosurevars(call_next).nonlocals
        if "_mod" not in variables:
            return
        yield variables["_mod"]
        call_next = variables.get("_ffn")
