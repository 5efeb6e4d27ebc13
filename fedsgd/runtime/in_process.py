"""Server and clients in one process: messages are handed over as the bytes that a network would carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsgd.clients import ClientStore
from fedsgd.compress import ClientId
from fedsgd.data import ClientData
from fedsgd.engine import Engine
from fedsgd.loop import Failure, Outcome
from fedsgd.rounds import Message, Plan, Reply, client_update


class InProcess:
    """Runs the cohort's clients one after the other, each from its message, its state and its examples alone."""

    def __init__(self, plan: Plan, engine: Engine, store: ClientStore, data: ClientData) -> None:
        self.plan = plan
        self.engine = engine
        self.store = store
        self.data = data

    def clients(self) -> Sequence[ClientId]:
        return range(len(self.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[Outcome]:
        """One outcome per client, in the order of `messages`; whatever goes wrong at a client is that client's failure.

        timeout is not used: nothing here waits for anything.
        """
        for client, message in messages.items():
            try:
                outcome: Outcome = self._update(client, message)
            except Exception as error:
                outcome = Failure(client, error)
            yield outcome

    def _update(self, client: ClientId, message: Message) -> Reply:
        state = self.store.load(client)
        reply, state = client_update(self.plan, self.engine, client, message, state, self.data.of(client))
        self.store.save(client, state)
        return reply
