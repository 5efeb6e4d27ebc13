"""What each client remembers between the rounds in which it takes part, and what the server remembers of each.

An upload may never arrive, so what a client remembers is committed in two phases: `uncommitted_state` with the upload, final
when the
next TASK frame says which round the server accepted last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId, EntryPatch, StateArrays, apply_rollback
from fedsgd.numerics.arrays import F32, I32
from fedsgd.wire.floats import from_bfloat16, to_bfloat16

LOCAL = "own"
"""The owner of what of a model never leaves its client: it is part of the model, and so never rounded."""

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class UncommittedState:
    """State after a reply whose acceptance is not known yet.

    Attributes:
        round: round of the reply.
        if_received: state if the server accepts the reply.
        undo: patches to the state for a reply that is not accepted.
        reply: the reply's frame, or whatever its host repeats it from, in case the same TASK is delivered again; None where the
            state is empty, so that the next answer is the same.
    """

    round: int
    state_if_accepted: StateArrays
    rollback: Mapping[str, EntryPatch | None]
    reply_frame: bytes | None = None


@dataclass(frozen=True, eq=False)
class ClientState:
    """memory: what is remembered, by "owner/name", while no reply is under way; pending: what is remembered once the fate of
    the one that is under way is known; held: the round of the model that the client keeps, 0 for none."""

    committed_state: StateArrays = field(default_factory=dict)
    uncommitted_state: UncommittedState | None = None
    model_round: int = 0

    @property
    def last_reply_round(self) -> int:
        """The round of its last reply, 0 if there was none."""
        return 0 if self.uncommitted_state is None else self.uncommitted_state.round

    @property
    def state_if_accepted(self) -> StateArrays:
        """What it remembers if its last reply is accepted."""
        return self.committed_state if self.uncommitted_state is None else self.uncommitted_state.state_if_accepted

    def resolve(self, round: int, acknowledged_round: int) -> StateArrays:
        """What it remembers in `round`, now that the server says which round's reply it accepted last (0: none), which must not
        be one that this state does not know of."""
        if self.uncommitted_state is None or self.uncommitted_state.round == round:
            return self.committed_state
        if acknowledged_round == self.uncommitted_state.round:
            return self.uncommitted_state.state_if_accepted
        return apply_rollback(self.uncommitted_state.state_if_accepted, self.uncommitted_state.rollback)


def entries_of(state: Mapping[str, V], prefix: str) -> dict[str, V]:
    """What an owner has in a memory, by its own names."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}/")}


def with_prefix(prefix: str, values: Mapping[str, V]) -> dict[str, V]:
    """An owner's values by the names that they have in a memory."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


class ClientStore(Protocol):
    """Where client states live. A client that was never seen has an empty state."""

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it."""


class InMemoryClientStore:
    """In memory, for the clients that have been seen."""

    def __init__(self) -> None:
        self._states_by_client: dict[ClientId, ClientState] = {}

    def load(self, client: ClientId) -> ClientState:
        return self._states_by_client.get(client, ClientState())

    def save(self, client: ClientId, state: ClientState) -> None:
        self._states_by_client[client] = state


class ModelCache(Protocol):
    """The models that a host's clients keep, each of them once, by the round that it was sent in."""

    def has(self, round: int) -> bool:
        """Whether anybody here keeps the model of that round."""

    def get(self, round: int) -> F32:
        """The model of that round [P], which somebody keeps."""

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        """The model of that round [P]: `model`, if there was none yet. since: earlier ones are of no use any more."""

    def move_reference(self, old_round: int, new_round: int) -> None:
        """A client keeps the model of round `new_round` instead of that of `old_round` (0: none)."""


