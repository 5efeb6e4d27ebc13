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

from fedsgd.config.quantities import format_binary_bytes, format_bytes
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import Examples
from fedsgd.errors import ScenarioError
from fedsgd.federation import ClientTask, DecodedDownlink, FederationPlan, encode_update
from fedsgd.federation.client_state import ClientState, to_bfloat16_state
from fedsgd.numerics.rng import derive_generator
from fedsgd.runtime.stores.shared import SlotStore
from fedsgd.training import TrainingJob, TrainingResult

StoreLocation = Literal["memory", "disk", "auto"]


@dataclass(frozen=True)
class StateBudget:
    """What clients remember, and where. clients: N; seen: how many of them will have taken part at most; bytes_per_client: of
    one state as it is kept; models: bytes of what else is held in memory; place: where states are kept, at the clients' own
    "nodes" if those are elsewhere; budget: bytes that may be used in memory; folder: where states on disk are."""

    clients: int
    max_participants: int
    bytes_per_client: int
    model_bytes: int
    location: Literal["memory", "disk", "nodes"]
    budget: int
    folder: Path | None = None

    @property
    def n_bytes(self) -> int:
        """Of all states together, at most."""
        return self.max_participants * self.bytes_per_client

    def __str__(self) -> str:
        if not self.bytes_per_client:
            return "client state: none, clients remember nothing"
        return f"client state: {_describe_amount(self)}, {self._describe_location()}"

    def _describe_location(self) -> str:
        if self.location == "nodes":
            return "on the disks of their nodes"
        if self.location == "disk":
            return f"on disk in {self.folder}"
        beside = f" beside {format_bytes(self.model_bytes)} of models" if self.model_bytes else ""
        return f"in memory{beside} (budget {format_binary_bytes(self.budget)})"

    def open_shared_store(self) -> SlotStore:
        """A new store at that place, which several processes can use. OutputError if there can be none."""
        return SlotStore(self.clients, self.folder if self.location == "disk" else None)


def plan_state_storage(
    clients: int,
    cohort: int,
    rounds: int,
    bytes_per_client: int,
    *,
    model_bytes: int = 0,
    location: StoreLocation = "auto",
    budget: int,
    folder: Path | None = None,
    free_bytes_probe: Callable[[Path], int] | None = None,
) -> StateBudget:
    """Where the states of min(N, m·R) clients are kept: "auto" is in memory if they and the models fit the budget, else disk.

    bytes_per_client: see `fedsgd.runtime.stores.shared.stored_bytes`; free: the bytes that a folder's file system has, as
    `measure_free_bytes`
    says. ScenarioError if there is no room: what is needed, what there is, and what can be done.
    """
    if model_bytes > budget:
        raise ScenarioError(
            f"no room for the models that clients keep: at most {format_bytes(model_bytes)}, but the budget of memory is "
            f"{format_binary_bytes(budget)}; ways out: a larger budget; keep them for fewer rounds, with downlink.remember; "
            'downlink.policy = "model", with which they keep none'
        )
    seen = min(clients, cohort * rounds)
    in_memory = StateBudget(clients, seen, bytes_per_client, model_bytes, "memory", budget)
    fits = model_bytes + in_memory.n_bytes <= budget
    if not bytes_per_client or (location != "disk" and fits):
        return in_memory
    there = None if location == "memory" or folder is None else (free_bytes_probe or measure_free_bytes)(folder)
    if there is not None and in_memory.n_bytes <= there:
        return StateBudget(clients, seen, bytes_per_client, model_bytes, "disk", budget, folder)
    problems = []
    if location != "disk":
        beside = f", {format_bytes(model_bytes)} of which models take" if model_bytes else ""
        problems.append(f"the budget of memory is {format_binary_bytes(budget)}{beside}")
    if there is not None:
        problems.append(f"the disk of {folder} has {format_bytes(there)} free")
    elif location != "memory":
        problems.append("no folder on disk is named")
    raise ScenarioError(
        f"no room for client state: {_describe_amount(in_memory)}, but {' and '.join(problems)}; {_remedies(location)}"
    )


def _describe_amount(plan: StateBudget) -> str:
    each, total = format_bytes(plan.bytes_per_client), format_bytes(plan.n_bytes)
    return f"at most {plan.max_participants:,} of {plan.clients:,} clients x {each} = {total}"


def _remedies(location: StoreLocation) -> str:
    place = {"memory": "on disk", "disk": "in memory, or on a larger disk", "auto": "on a larger disk, or a larger budget"}
    return (
        f"ways out: states in bfloat16, about half the size; states {place[location]}; fewer rounds or a smaller cohort; a "
        "compressor without a memory at clients"
    )


def measure_free_bytes(folder: Path) -> int:
    """What this folder's file system has left for the user, in bytes. ScenarioError if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise ScenarioError(f"{folder}: no folder for client state ({error.strerror})") from None


def representative_state(plan: FederationPlan, size: int) -> ClientState:
    """What a client remembers once it has taken part twice, with updates of normal random numbers: it grows no further with any
    scheme of ours. size: of the vector that it trains, what never leaves it included."""
    layout, trained = plan.layout, np.zeros(size, dtype=np.float32)
    opened, examples = (
        DecodedDownlink(trained[: layout.size], None, trained[: layout.size], 0.0),
        Examples(trained[:1], trained[:1]),
    )
    state = ClientState()
    buffers = None if plan.buffers is None else plan.buffers.join(plan.buffers.averaged, None)
    memory = {"velocity": trained} if plan.local_training.keep_optimizer_state else {}
    for round in (1, 2):
        x = derive_generator(plan.seed, "state/example", round).standard_normal(size, dtype=np.float32)
        settled = ClientState(state.resolve(round, round - 1))
        task = ClientTask(TrainingJob(plan.seed, round, 0, trained, examples), settled, opened, 0, -1, 0.0)
        with wrap_user_errors("uplink.compressor", plan.uplink):
            _, state = encode_update(plan, task, TrainingResult(0, x, 1, 1, memory, buffers))
    return to_bfloat16_state(state) if plan.bfloat16_states else state
