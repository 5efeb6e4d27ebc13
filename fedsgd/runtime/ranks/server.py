"""Runtime, evaluation and storage of rank 0 over all machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsgd.compression import ClientId
from fedsgd.data import Examples
from fedsgd.federation import Message
from fedsgd.federation.client_state import ClientState, ClientStore, ModelCache
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.numerics.arrays import F32
from fedsgd.runtime.ranks.machine import MachineStorage
from fedsgd.runtime.ranks.remote import RemoteMachine
from fedsgd.runtime.ranks.rendezvous import RankPlaces
from fedsgd.runtime.workers.pool import WorkerPool
from fedsgd.training import EVALUATION_SLICE_SIZE, EvaluationResult

SERVER_MACHINE = 0
"""Number of the machine of rank 0."""


class RankRuntime:
    """Runtime that gives each client to its machine, and evaluator that shares examples out to all machines.

    Args:
        places: machines of all ranks.
        pool: ranks of rank 0's machine.
        remotes: the other machines by number.
    """

    def __init__(self, places: RankPlaces, pool: WorkerPool, remotes: Mapping[int, RemoteMachine]) -> None:
        self._places = places
        self._pool = pool
        self._remotes = remotes

    def list_clients(self) -> Sequence[ClientId]:
        """Return all clients, ascending."""
        return self._pool.list_clients()

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """Yield one outcome for each client, in any order. `timeout` limits the clients of rank 0's machine only."""
        by_machine: dict[int, dict[ClientId, Message]] = {}
        for client, message in messages.items():
            by_machine.setdefault(self._places.machine_of_client(client), {})[client] = message
        own_messages = by_machine.pop(SERVER_MACHINE, {})
        failures: dict[int, ConnectionError] = {}
        for machine, part in by_machine.items():
            try:
                self._remotes[machine].begin_training(part)
            except ConnectionError as error:
                failures[machine] = error
        if own_messages:
            yield from self._pool.exchange(own_messages, timeout)
        for machine, part in by_machine.items():
            try:
                if machine not in failures:
                    yield from self._remotes[machine].iterate_outcomes()
            except ConnectionError as error:
                failures[machine] = error
            if machine in failures:
                lost = ChildProcessError(str(failures[machine]))
                yield from (ClientFailure(client, lost) for client in part)

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Evaluate a model with weights [P] and buffers [S]. The result has the same bits as the result of one engine."""
        set_index = self._pool.find_distributable_set(examples) if self._remotes else None
        if set_index is None:
            return self._pool.evaluate(weights, examples, buffers)
        ends = self._share_examples(len(examples))
        model = [values.tobytes() for values in (weights, buffers) if values is not None]
        used = [number for number in self._remotes if ends[number] > ends[number - 1]]
        for number in used:
            self._remotes[number].begin_evaluation(set_index, ends[number - 1], ends[number], model)
        parts = [self._pool.evaluate_range(set_index, 0, ends[SERVER_MACHINE], weights, buffers)] if ends[0] else []
        return EvaluationResult.join([*parts, *(self._remotes[number].finish_evaluation() for number in used)])

    def _share_examples(self, n_examples: int) -> list[int]:
        """Return the end of each machine's range of examples: whole slices, in proportion to its ranks."""
        n_slices, n_ranks, ends = -(-n_examples // EVALUATION_SLICE_SIZE), 0, list[int]()
        for ranks in self._places.machines:
            n_ranks += len(ranks)
            ends.append(min(n_examples, n_slices * n_ranks // self._places.n_ranks * EVALUATION_SLICE_SIZE))
        return ends


class RankClientStore(ClientStore):
    """Client states of all machines. A state that is saved must be the client's first."""

    def __init__(self, places: RankPlaces, own: MachineStorage, remotes: Mapping[int, RemoteMachine]) -> None:
        self._places = places
        self._own = own
        self._remotes = remotes

    def load(self, client: ClientId) -> ClientState:
        machine = self._places.machine_of_client(client)
        return self._own.store.load(client) if machine == SERVER_MACHINE else self._remotes[machine].load(client)

    def save(self, client: ClientId, state: ClientState) -> None:
        machine = self._places.machine_of_client(client)
        if machine == SERVER_MACHINE:
            self._own.store.save(client, state)
            self._own.models.move_reference(0, state.model_round)
        else:
            self._remotes[machine].save(client, state)


class RankModelCache(ModelCache):
    """Models that the clients of all machines keep; `RankClientStore` counts the references."""

    def __init__(self, own: MachineStorage, remotes: Mapping[int, RemoteMachine]) -> None:
        self._own = own
        self._remotes = remotes

    def has(self, round: int) -> bool:
        return self._own.models.has(round) or any(remote.has_model(round) for remote in self._remotes.values())

    def get(self, round: int) -> F32:
        if self._own.models.has(round):
            return self._own.models.get(round)
        return next(remote.get_model(round) for remote in self._remotes.values() if remote.has_model(round))

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        for remote in self._remotes.values():
            remote.put_model(round, model)
        return self._own.models.put(round, model, oldest_useful_round)

    def move_reference(self, old_round: int, new_round: int) -> None:
        """Do nothing: the store has recorded the reference at the client's machine."""
