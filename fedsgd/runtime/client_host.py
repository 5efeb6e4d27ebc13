"""Clients of one process: from messages to replies, independent of the carrier of the messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsgd.compression import ClientId
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import ClientData
from fedsgd.federation import ClientTask, DownlinkCache, FederationPlan, ImmediateReply, Message, decode_task, encode_update
from fedsgd.federation.client_state import ClientState, ClientStore, ModelCache, to_bfloat16_state, to_float32_state
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.numerics.arrays import I64
from fedsgd.system.profiling import timed_iterator
from fedsgd.training import TrainingEngine, TrainingResult


def chunk_by_size(clients: Sequence[ClientId], sizes: I64, chunk_size: int) -> list[list[ClientId]]:
    """Split clients into chunks of `chunk_size`, the clients with the most examples first. `sizes` are numbers of examples.

    Clients of a chunk train together, so their numbers of steps should be similar. The last chunks take the least time.

    >>> import numpy as np
    >>> chunk_by_size([3, 5, 8], np.array([10, 40, 20]), chunk_size=2)
    [[5, 8], [3]]
    """
    sorted_clients = [client for _, client in sorted(zip((-sizes).tolist(), clients, strict=True))]
    return [sorted_clients[i : i + chunk_size] for i in range(0, len(sorted_clients), chunk_size)]


class ClientHost:
    """Host that decodes messages, trains, and encodes replies for the clients of one process.

    A client's reply depends on the client's message, state and examples alone. Frames and models that clients share are decoded
    and stored once.
    """

    def __init__(
        self,
        plan: FederationPlan,
        engine: TrainingEngine,
        store: ClientStore,
        data: ClientData,
        model_cache: ModelCache | None = None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.store = store
        self.data = data
        self._downlink_cache = DownlinkCache(model_cache)

    @property
    def model_cache(self) -> ModelCache:
        """Models that the clients have stored."""
        return self._downlink_cache.model_cache

    def release_downlink(self) -> None:
        """Drop the decoded frames of the last messages, which have the size of a model. Models of clients stay stored."""
        self._downlink_cache.clear()

    def process_messages(self, messages: Mapping[ClientId, Message]) -> Iterator[ClientOutcome]:
        """Yield one outcome for each client, in any order. An error at a client becomes a failure of that client."""
        tasks: dict[ClientId, ClientTask] = {}
        for client, message in messages.items():
            try:
                task = self._decode_message(client, message)
            except Exception as error:
                yield ClientFailure(client, error)
                continue
            if isinstance(task, ClientTask):
                tasks[client] = task
            else:
                yield task.reply
        yield from self._train(tasks)

    def _decode_message(self, client: ClientId, message: Message) -> ClientTask | ImmediateReply:
        state = self.store.load(client)
        if self.plan.bfloat16_states:
            state = to_float32_state(state)
        task = decode_task(self.plan, client, message, state, self.data.examples_of(client), self._downlink_cache)
        if isinstance(task, ImmediateReply):
            self._save(client, state.model_round, task.state)
        return task

    def _save(self, client: ClientId, old_round: int, state: ClientState) -> None:
        """Store a client's state, and record that the client replaces the model of `old_round`."""
        self.store.save(client, to_bfloat16_state(state) if self.plan.bfloat16_states else state)
        self._downlink_cache.model_cache.move_reference(old_round, state.model_round)

    def _train(self, tasks: Mapping[ClientId, ClientTask]) -> Iterator[ClientOutcome]:
        """Train clients and yield their outcomes. After an error, clients without a result train again, one at a time.

        Thus a faulty client does not make the other clients of its chunk fail.
        """
        remaining_tasks = dict(tasks)
        try:
            for result in timed_iterator("train", self.engine.train([task.job for task in tasks.values()])):
                yield self._encode_reply(remaining_tasks.pop(result.client), result)
            if remaining_tasks:
                raise RuntimeError(f"the engine gave no result for {', '.join(map(str, remaining_tasks))}")
        except Exception as error:
            if not remaining_tasks:
                raise
            for client, task in remaining_tasks.items():
                if len(tasks) == 1:
                    yield ClientFailure(client, error)
                else:
                    yield from self._train({client: task})

    def _encode_reply(self, task: ClientTask, result: TrainingResult) -> ClientOutcome:
        try:
            with wrap_user_errors("uplink.compressor", self.plan.uplink):
                reply, state = encode_update(self.plan, task, result)
            self._save(result.client, task.previous_model_round, state)
        except Exception as error:
            return ClientFailure(result.client, error)
        return reply
