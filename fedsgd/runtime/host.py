"""The clients that live in one process: messages in, replies out. Whatever carries them is not known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsgd.arrays import I64
from fedsgd.clients import ClientState, ClientStore, Models, rounded_client, widened_client
from fedsgd.compress import ClientId
from fedsgd.data import ClientData
from fedsgd.engine import Engine, Local
from fedsgd.loop import Failure, Outcome
from fedsgd.profiling import each_phased
from fedsgd.rounds import Answer, Message, Plan, Shelf, Task, receive, send
from fedsgd.user_code import user_code


def chunks(clients: Sequence[ClientId], sizes: I64, together: int) -> list[list[ClientId]]:
    """The clients, `together` at a time, by their number of examples [len(clients)], largest first: who trains together takes
    about the same number of steps, and what is handed out last is short."""
    ordered = [client for _, client in sorted(zip((-sizes).tolist(), clients, strict=True))]
    return [ordered[i : i + together] for i in range(0, len(ordered), together)]


class Host:
    """Opens messages, trains, and encodes replies, for each client from its message, its state and its examples alone.

    The frames that clients share are decoded once, not once a client, and a model that several of them keep is there once.
    """

    def __init__(self, plan: Plan, engine: Engine, store: ClientStore, data: ClientData, models: Models | None = None) -> None:
        self.plan = plan
        self.engine = engine
        self.store = store
        self.data = data
        self._shelf = Shelf(models)

    def answer(self, messages: Mapping[ClientId, Message]) -> Iterator[Outcome]:
        """One outcome per client, in any order; whatever goes wrong at a client is that client's failure."""
        tasks: dict[ClientId, Task] = {}
        for client, message in messages.items():
            try:
                task = self._receive(client, message)
            except Exception as error:
                yield Failure(client, error)
                continue
            if isinstance(task, Task):
                tasks[client] = task
            else:
                yield task.reply
        yield from self._train(tasks)

    def _receive(self, client: ClientId, message: Message) -> Task | Answer:
        before = self.store.load(client)
        if self.plan.bfloat16_states:
            before = widened_client(before)
        task = receive(self.plan, client, message, before, self.data.of(client), self._shelf)
        if isinstance(task, Answer):
            self._save(client, before.held, task.state)
        return task

    def _save(self, client: ClientId, held: int, state: ClientState) -> None:
        """held: the round of the model that the client kept so far."""
        self.store.save(client, rounded_client(state) if self.plan.bfloat16_states else state)
        self._shelf.models.moved(held, state.held)

    def _train(self, tasks: Mapping[ClientId, Task]) -> Iterator[Outcome]:
        """Where training several at once fails, those without a result train once more alone, so that it is one's failure."""
        left = dict(tasks)
        try:
            for local in each_phased("train", self.engine.train([task.work for task in tasks.values()])):
                yield self._send(left.pop(local.client), local)
            if left:
                raise RuntimeError(f"the engine gave no result for {', '.join(map(str, left))}")
        except Exception as error:
            if not left:
                raise
            for client, task in left.items():
                if len(tasks) == 1:
                    yield Failure(client, error)
                else:
                    yield from self._train({client: task})

    def _send(self, task: Task, local: Local) -> Outcome:
        try:
            with user_code("uplink.compressor", self.plan.uplink):
                reply, state = send(self.plan, task, local)
            self._save(local.client, task.held, state)
        except Exception as error:
            return Failure(local.client, error)
        return reply
