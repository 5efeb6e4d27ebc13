"""State of a client between two rounds, and stores of client states.

A reply may be lost, so a client's state is committed in two phases. `encode_update` returns an uncommitted state with the
reply. The next TASK frame names the last round in which the server accepted the client's reply. Then the client commits the
uncommitted state or rolls the state back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId, EntryPatch, StateArrays, apply_rollback
from fedsgd.numerics.arrays import F32, I32
from fedsgd.numerics.vectors import is_tensor, to_host
from fedsgd.optim.base import STEP_COUNT
from fedsgd.wire.floats import from_bfloat16, to_bfloat16

LOCAL = "own"
"""Prefix of entries for the parameters and buffers that never leave the client; they are never rounded."""
SCHEME, OPTIMIZER = "scheme", "optimizer"
"""Prefixes of a client's state entries: entries of the compression scheme, and entries of the local optimizer."""

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class UncommittedState:
    """State after a reply that is not acknowledged yet.

    Attributes:
        round: round of the reply.
        state_if_accepted: state if the server accepts the reply.
        rollback: patches that turn `state_if_accepted` into the state for a reply that is not accepted.
        reply_frame: the UPDATE frame, to be sent again if the same TASK frame arrives again. None if the state is empty: then
            training again gives the same frame.
        residual_norm, residual_norm_if_lost: `Reply.residual_norm` and `Reply.residual_norm_if_lost` of the reply.
        rounds_missed: `Reply.rounds_missed` of the reply.
    """

    round: int
    state_if_accepted: StateArrays
    rollback: Mapping[str, EntryPatch | None]
    reply_frame: bytes | None = None
    residual_norm: float = math.nan
    residual_norm_if_lost: float = math.nan
    rounds_missed: int = -1


@dataclass(frozen=True, eq=False)
class ClientState:
    """State of one client between two rounds.

    Attributes:
        committed_state: arrays by "prefix/name" until the client replies; then empty.
        uncommitted_state: state after the last reply, until a later round's TASK frame arrives; None if there is none.
        model_round: round of the model that the client has stored; 0 for none.
    """

    committed_state: StateArrays = field(default_factory=dict)
    uncommitted_state: UncommittedState | None = None
    model_round: int = 0

    @property
    def last_reply_round(self) -> int:
        """Round of the client's last reply; 0 if there was none."""
        return 0 if self.uncommitted_state is None else self.uncommitted_state.round

    @property
    def state_if_accepted(self) -> StateArrays:
        """Arrays of the state if the server accepts the client's last reply."""
        return self.committed_state if self.uncommitted_state is None else self.uncommitted_state.state_if_accepted

    def resolve(self, round: int, acknowledged_round: int) -> StateArrays:
        """Return the arrays of the client's state at the beginning of a round.

        Args:
            round: current round. If the client has already replied in this round, `committed_state` is returned.
            acknowledged_round: last round whose reply the server accepted; 0 for none. It is at most `last_reply_round`.
        """
        if self.uncommitted_state is None or self.uncommitted_state.round == round:
            return self.committed_state
        if acknowledged_round == self.uncommitted_state.round:
            return self.uncommitted_state.state_if_accepted
        return apply_rollback(self.uncommitted_state.state_if_accepted, self.uncommitted_state.rollback)


def entries_of(state: Mapping[str, V], prefix: str) -> dict[str, V]:
    """Return the entries with the prefix "prefix/", and remove the prefix from their names.

    Args:
        state: entries by "prefix/name".
        prefix: owner of the entries: "scheme", "optimizer" or `LOCAL`.
    """
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}


def with_prefix(prefix: str, values: Mapping[str, V]) -> dict[str, V]:
    """Return the entries by "prefix/name": the inverse of `entries_of`.

    Args:
        prefix: owner of the entries, as in `entries_of`.
        values: entries by their names without the prefix.
    """
    return {f"{prefix}/{name}": value for name, value in values.items()}


