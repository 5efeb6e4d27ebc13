"""A federation without training: updates are given, and who takes part, whose reply is lost and who loses its memory is anybody's
choice. What laws about real participation are tried on.

P = 60 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedsgd.compression import ClientId, CompressionScheme, MemorylessScheme
from fedsgd.compression.operators.dense import Dense
from fedsgd.data import Examples
from fedsgd.federation import (
    DownlinkCache,
    FederationPlan,
    ImmediateReply,
    Message,
    Reply,
    ServerState,
    aggregate,
    broadcast,
    decode_task,
    encode_update,
    initial_server_state,
    rebroadcast,
)
from fedsgd.federation.client_state import ClientState
from fedsgd.federation.downlink import ModelBroadcast
from fedsgd.federation.server import decode_resync
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import SGD
from fedsgd.training import LocalTraining, TrainingResult
from fedsgd.wire import decode_frame

CLIENTS = 5
LAYOUT = ParameterLayout(("weight", "bias"), ((9, 6), (6,)))
NOBODYS = Examples(np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.int64))


def dyadic(rng: np.random.Generator) -> F32:
    """Multiples of 1/64 below 2 [P], some of them zero: sums of a few thousand are exact in float32."""
    return (rng.integers(-127, 128, LAYOUT.size) * (rng.random(LAYOUT.size) < 0.8) / 64).astype(np.float32)


def plan_of(uplink: CompressionScheme | None = None, link: ModelBroadcast | None = None, lr: float = 1.0) -> FederationPlan:
    """Everybody weighs the same, and the server's step is lr times the mean."""
    scheme = MemorylessScheme(Dense()) if uplink is None else uplink
    recipe = LocalTraining(SGD(lr=1.0), None, 1, None, uses_correction=scheme.corrects_gradients)
    return FederationPlan(0, LAYOUT, recipe, scheme, link or ModelBroadcast(), SGD(lr=lr), "uniform", CLIENTS, CLIENTS)


@dataclass(eq=False)
class Federation:
    """Clients that share nothing with each other: each has a shelf of its own. given: what each trained, added up [N, P];
    delivered: what of it the server accepted [N, P]; ways: (client, MODEL frames) of every message that was followed."""

    plan: FederationPlan
    server: ServerState
    states: dict[ClientId, ClientState] = field(default_factory=dict)
    shelves: dict[ClientId, DownlinkCache] = field(default_factory=dict)
    given: F64 = field(default_factory=lambda: np.zeros((CLIENTS, LAYOUT.size)))
    delivered: F64 = field(default_factory=lambda: np.zeros((CLIENTS, LAYOUT.size)))
    decoded: dict[ClientId, F32] = field(default_factory=dict)
    resyncs: int = 0
    n_bytes: int = 0

    @staticmethod
    def of(plan: FederationPlan, weights: F32) -> Federation:
        """A federation before its first round."""
        return Federation(plan, initial_server_state(plan, weights))

    def play(self, cohort: Sequence[ClientId], updates: Mapping[ClientId, F32], lost: Sequence[ClientId] = ()) -> None:
        """A round: `updates` are what the clients' training gives, the replies of `lost` never arrive."""
        messages, sending = broadcast(self.plan, self.server, cohort)
        answers = {client: self._answer(client, messages[client], updates[client]) for client in messages}
        asked = {c: decode_resync(a, self.server.round) for c, a in answers.items() if a is not None and c not in self.decoded}
        if asked:
            self.resyncs += len(asked)
            messages, sending = rebroadcast(self.plan, sending, asked)
            answers |= {client: self._answer(client, messages[client], updates[client]) for client in messages}
        arrived = [reply for client, reply in answers.items() if client not in lost]
        for reply in arrived:
            sections = decode_frame(reply.frames[0]).sections
            ctx = self.plan.make_context(self.server.round, reply.client)
            self.plan.uplink.decode(sections, ctx).add_to(self.delivered[reply.client], 1.0)
        self.server, _ = aggregate(self.plan, sending, arrived)

    def _answer(self, client: ClientId, message: Message, update: F32) -> Reply:
        self.n_bytes += sum(map(len, message))
        self.decoded.pop(client, None)
        shelf = self.shelves.setdefault(client, DownlinkCache())
        before = self.states.get(client, ClientState())
        task = decode_task(self.plan, client, message, before, NOBODYS, shelf)
        if isinstance(task, ImmediateReply):
            self.states[client] = task.state
            return task.reply
        self.decoded[client] = task.job.weights
        self.given[client] += update
        reply, self.states[client] = encode_update(self.plan, task, TrainingResult(client, update, 1, 1))
        shelf.model_cache.move_reference(before.model_round, self.states[client].model_round)
        return reply

    def forget(self, client: ClientId) -> None:
        """The client loses its state, and the model that it keeps."""
        self.states.pop(client, None)
        self.shelves.pop(client, None)

    def settled(self, client: ClientId) -> Mapping[str, np.ndarray]:
        """What the client's scheme remembers, now that the fate of its last reply is known."""
        state = self.states.get(client, ClientState())
        memory = state.resolve(self.server.round, self.server.acknowledged_rounds.get(client))
        return {name.removeprefix("scheme/"): value for name, value in memory.items() if name.startswith("scheme/")}


def with_link(plan: FederationPlan, link: ModelBroadcast) -> FederationPlan:
    """The same plan with another downlink."""
    return replace(plan, downlink=link)
