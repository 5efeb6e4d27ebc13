"""Federation without training, for laws about participation.

Tests choose the updates, the cohorts, the lost replies and the clients that lose their state. P = 60 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsgd.aggregation import select_aggregator
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
NO_EXAMPLES = Examples(np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.int64))


def sample_dyadic_vector(rng: np.random.Generator) -> F32:
    """Return multiples of 1/64 below 2, [P] float32, some of them zero. Sums of a few thousand are exact in float32."""
    return (rng.integers(-127, 128, LAYOUT.size) * (rng.random(LAYOUT.size) < 0.8) / 64).astype(np.float32)


def make_plan(uplink: CompressionScheme | None = None, link: ModelBroadcast | None = None, lr: float = 1.0) -> FederationPlan:
    """Return a plan with uniform weights, whose server step is lr times the mean."""
    scheme = MemorylessScheme(Dense()) if uplink is None else uplink
    recipe = LocalTraining(SGD(lr=1.0), None, 1, None, uses_correction=scheme.corrects_gradients)
    downlink, aggregator = link or ModelBroadcast(), select_aggregator(None, scheme)
    return FederationPlan(0, LAYOUT, recipe, scheme, downlink, SGD(lr=lr), "uniform", CLIENTS, CLIENTS, aggregator=aggregator)


@dataclass(eq=False)
class Federation:
    """Federation whose clients share no cache.

    Attributes:
        plan: settings of the federation.
        server: state of the server before the next round.
        states: state of each client.
        caches: cache of each client.
        trained: [N, P] float64, sum of each client's updates.
        delivered: [N, P] float64, sum of each client's accepted decoded updates.
        decoded: model that each client decoded in its last round.
        resyncs: number of RESYNC replies.
        n_bytes: bytes of all messages.
    """

    plan: FederationPlan
    server: ServerState
    states: dict[ClientId, ClientState] = field(default_factory=dict)
    caches: dict[ClientId, DownlinkCache] = field(default_factory=dict)
    trained: F64 = field(default_factory=lambda: np.zeros((CLIENTS, LAYOUT.size)))
    delivered: F64 = field(default_factory=lambda: np.zeros((CLIENTS, LAYOUT.size)))
    decoded: dict[ClientId, F32] = field(default_factory=dict)
    resyncs: int = 0
    n_bytes: int = 0

    @staticmethod
    def of(plan: FederationPlan, weights: F32) -> Federation:
        """Return a federation before its first round."""
        return Federation(plan, initial_server_state(plan, weights))

    def play(self, cohort: Sequence[ClientId], updates: Mapping[ClientId, F32], lost: Sequence[ClientId] = ()) -> None:
        """Play a round in which training gives `updates` and the replies of the clients `lost` never arrive."""
        messages, sending_server = broadcast(self.plan, self.server, cohort)
        replies = {client: self.answer(client, messages[client], updates[client]) for client in messages}
        resync_frames = {
            c: decode_resync(reply, self.server.round)
            for c, reply in replies.items()
            if reply is not None and c not in self.decoded
        }
        if resync_frames:
            self.resyncs += len(resync_frames)
            messages, sending_server = rebroadcast(self.plan, sending_server, resync_frames)
            replies |= {client: self.answer(client, messages[client], updates[client]) for client in messages}
        arrived = [reply for client, reply in replies.items() if client not in lost]
        for reply in arrived:
            sections = decode_frame(reply.frames[0]).sections
            ctx = self.plan.make_context(self.server.round, reply.client)
            self.plan.uplink.decode(sections, ctx).add_to(self.delivered[reply.client], 1.0)
        self.server, _ = aggregate(self.plan, sending_server, arrived)

    def answer(self, client: ClientId, message: Message, update: F32) -> Reply:
        """Return the client's reply to a message, and store its next state."""
        self.n_bytes += sum(map(len, message))
        self.decoded.pop(client, None)
        cache = self.caches.setdefault(client, DownlinkCache())
        state = self.states.get(client, ClientState())
        task = decode_task(self.plan, client, message, state, NO_EXAMPLES, cache)
        if isinstance(task, ImmediateReply):
            self.states[client] = task.state
            return task.reply
        self.decoded[client] = task.job.weights
        self.trained[client] += update
        reply, self.states[client] = encode_update(self.plan, task, TrainingResult(client, update, 1, 1))
        cache.model_cache.move_reference(state.model_round, self.states[client].model_round)
        return reply

    def lose_state(self, client: ClientId) -> None:
        """Remove the client's state and its stored model."""
        self.states.pop(client, None)
        self.caches.pop(client, None)

    def resolved_state(self, client: ClientId) -> Mapping[str, np.ndarray]:
        """Return the state of the client's scheme after its last reply is acknowledged or not."""
        state = self.states.get(client, ClientState())
        entries = state.resolve(self.server.round, self.server.acknowledged_rounds.get(client))
        return {name.removeprefix("scheme/"): value for name, value in entries.items() if name.startswith("scheme/")}