class ClientStore(Protocol):
    """Store of client states. The state of a client that has not taken part yet is empty."""

    def load(self, client: ClientId) -> ClientState:
        """Return the state of one client.

        Args:
            client: number of the client, from 0.
        """

    def save(self, client: ClientId, state: ClientState) -> None:
        """Replace the state of one client.

        Args:
            client: number of the client, from 0.
            state: state that later calls of `load` return.
        """


class InMemoryClientStore(ClientStore):
    """In-memory `ClientStore`. Its size grows with the number of clients that have taken part.

    Args:
        keeps_tensors: tensors of a GPU stay there; else arrays of the host take their place.
    """

    def __init__(self, keeps_tensors: bool = False) -> None:
        self._keeps_tensors = keeps_tensors
        self._states_by_client: dict[ClientId, ClientState] = {}

    def load(self, client: ClientId) -> ClientState:
        return self._states_by_client.get(client, ClientState())

    def save(self, client: ClientId, state: ClientState) -> None:
        self._states_by_client[client] = state if self._keeps_tensors else to_host_state(state)


class ModelCache(Protocol):
    """Cache of the models that the clients of one host have stored. Clients that decoded the same model share one copy."""

    def has(self, round: int) -> bool:
        """Return whether the model of a round is cached.

        Args:
            round: round of the model; 0 for no model, which is never cached.
        """

    def get(self, round: int) -> F32:
        """Return the cached model of a round, [P] float32.

        Args:
            round: a round whose model is cached.
        """

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        """Store `model` unless the round has a cached model, and return the cached model, [P] float32.

        Args:
            round: round in which the model was sent.
            model: [P] float32, the decoded model.
            oldest_useful_round: the cache may remove models of earlier rounds.
        """

    def move_reference(self, old_round: int, new_round: int) -> None:
        """Record that one client replaces its stored model. A model that no client has stored any longer is removed.

        Args:
            old_round: round of the model that the client had stored; 0 for no model.
            new_round: round of the model that the client has stored now; 0 for no model.
        """


class InMemoryModelCache(ModelCache):
    """A `ModelCache` in the memory of this process."""

    def __init__(self) -> None:
        self._models: dict[int, F32] = {}
        self._reference_counts: Counter[int] = Counter()

    def has(self, round: int) -> bool:
        return round in self._models

    def get(self, round: int) -> F32:
        return self._models[round]

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        if round not in self._models:  # remove models that no client has stored, for example after a failed round
            self._models = {
                cached_round: cached_model
                for cached_round, cached_model in self._models.items()
                if self._reference_counts[cached_round] > 0 and cached_round >= oldest_useful_round
            }
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
"""Clients in a block of `AcknowledgedRounds`."""


