"""Environment of a rank, as torchrun and other launchers of torch.distributed set it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedsgd.errors import ScenarioError


@dataclass(frozen=True)
class RankEnvironment:
    """Place of a process among the ranks.

    Attributes:
        rank: number of the process, from 0.
        n_ranks: number of processes.
        address, port: host and port of the launcher's store.
        launcher_has_store: True if the launcher runs the store, False if rank 0 does.
        max_restarts: number of times that the launcher may start the ranks again.
    """

    rank: int
    n_ranks: int
    address: str
    port: int
    launcher_has_store: bool
    max_restarts: int


def read_rank_environment(variables: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """Return this process's place among the ranks; None if it is the only rank, or if no launcher has started it.

    >>> read_rank_environment({}) is None
    True
    >>> place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    >>> read_rank_environment(place).rank
    1

    Args:
        variables: environment variables by name.

    Raises:
        ScenarioError: a variable is missing or has no valid value.
    """
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return None
    n_ranks = _read_number(variables, "WORLD_SIZE", 1)
    rank = _read_number(variables, "RANK", 0)
    if n_ranks == 1:
        return None
    if rank >= n_ranks:
        raise ScenarioError(f"RANK: got {rank}, expected a number below WORLD_SIZE, which is {n_ranks}")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not variables.get(name):
            raise ScenarioError(f"{name}: not set, expected the address of rank 0; torchrun sets it")
    return RankEnvironment(
        rank,
        n_ranks,
        variables["MASTER_ADDR"],
        _read_number(variables, "MASTER_PORT", 1, 65535),
        variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        _read_number(variables, "TORCHELASTIC_MAX_RESTARTS", 0),
    )


def is_silent_rank(variables: Mapping[str, str] = os.environ) -> bool:
    """Return True for a rank that prints nothing, since rank 0 prints for all."""
    return "WORLD_SIZE" in variables and variables.get("RANK", "0") != "0"


def _read_number(variables: Mapping[str, str], name: str, least: int, most: int = 1_000_000) -> int:
    text = variables.get(name, "0")
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ScenarioError(f"{name}: got {text!r}, expected a whole number from {least} to {most}")
    return int(text)
