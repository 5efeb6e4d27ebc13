"""Budget of client states: their number, size and location, computed before the first round."""

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
"""Requested location of client states, `[state] store`."""


@dataclass(frozen=True)
class StateBudget:
    """Number, size and location of the client states of a run.

    Attributes:
        max_participants: maximum number of clients that take part at least once.
        bytes_per_client: size of one stored state, bytes.
        model_bytes: size of the models that clients hold, bytes.
        location: place of the states; "nodes" where clients train on nodes of a deployment.
        budget: memory that states and models may use, bytes.
        folder: folder of states on disk, None for states in memory.
        aggregation_bytes: memory that the server's aggregator needs in addition, at most, bytes.
        evaluation_bytes: memory of the outputs that an evaluation stores for metrics of a whole set, at most, bytes.
        device: GPU that has the states in memory in place of the host; "" for the host.
    """

    clients: int
    max_participants: int
    bytes_per_client: int
    model_bytes: int
    location: Literal["memory", "disk", "nodes"]
    budget: int
    folder: Path | None = None
    aggregation_bytes: int = 0
    evaluation_bytes: int = 0
    device: str = ""

    @property
    def n_bytes(self) -> int:
        """Maximum size of all states together, in bytes."""
        return self.max_participants * self.bytes_per_client

    def __str__(self) -> str:
        uses = {"aggregation": self.aggregation_bytes, "evaluation, outputs of a whole set": self.evaluation_bytes}
        lines = "".join(f"\n{use}: at most {format_bytes(n_bytes)}" for use, n_bytes in uses.items() if n_bytes)
        if not self.bytes_per_client:
            return f"client state: none{lines}"
        return f"client state: {_describe_amount(self)}, {self._describe_location()}{lines}"

    def _describe_location(self) -> str:
        if self.location == "nodes":
            return "on the disks of their nodes"
        if self.location == "disk":
            return f"on disk in {self.folder}"
        models = f" with {format_bytes(self.model_bytes)} of models" if self.model_bytes else ""
        return f"in memory{f' of {self.device}' if self.device else ''}{models} (budget {format_binary_bytes(self.budget)})"

    def open_shared_store(self) -> SlotStore:
        """Open a new store at the location, for several processes."""
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
    """Choose the location of the states of min(N, C·R) clients, where C (`cohort`) are sent a message in each round.

    "auto" is memory if states and models fit the budget, else disk. Too little space raises a ScenarioError with remedies.

    `bytes_per_client` is the size of a stored state, as `fedsgd.runtime.stores.shared.stored_bytes` returns it. `model_bytes`
    is the size of all models that clients hold. `budget` is the memory for states and models, in bytes. `free_bytes_probe`
    replaces `measure_free_bytes`.
    """
    if model_bytes > budget:
        raise ScenarioError(
            f"no room for the models that clients keep: at most {format_bytes(model_bytes)}, but the budget of memory is "
            f"{format_binary_bytes(budget)}; remedies: a larger budget; fewer rounds in downlink.remember; "
            'downlink.policy = "model", with which clients keep no model'
        )
    participants = min(clients, cohort * rounds)
    memory_budget = StateBudget(clients, participants, bytes_per_client, model_bytes, "memory", budget)
    fits_memory = model_bytes + memory_budget.n_bytes <= budget
    if not bytes_per_client or (location != "disk" and fits_memory):
        return memory_budget
    free_bytes = None if location == "memory" or folder is None else (free_bytes_probe or measure_free_bytes)(folder)
    if free_bytes is not None and memory_budget.n_bytes <= free_bytes:
        return StateBudget(clients, participants, bytes_per_client, model_bytes, "disk", budget, folder)
    problems = []
    if location != "disk":
        models = f", {format_bytes(model_bytes)} of which models take" if model_bytes else ""
        problems.append(f"the budget of memory is {format_binary_bytes(budget)}{models}")
    if free_bytes is not None:
        problems.append(f"the disk of {folder} has {format_bytes(free_bytes)} free")
    elif location != "memory":
        problems.append("state.folder names no folder on disk")
    raise ScenarioError(
        f"no room for client state: {_describe_amount(memory_budget)}, but {' and '.join(problems)}; {_remedies(location)}"
    )


def _describe_amount(budget: StateBudget) -> str:
    size, total = format_bytes(budget.bytes_per_client), format_bytes(budget.n_bytes)
    return f"at most {budget.max_participants:,} of {budget.clients:,} clients x {size} = {total}"


def _remedies(location: StoreLocation) -> str:
    place = {"memory": "on disk", "disk": "in memory, or on a larger disk", "auto": "on a larger disk, or a larger budget"}
    return (
        f"remedies: states in bfloat16, about half the size; states {place[location]}; fewer rounds or a smaller cohort; "
        'a compressor without state at clients; client.velocity = "restart"'
    )


def measure_free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's file system, or raise a ScenarioError if the folder does not exist."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise ScenarioError(f"{folder}: expected a folder for client state ({error.strerror})") from None
    except ValueError as error:  # NUL in the path
        raise ScenarioError(f"{str(folder)!r}: expected a folder for client state ({error})") from None


def representative_state(plan: FederationPlan, size: int) -> ClientState:
    """Return the state of a client after two rounds with updates [size] of normal random numbers.

    With the schemes of this package a state does not grow after the second round. `size` includes local parameters.
    """
    layout, zeros = plan.layout, np.zeros(size, dtype=np.float32)
    downlink = DecodedDownlink(zeros[: layout.size], None, zeros[: layout.size], 0.0)
    examples = Examples(zeros[:1], zeros[:1])
    state = ClientState()
    buffers = None if plan.buffers is None else plan.buffers.join(plan.buffers.averaged, None)
    optimizer_state = plan.local_training.initial_optimizer_state(size)
    for round in (1, 2):
        x = derive_generator(plan.seed, "state/example", round).standard_normal(size, dtype=np.float32)
        client_state = ClientState(state.resolve(round, round - 1))
        task = ClientTask(TrainingJob(plan.seed, round, 0, zeros, examples), client_state, downlink, 0, -1, 0.0)
        with wrap_user_errors("uplink.compressor", plan.uplink):
            _, state = encode_update(plan, task, TrainingResult(0, x, 1, 1, optimizer_state, buffers))
    return to_bfloat16_state(state) if plan.bfloat16_states else state
