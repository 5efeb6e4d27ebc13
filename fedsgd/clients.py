"""What each client remembers between the rounds in which it takes part, and what the server remembers of each.

An upload may never arrive, so what a client remembers is committed in two phases: `pending` with the upload, final when the
next TASK frame says which round the server accepted last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32, I32
from fedsgd.compress import ClientId, Patch, State, undone
from fedsgd.wire.floats import from_bfloat16, to_bfloat16

OWN = "own"
"""The owner of what of a model never leaves its client: it is part of the model, and so never rounded."""

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Pending:
    """State after a reply whose acceptance is not known yet.

    Attributes:
        round: round of the reply.
        if_received: state if the server accepts the reply.
        undo: patches to the state for a reply that is not accepted.
        reply: the reply's frame, or whatever its host repeats it from, in case the same TASK is delivered again; None where the
            state is empty, so that the next answer is the same.
    """

    round: int
    if_received: State
    undo: Mapping[str, Patch | None]
    reply: bytes | None = None


@dataclass(frozen=True, eq=False)
class ClientState:
    """memory: what is remembered, by "owner/name", while no reply is under way; pending: what is remembered once the fate of
    the one that is under way is known; held: the round of the model that the client keeps, 0 for none."""

    memory: State = field(default_factory=dict)
    pending: Pending | None = None
    held: int = 0

    @property
    def known(self) -> int:
        """The round of its last reply, 0 if there was none."""
        return 0 if self.pending is None else self.pending.round

    @property
    def latest(self) -> State:
        """What it remembers if its last reply is accepted."""
        return self.memory if self.pending is None else self.pending.if_received

    def settle(self, round: int, acknowledged: int) -> State:
        """What it remembers in `round`, now that the server says which round's reply it accepted last (0: none), which must not
        be one that this state does not know of."""
        if self.pending is None or self.pending.round == round:
            return self.memory
        if acknowledged == self.pending.round:
            return self.pending.if_received
        return undone(self.pending.if_received, self.pending.undo)


def part_of(memory: Mapping[str, V], owner: str) -> dict[str, V]:
    """What an owner has in a memory, by its own names."""
    return {name[len(owner) + 1 :]: value for name, value in memory.items() if name.startswith(f"{owner}/")}


def with_part(owner: str, values: Mapping[str, V]) -> dict[str, V]:
    """An owner's values by the names that they have in a memory."""
    return {f"{owner}/{name}": value for name, value in values.items()}


class ClientStore(Protocol):
    """Where client states live. A client that was never seen has an empty state."""

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it."""


class MemoryStore:
    """In memory, for the clients that have been seen."""

    def __init__(self) -> None:
        self._states: dict[ClientId, ClientState] = {}

    def load(self, client: ClientId) -> ClientState:
        return self._states.get(client, ClientState())

    def save(self, client: ClientId, state: ClientState) -> None:
        self._states[client] = state


class Models(Protocol):
    """The models that a host's clients keep, each of them once, by the round that it was sent in."""

    def has(self, round: int) -> bool:
        """Whether anybody here keeps the model of that round."""

    def get(self, round: int) -> F32:
        """The model of that round [P], which somebody keeps."""

    def keep(self, round: int, model: F32, since: int = 0) -> F32:
        """The model of that round [P]: `model`, if there was none yet. since: earlier ones are of no use any more."""

    def moved(self, before: int, after: int) -> None:
        """A client keeps the model of round `after` instead of that of `before` (0: none)."""


class MemoryModels:
    """In memory, each until no client keeps it any longer, or it is of no use."""

    def __init__(self) -> None:
        self._models: dict[int, F32] = {}
        self._holders: Counter[int] = Counter()

    def has(self, round: int) -> bool:
        return round in self._models

    def get(self, round: int) -> F32:
        return self._models[round]

    def keep(self, round: int, model: F32, since: int = 0) -> F32:
        if round not in self._models:  # those of rounds in which every client failed have no holder
            held = {known: kept for known, kept in self._models.items() if self._holders[known] > 0 and known >= since}
            self._models = held
        return self._models.setdefault(round, model)

    def moved(self, before: int, after: int) -> None:
        if before == after:
            return
        for round, change in ((before, -1), (after, 1)):
            self._holders[round] += change
        if self._holders[before] <= 0:
            del self._holders[before]
            self._models.pop(before, None)


BLOCK = 256


@dataclass(frozen=True, eq=False)
class ByClient:
    """A round for each client, 0 unless told: what changes costs the same however many clients there are, and what was handed
    out before stays as it was. blocks: the rounds of 256 clients each, those that are all 0 left out."""

    blocks: Mapping[int, I32] = field(default_factory=dict)

    def get(self, client: ClientId) -> int:
        """The round of one client."""
        block = self.blocks.get(client // BLOCK)
        return 0 if block is None else int(block[client % BLOCK])

    def having(self, clients: Iterable[ClientId], round: int) -> ByClient:
        """The same, but for these clients."""
        blocks, fresh = dict(self.blocks), set[int]()
        for client in clients:
            number = client // BLOCK
            if number not in fresh:
                blocks[number] = np.array(blocks.get(number, np.zeros(BLOCK)), dtype=np.int32)
                fresh.add(number)
            blocks[number][client % BLOCK] = round
        return ByClient(blocks)


NOBODY = ByClient()


# -------------------------------------------------------------------------------------------------------- at half the size


def rounded_client(state: ClientState) -> ClientState:
    """The state with all float32 arrays as bfloat16, the upper halves of their bits, uint16: rounded to nearest even, the
    largest finite one where that would be infinite. Other arrays (float64, integers) and those of `OWN` are as they were. An
    array that is there twice is rounded once.

    Values must be finite. TypeError for an array of uint16: it could not be told apart by `widened_client`.
    """
    return _converted_client(state, _halves)


def widened_client(state: ClientState) -> ClientState:
    """Inverse of `rounded_client`: with the float32 numbers that bfloat16 ones are."""
    return _converted_client(state, _wholes)


Convert = Callable[[str, NDArray[Any]], NDArray[Any]]


def _halves(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint16:
        raise TypeError(f"what a client remembers ({name}) is uint16, which bfloat16 numbers could not be told apart from")
    if array.dtype != np.float32:
        return array
    return to_bfloat16(np.ascontiguousarray(array).reshape(-1)).reshape(array.shape)


def _wholes(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.uint16:
        return array
    return from_bfloat16(array.reshape(-1).astype(np.uint32)).reshape(array.shape)


def _converted_client(state: ClientState, convert: Convert) -> ClientState:
    made: dict[int, NDArray[Any]] = {}

    def once(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name.startswith(f"{OWN}/"):
            return array
        if id(array) not in made:
            made[id(array)] = convert(name, array)
        return made[id(array)]

    def every(memory: State) -> State:
        return {name: once(name, array) for name, array in memory.items()}

    pending = state.pending
    if pending is not None:
        undo = {n: None if p is None else Patch(p.indices, once(n, p.values)) for n, p in pending.undo.items()}
        pending = replace(pending, if_received=every(pending.if_received), undo=undo)
    return replace(state, memory=every(state.memory), pending=pending)