@dataclass(frozen=True, eq=False)
class AcknowledgedRounds:
    """Immutable table: each client's last accepted round, 0 by default. `with_rounds` copies `blocks` and the changed arrays.

    Attributes:
        blocks: block b → [BLOCK_SIZE] int32, rounds of the clients from b · BLOCK_SIZE on. Blocks of zeros are omitted.

    >>> rounds = AcknowledgedRounds().with_rounds([3, 700], 2)
    >>> rounds.get(3), rounds.get(4), sorted(rounds.blocks)
    (2, 0, [0, 2])
    """

    blocks: Mapping[int, I32] = field(default_factory=dict)

    @staticmethod
    def from_rounds(rounds: Mapping[ClientId, int]) -> AcknowledgedRounds:
        """Return the table of given rounds.

        Args:
            rounds: client → round of its last accepted reply.
        """
        blocks: dict[int, I32] = {}
        for client, round in rounds.items():
            if round:
                block = blocks.setdefault(client // BLOCK_SIZE, np.zeros(BLOCK_SIZE, dtype=np.int32))
                block[client % BLOCK_SIZE] = round
        return AcknowledgedRounds(blocks)

    def get(self, client: ClientId) -> int:
        """Return the round of a client's last accepted reply; 0 if there is none.

        Args:
            client: number of the client, from 0.
        """
        block = self.blocks.get(client // BLOCK_SIZE)
        return 0 if block is None else int(block[client % BLOCK_SIZE])

    def with_rounds(self, clients: Iterable[ClientId], round: int) -> AcknowledgedRounds:
        """Return a copy that records `round` as the last accepted round of `clients`.

        Args:
            clients: clients whose reply was accepted.
            round: round of the replies.
        """
        blocks, copied_numbers = dict(self.blocks), set[int]()
        for client in clients:
            number = client // BLOCK_SIZE
            if number not in copied_numbers:
                blocks[number] = np.array(blocks.get(number, np.zeros(BLOCK_SIZE)), dtype=np.int32)
                copied_numbers.add(number)
            blocks[number][client % BLOCK_SIZE] = round
        return AcknowledgedRounds(blocks)


NONE_ACKNOWLEDGED = AcknowledgedRounds()


# ------------------------------------------------------------------------------------------------------- states in bfloat16


def to_bfloat16_state(state: ClientState) -> ClientState:
    """Return the state with all float32 arrays as bfloat16, stored as uint16.

    Values are rounded to the nearest bfloat16, ties to even. Values that would round to infinity become the largest finite
    bfloat16. Arrays of other types, `LOCAL` entries and an optimizer's counts of steps are not changed. An array that occurs
    twice is rounded once. A uint16 array raises a TypeError, because `to_float32_state` would take it for bfloat16.

    Args:
        state: a state whose values are finite.
    """
    return _convert_state(to_host_state(state), _to_bf16)


def to_float32_state(state: ClientState) -> ClientState:
    """Return the state with all bfloat16 arrays as float32: `to_bfloat16_state` inverted, up to rounding.

    Args:
        state: a state that `to_bfloat16_state` returned.
    """
    return _convert_state(state, _to_f32)


def to_host_state(state: ClientState) -> ClientState:
    """Return the state with arrays in place of all tensors of a device.

    Args:
        state: a state of a client that an engine on a GPU may have trained.
    """
    uncommitted = state.uncommitted_state
    arrays = [*state.committed_state.values(), *(() if uncommitted is None else uncommitted.state_if_accepted.values())]
    if not any(is_tensor(array) for array in arrays):
        return state
    return _convert_state(state, lambda _name, vector: to_host(vector))


ArrayConverter = Callable[[str, NDArray[Any]], NDArray[Any]]
"""Function that maps the name and the array of an entry to the converted array."""


def _to_bf16(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint16:
        raise TypeError(f"the client state entry {name} is uint16, which cannot be distinguished from stored bfloat16 numbers")
    if array.dtype != np.float32:
        return array
    return to_bfloat16(np.ascontiguousarray(array).reshape(-1)).reshape(array.shape)


def _to_f32(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.uint16:
        return array
    return from_bfloat16(array.reshape(-1)).reshape(array.shape)


def _convert_state(state: ClientState, convert: ArrayConverter) -> ClientState:
    converted_arrays: dict[int, NDArray[Any]] = {}

    def convert_once(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name.startswith(f"{LOCAL}/") or name == f"{OPTIMIZER}/{STEP_COUNT}":
            return array
        if id(array) not in converted_arrays:
            converted_arrays[id(array)] = convert(name, array)
        return converted_arrays[id(array)]

    def convert_all(state_entries: StateArrays) -> StateArrays:
        return {name: convert_once(name, array) for name, array in state_entries.items()}

    def convert_patch(name: str, patch: EntryPatch | None) -> EntryPatch | None:
        return None if patch is None else EntryPatch(patch.indices, convert_once(name, patch.values))

    uncommitted_state = state.uncommitted_state
    if uncommitted_state is not None:
        arrays = convert_all(uncommitted_state.state_if_accepted)
        rollback = {name: convert_patch(name, patch) for name, patch in uncommitted_state.rollback.items()}
        uncommitted_state = replace(uncommitted_state, state_if_accepted=arrays, rollback=rollback)
    return replace(state, committed_state=convert_all(state.committed_state), uncommitted_state=uncommitted_state)
