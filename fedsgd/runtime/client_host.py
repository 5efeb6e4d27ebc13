"""The clients that live in one process: messages in, replies out. Whatever carries them is not known here."""

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
    """The clients, `chunk_size` at a time, by their number of examples [len(clients)], largest first: who trains together takes
    about the same number of steps, and what is handed out last is short."""
    ordered = [client for _, client in sorted(zip((-sizes).tolist(), clients, strict=True))]
    return [ordered[i : i + chunk_size] for i in range(0, len(ordered), chunk_size)]


class ClientHost:
    """Opens messages, trains, and encodes replies, for each client from its message, its state and its examples alone.

    The frames that clients share are decoded once, not once a client, and a model that several of them keep is there once.
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

    def process_messages(self, messages: Mapping[ClientId, Message]) -> Iterator[ClientOutcome]:
        """One outcome per client, in any order; whatever goes wrong at a client is that client's failure."""
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
        before = self.store.load(client)
        if self.plan.bfloat16_states:
            before = to_float32_state(before)
        task = decode_task(self.plan, client, message, before, self.data.examples_of(client), self._downlink_cache)
        if isinstance(task, ImmediateReply):
            self._save(client, before.model_round, task.state)
        return task

    def _save(self, client: ClientId, old_round: int, state: ClientState) -> None:
        """held: the round of the model that the client kept so far."""
        self.store.save(client, to_bfloat16_state(state) if self.plan.bfloat16_states else state)
        self._downlink_cache.model_cache.move_reference(old_round, state.model_round)

    def _train(self, tasks: Mapping[ClientId, ClientTask]) -> Iterator[ClientOutcome]:
        """Where training several at once fails, those without a result train once more alone, so that it is one's failure."""
        left = dict(tasks)
        try:
            for local in timed_iterator("train", self.engine.train([task.job for task in tasks.values()])):
                yield self._encode_reply(left.pop(local.client), local)
            if left:
                raise RuntimeError(f"the engine gave no result for {', '.join(map(str, left))}")
        except Exception as error:
            if not left:
                raise
            for client, task in left.items():
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
