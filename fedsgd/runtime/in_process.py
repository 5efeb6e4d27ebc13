"""Runtime with server and clients in one process. Messages have the same bytes as over a network."""

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
    """Runtime that trains the cohort's clients in this process, as many together as the engine prefers."""

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

    @property
    def model_cache(self) -> ModelCache:
        """Models that the clients have stored."""
        return self._host.model_cache

    def list_clients(self) -> Sequence[ClientId]:
        """Return all clients, ascending."""
        return range(len(self._host.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """Yield one outcome for each client. `timeout` is not used, because this process computes the outcomes itself."""
        host, clients = self._host, list(messages)
        for chunk in chunk_by_size(clients, host.data.sizes_of(clients), host.engine.preferred_batch_of_clients):
            yield from host.process_messages({client: messages[client] for client in chunk})
        host.release_downlink()
