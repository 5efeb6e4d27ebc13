"""Server and clients in one process: messages are handed over as the bytes that a network would carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsgd.compression import ClientId
from fedsgd.data import ClientData
from fedsgd.federation import FederationPlan, Message
from fedsgd.federation.client_state import ClientStore, ModelCache
from fedsgd.federation.round_loop import ClientOutcome
from fedsgd.runtime.client_host import ClientHost, chunk_by_size
from fedsgd.training import TrainingEngine


class InProcessRuntime:
    """Runs the cohort's clients here, as many at once as the engine likes to train together."""

    def __init__(
        self,
        plan: FederationPlan,
        engine: TrainingEngine,
        store: ClientStore,
        data: ClientData,
        model_cache: ModelCache | None = None,
    ) -> None:
        self.store = store
        self._host = ClientHost(plan, engine, store, data, model_cache)

    def list_clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""
        return range(len(self._host.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """One outcome per client; whatever goes wrong at a client is that client's failure.

        timeout is not used: nothing here waits for anything.
        """
        host, clients = self._host, list(messages)
        for chunk in chunk_by_size(clients, host.data.sizes_of(clients), host.engine.preferred_batch_of_clients):
            yield from host.process_messages({client: messages[client] for client in chunk})
