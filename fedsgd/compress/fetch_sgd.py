"""Clients send sketches; the server keeps momentum and error feedback in the sketch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.component import Coefficient, Share
from fedsgd.compress.base import Context, Gathering, Received, Scheme, Sent
from fedsgd.compress.count_sketch import Rows, n_columns, sketch, unsketch
from fedsgd.compress.density import kept_of
from fedsgd.compress.select import top_k
from fedsgd.compress.update import Dense, State, Update
from fedsgd.errors import NonFiniteError
from fedsgd.layout import Layout
from fedsgd.rng import shared_key
from fedsgd.vectors import all_finite
from fedsgd.wire import FloatFormat, Sections, decode_values, encode_values, max_value_bytes


@dataclass(frozen=True)
class FetchSGD(Scheme):
    """A count sketch of the update up; at the server momentum, error feedback and top-k, all in the sketch.

    FetchSGD (Rothchild et al. 2020, algorithm 1), with S the weighted mean of the clients' tables:

        S_u ← ρ S_u + S;  S_e ← S_e + S_u;  Δ = the kept_share · P largest of unsketch(S_e);  S_e ← S_e − sketch(Δ);  the update
        is Δ

    Sketches are linear, so all of this is as if it were done on the vectors, and clients remember nothing: nothing goes stale
    however seldom they take part. The hash is the same for all clients and rounds, or tables could not be added. So collisions
    do not average out over clients, and `independent` is False. density: cells of the table for each parameter; kept_share:
    the share of coordinates that a round changes; masking: clear S_u in the cells of Δ, as DGC does with its momentum. The
    table has to be large enough for the coordinates that stand out to be read: below a few thousand columns small models drown
    in collisions. 32 · density bits a parameter.

    Deviations:

    * The paper multiplies S_u by the step size on its way into S_e. Here each table has its clients' step size in it, which is
      the same where that is constant.
    * The authors' code does not subtract sketch(Δ) from S_e, because that diverged for them. It clears the cells of Δ in S_e as
      in S_u. Here S_e is algorithm 1's.
    * The paper has clients in every round. A round without replies leaves the model, S_u and S_e as they are.
    """

    name: ClassVar[str] = "fetch-sgd"
    codec: ClassVar[int] = 25
    independent: ClassVar[bool] = False

    density: Share = 0.1
    rows: Rows = 5
    kept_share: Share = 0.001
    momentum: Coefficient = 0.9
    masking: bool = True
    values: FloatFormat = "float32"

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        table = sketch(x, self.rows, self._columns(len(x)), _key(ctx.seed)).astype(np.float32).reshape(-1)
        if not all_finite(table):
            raise NonFiniteError(ctx.round, ctx.client, "a sum in the sketch leaves float32's range")
        return Sent(encode_values(table, self.values)[0], {}, {})

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return None

    def decode(self, sections: Sections, ctx: Context) -> Update:
        """What one client's table says of its update: the median estimate of every coordinate."""
        return Dense(unsketch(self._table(sections, ctx.layout), ctx.layout.size, _key(ctx.seed)).astype(np.float32))

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        size, key = gathering.layout.size, _key(gathering.seed)
        mean = np.zeros((self.rows, self._columns(size)))
        for reply in replies:
            mean += self._table(reply.sections, gathering.layout) * reply.weight
        momentum: F64 = mean if "momentum" not in server else self.momentum * server["momentum"] + mean
        error: F64 = momentum if "error" not in server else server["error"] + momentum
        estimate = unsketch(error, size, key).astype(np.float32)
        chosen, values = top_k(estimate, kept_of(self.kept_share, size))
        update = np.zeros(size, dtype=np.float32)
        update[chosen] = values
        sent = sketch(update, self.rows, self._columns(size), key)
        if self.masking:
            momentum = np.where(sent != 0, 0.0, momentum)
        return update, {"momentum": momentum, "error": error - sent}

    def max_bytes(self, layout: Layout) -> int:
        return max_value_bytes(self.rows * self._columns(layout.size), self.values)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return ctx.layout.size

    def _columns(self, size: int) -> int:
        return n_columns(size, self.density, self.rows)

    def _table(self, sections: Sections, layout: Layout) -> F64:
        cells = decode_values(sections, self.rows * self._columns(layout.size), self.values)
        return cells.astype(np.float64).reshape(self.rows, -1)


def _key(seed: int) -> int:
    """Of the hash that all tables of a run have in common."""
    return shared_key(seed, "fetch-sgd")
