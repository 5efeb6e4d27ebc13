"""Server and clients in one process: messages are handed over as the bytes that a network would carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsgd.clients import ClientStore, Models
from fedsgd.compress import ClientId
from fedsgd.data import ClientData
from fedsgd.engine import Engine
from fedsgd.loop import Outcome
from fedsgd.rounds import Message, Plan
from fedsgd.runtime.host import Host, chunks


class InProcess:
    """Runs the cohort's clients here, as many at once as the engine likes to train together."""

    def __init__(self, plan: Plan, engine: Engine, store: ClientStore, data: ClientData, models: Models | None = None) -> None:
        self.store = store
        self._host = Host(plan, engine, store, data, models)

    def clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""
        return range(len(self._host.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[Outcome]:
        """One outcome per client; whatever goes wrong at a client is that client's failure.

        timeout is not used: nothing here waits for anything.
        """
        host, clients = self._host, list(messages)
        for chunk in chunks(clients, host.data.sizes_of(clients), host.engine.together):
            yield from host.answer({client: messages[client] for client in chunk})
