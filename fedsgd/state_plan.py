"""What clients will remember in a run, all together, and where it is to be kept: known before the first round.

N clients in all, m of them in each of R rounds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedsgd.clients import ClientState, rounded_client
from fedsgd.data import Examples
from fedsgd.engine import Local, Work
from fedsgd.errors import ScenarioError
from fedsgd.rng import stream
from fedsgd.rounds import Opened, Plan, Task, send
from fedsgd.runtime.store import SlotStore
from fedsgd.sizes import budget_text, size_text
from fedsgd.user_code import user_code

Where = Literal["memory", "disk", "auto"]


@dataclass(frozen=True)
class StatePlan:
    """What clients remember, and where. clients: N; seen: how many of them will have taken part at most; bytes_per_client: of
    one state as it is kept; models: bytes of what else is held in memory; place: where states are kept, at the clients' own
    "nodes" if those are elsewhere; budget: bytes that may be used in memory; folder: where states on disk are."""

    clients: int
    seen: int
    bytes_per_client: int
    models: int
    place: Literal["memory", "disk", "nodes"]
    budget: int
    folder: Path | None = None

    @property
    def n_bytes(self) -> int:
        """Of all states together, at most."""
        return self.seen * self.bytes_per_client

    def __str__(self) -> str:
        if not self.bytes_per_client:
            return "client state: none, clients remember nothing"
        return f"client state: {_amount(self)}, {self._kept()}"

    def _kept(self) -> str:
        if self.place == "nodes":
            return "on the disks of their nodes"
        if self.place == "disk":
            return f"on disk in {self.folder}"
        beside = f" beside {size_text(self.models)} of models" if self.models else ""
        return f"in memory{beside} (budget {budget_text(self.budget)})"

    def shared_store(self) -> SlotStore:
        """A new store at that place, which several processes can use. OutputError if there can be none."""
        return SlotStore(self.clients, self.folder if self.place == "disk" else None)


def plan_states(
    clients: int,
    cohort: int,
    rounds: int,
    bytes_per_client: int,
    *,
    models: int = 0,
    where: Where = "auto",
    budget: int,
    folder: Path | None = None,
    free: Callable[[Path], int] | None = None,
) -> StatePlan:
    """Where the states of min(N, m·R) clients are kept: "auto" is in memory if they and the models fit the budget, else disk.

    bytes_per_client: see `fedsgd.runtime.store.footprint`; free: the bytes that a folder's file system has, as `free_bytes`
    says. ScenarioError if there is no room: what is needed, what there is, and what can be done.
    """
    if models > budget:
        raise ScenarioError(
            f"no room for the models that clients keep: at most {size_text(models)}, but the budget of memory is "
            f"{budget_text(budget)}; ways out: a larger budget; keep them for fewer rounds, with downlink.remember; "
            'downlink.policy = "model", with which they keep none'
        )
    seen = min(clients, cohort * rounds)
    in_memory = StatePlan(clients, seen, bytes_per_client, models, "memory", budget)
    fits = models + in_memory.n_bytes <= budget
    if not bytes_per_client or (where != "disk" and fits):
        return in_memory
    there = None if where == "memory" or folder is None else (free or free_bytes)(folder)
    if there is not None and in_memory.n_bytes <= there:
        return StatePlan(clients, seen, bytes_per_client, models, "disk", budget, folder)
    problems = []
    if where != "disk":
        beside = f", {size_text(models)} of which models take" if models else ""
        problems.append(f"the budget of memory is {budget_text(budget)}{beside}")
    if there is not None:
        problems.append(f"the disk of {folder} has {size_text(there)} free")
    elif where != "memory":
        problems.append("no folder on disk is named")
    raise ScenarioError(f"no room for client state: {_amount(in_memory)}, but {' and '.join(problems)}; {_ways_out(where)}")


def _amount(plan: StatePlan) -> str:
    each, total = size_text(plan.bytes_per_client), size_text(plan.n_bytes)
    return f"at most {plan.seen:,} of {plan.clients:,} clients x {each} = {total}"


def _ways_out(where: Where) -> str:
    place = {"memory": "on disk", "disk": "in memory, or on a larger disk", "auto": "on a larger disk, or a larger budget"}
    return (
        f"ways out: states in bfloat16, about half the size; states {place[where]}; fewer rounds or a smaller cohort; a "
        "compressor without a memory at clients"
    )


def free_bytes(folder: Path) -> int:
    """What this folder's file system has left for the user, in bytes. ScenarioError if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise ScenarioError(f"{folder}: no folder for client state ({error.strerror})") from None


def typical_state(plan: Plan, size: int) -> ClientState:
    """What a client remembers once it has taken part twice, with updates of normal random numbers: it grows no further with any
    scheme of ours. size: of the vector that it trains, what never leaves it included."""
    layout, trained = plan.layout, np.zeros(size, dtype=np.float32)
    opened, examples = Opened(trained[: layout.size], None, trained[: layout.size], 0.0), Examples(trained[:1], trained[:1])
    state = ClientState()
    buffers = None if plan.buffers is None else plan.buffers.joined(plan.buffers.sent, None)
    memory = {"velocity": trained} if plan.recipe.carry else {}
    for round in (1, 2):
        x = stream(plan.seed, "state/example", round).standard_normal(size, dtype=np.float32)
        settled = ClientState(state.settle(round, round - 1))
        task = Task(Work(plan.seed, round, 0, trained, examples), settled, opened, 0, -1, 0.0)
        with user_code("uplink.compressor", plan.uplink):
            _, state = send(plan, task, Local(0, x, 1, 1, memory, buffers))
    return rounded_client(state) if plan.bfloat16_states else state