class InMemoryModelCache:
    """In memory, each until no client keeps it any longer, or it is of no use."""

    def __init__(self) -> None:
        self._models: dict[int, F32] = {}
        self._reference_counts: Counter[int] = Counter()

    def has(self, round: int) -> bool:
        return round in self._models

    def get(self, round: int) -> F32:
        return self._models[round]

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        if round not in self._models:  # those of rounds in which every client failed have no holder
            held = {
                known: kept
                for known, kept in self._models.items()
                if self._reference_counts[known] > 0 and known >= oldest_useful_round
            }
            self._models = held
        return self._models.setdefault(round, model)

    def move_reference(self, old_round: int, new_round: int) -> None:
        if old_round == new_round:
            return
        for round, change in ((old_round, -1), (new_round, 1)):
            self._reference_counts[round] += change
        if self._reference_counts[old_round] <= 0:
            del self._reference_counts[old_round]
            self._models.pop(old_round, None)


BLOCK_SIZE = 256


@dataclass(frozen=True, eq=False)
class AcknowledgedRounds:
    """A round for each client, 0 unless told: what changes costs the same however many clients there are, and what was handed
    out before stays as it was. blocks: the rounds of 256 clients each, those that are all 0 left out."""

    blocks: Mapping[int, I32] = field(default_factory=dict)

    def get(self, client: ClientId) -> int:
        """The round of one client."""
        block = self.blocks.get(client // BLOCK_SIZE)
        return 0 if block is None else int(block[client % BLOCK_SIZE])

    def with_rounds(self, clients: Iterable[ClientId], round: int) -> AcknowledgedRounds:
        """The same, but for these clients."""
        blocks, fresh = dict(self.blocks), set[int]()
        for client in clients:
            number = client // BLOCK_SIZE
            if number not in fresh:
                blocks[number] = np.array(blocks.get(number, np.zeros(BLOCK_SIZE)), dtype=np.int32)
                fresh.add(number)
            blocks[number][client % BLOCK_SIZE] = round
        return AcknowledgedRounds(blocks)


NONE_ACKNOWLEDGED = AcknowledgedRounds()


# -------------------------------------------------------------------------------------------------------- at half the size


def to_bfloat16_state(state: ClientState) -> ClientState:
    """The state with all float32 arrays as bfloat16, the upper halves of their bits, uint16: rounded to nearest even, the
    largest finite one where that would be infinite. Other arrays (float64, integers) and those of `LOCAL` are as they were. An
    array that is there twice is rounded once.

    Values must be finite. TypeError for an array of uint16: it could not be told apart by `to_float32_state`.
    """
    return _convert_state(state, _to_bf16)


def to_float32_state(state: ClientState) -> ClientState:
    """Inverse of `to_bfloat16_state`: with the float32 numbers that bfloat16 ones are."""
    return _convert_state(state, _to_f32)


ArrayConverter = Callable[[str, NDArray[Any]], NDArray[Any]]


def _to_bf16(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint16:
        raise TypeError(f"what a client remembers ({name}) is uint16, which bfloat16 numbers could not be told apart from")
    if array.dtype != np.float32:
        return array
    return to_bfloat16(np.ascontiguousarray(array).reshape(-1)).reshape(array.shape)


def _to_f32(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.uint16:
        return array
    return from_bfloat16(array.reshape(-1).astype(np.uint32)).reshape(array.shape)


def _convert_state(state: ClientState, convert: ArrayConverter) -> ClientState:
    made: dict[int, NDArray[Any]] = {}

    def convert_once(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name.startswith(f"{LOCAL}/"):
            return array
        if id(array) not in made:
            made[id(array)] = convert(name, array)
        return made[id(array)]

    def convert_all(state_entries: StateArrays) -> StateArrays:
        return {name: convert_once(name, array) for name, array in state_entries.items()}

    pending = state.uncommitted_state
    if pending is not None:
        undo = {n: None if p is None else EntryPatch(p.indices, convert_once(n, p.values)) for n, p in pending.rollback.items()}
        pending = replace(pending, state_if_accepted=convert_all(pending.state_if_accepted), rollback=undo)
    return replace(state, committed_state=convert_all(state.committed_state), uncommitted_state=pending)
