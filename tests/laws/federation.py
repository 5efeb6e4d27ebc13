"""A federation without training: updates are given, and who takes part, whose reply is lost and who loses its memory is anybody's
choice. What laws about real participation are tried on.

P = 60 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.clients import ClientState
from fedsgd.compress import ClientId, Plain, Scheme
from fedsgd.compress.dense import DenseOperator
from fedsgd.data import Examples
from fedsgd.downlink import Downlink
from fedsgd.engine import Local, Recipe
from fedsgd.layout import Layout
from fedsgd.optim import SGD
from fedsgd.rounds import Answer, Message, Plan, Reply, Server, Shelf, again, aggregate, broadcast, receive, send, start
from fedsgd.rounds.server import open_resync
from fedsgd.wire import decode_frame

CLIENTS = 5
LAYOUT = Layout(("weight", "bias"), ((9, 6), (6,)))
NOBODYS = Examples(np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.int64))


def dyadic(rng: np.random.Generator) -> F32:
    """Multiples of 1/64 below 2 [P], some of them zero: sums of a few thousand are exact in float32."""
    return (rng.integers(-127, 128, LAYOUT.size) * (rng.random(LAYOUT.size) < 0.8) / 64).astype(np.float32)


def plan_of(uplink: Scheme | None = None, link: Downlink | None = None, lr: float = 1.0) -> Plan:
    """Everybody weighs the same, and the server's step is lr times the mean."""
    scheme = Plain(DenseOperator()) if uplink is None else uplink
    recipe = Recipe(SGD(lr=1.0), None, 1, None, corrected=scheme.corrects)
    return Plan(0, LAYOUT, recipe, scheme, link or Downlink(), SGD(lr=lr), "uniform", CLIENTS, CLIENTS)


@dataclass(eq=False)
class Federation:
    """Clients that share nothing with each other: each has a shelf of its own. given: what each trained, added up [N, P];
    delivered: what of it the server accepted [N, P]; ways: (client, MODEL frames) of every message that was followed."""

    plan: Plan
    server: Server
    states: dict[ClientId, ClientState] = field(default_factory=dict)
    shelves: dict[ClientId, Shelf] = field(default_factory=dict)
    given: F64 = field(default_factory=lambda: np.zeros((CLIENTS, LAYOUT.size)))
    delivered: F64 = field(default_factory=lambda: np.zeros((CLIENTS, LAYOUT.size)))
    decoded: dict[ClientId, F32] = field(default_factory=dict)
    resyncs: int = 0
    n_bytes: int = 0

    @staticmethod
    def of(plan: Plan, weights: F32) -> Federation:
        """A federation before its first round."""
        return Federation(plan, start(plan, weights))

    def play(self, cohort: Sequence[ClientId], updates: Mapping[ClientId, F32], lost: Sequence[ClientId] = ()) -> None:
        """A round: `updates` are what the clients' training gives, the replies of `lost` never arrive."""
        messages, sending = broadcast(self.plan, self.server, cohort)
        answers = {client: self._answer(client, messages[client], updates[client]) for client in messages}
        asked = {c: open_resync(a, self.server.round) for c, a in answers.items() if a is not None and c not in self.decoded}
        if asked:
            self.resyncs += len(asked)
            messages, sending = again(self.plan, sending, asked)
            answers |= {client: self._answer(client, messages[client], updates[client]) for client in messages}
        arrived = [reply for client, reply in answers.items() if client not in lost]
        for reply in arrived:
            sections = decode_frame(reply.frames[0]).sections
            ctx = self.plan.context(self.server.round, reply.client)
            self.plan.uplink.decode(sections, ctx).add_to(self.delivered[reply.client], 1.0)
        self.server, _ = aggregate(self.plan, sending, arrived)

    def _answer(self, client: ClientId, message: Message, update: F32) -> Reply:
        self.n_bytes += sum(map(len, message))
        self.decoded.pop(client, None)
        shelf = self.shelves.setdefault(client, Shelf())
        before = self.states.get(client, ClientState())
        task = receive(self.plan, client, message, before, NOBODYS, shelf)
        if isinstance(task, Answer):
            self.states[client] = task.state
            return task.reply
        self.decoded[client] = task.work.weights
        self.given[client] += update
        reply, self.states[client] = send(self.plan, task, Local(client, update, 1, 1))
        shelf.models.moved(before.held, self.states[client].held)
        return reply

    def forget(self, client: ClientId) -> None:
        """The client loses its state, and the model that it keeps."""
        self.states.pop(client, None)
        self.shelves.pop(client, None)

    def settled(self, client: ClientId) -> Mapping[str, np.ndarray]:
        """What the client's scheme remembers, now that the fate of its last reply is known."""
        state = self.states.get(client, ClientState())
        memory = state.settle(self.server.round, self.server.acknowledged.get(client))
        return {name.removeprefix("scheme/"): value for name, value in memory.items() if name.startswith("scheme/")}


def with_link(plan: Plan, link: Downlink) -> Plan:
    """The same plan with another downlink."""
    return replace(plan, downlink=link)
