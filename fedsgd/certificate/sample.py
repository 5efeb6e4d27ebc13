"""The vectors that a compressor is measured on: client updates that were really trained, or independent draws.

R rounds, m clients, P parameters.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

from fedsgd.arrays import F32
from fedsgd.certificate.base import Vectors
from fedsgd.errors import ScenarioError, did_you_mean
from fedsgd.layout import Layout
from fedsgd.rng import stream

Kind = Literal["real", "gaussian", "laplace"]
SIZE = 200_000
ROUNDS, CLIENTS = 8, 4
MOST_BYTES = 2**28
"""Of long vectors there are fewer rounds, so that all of them stay below this."""
HIDDEN = (512, 320)
LR, BATCH_SIZE = 0.1, 10
"""The network that is trained for real updates, and how."""


@dataclass(frozen=True, eq=False)
class Sample:
    """updates: [R, m, P], never written to; layout: which tensor each stretch of P is."""

    kind: Kind
    description: str
    layout: Layout
    updates: F32

    @property
    def vectors(self) -> Vectors:
        """What a certificate says of them."""
        rounds, clients, size = self.updates.shape
        digest = hashlib.sha256(self.updates.astype("<f4", copy=False).tobytes()).hexdigest()
        return Vectors(self.kind, self.description, size, rounds, clients, digest)


def draw(kind: str, size: int | None) -> Sample:
    """The sample of a kind. size: P, of draws only; the network that real updates come from has a size of its own."""
    if kind not in get_args(Kind):
        raise ScenarioError(f'data: got "{kind}"{did_you_mean(kind, get_args(Kind))}')
    if kind == "real":
        if size is not None:
            raise ScenarioError(f'size: got {size}, expected none with data = "real": the network has a size of its own')
        return _trained()
    size = SIZE if size is None else size
    if not 1 <= size < 2**31:
        raise ScenarioError(f"size: got {size}, expected at least 1, at most {2**31 - 1}")
    return _drawn("laplace" if kind == "laplace" else "gaussian", size)


def _drawn(kind: Literal["gaussian", "laplace"], size: int) -> Sample:
    rounds = min(ROUNDS, max(1, MOST_BYTES // (4 * CLIENTS * size)))
    updates = np.empty((rounds, CLIENTS, size), dtype=np.float32)
    for r, of_round in enumerate(updates):
        for client, row in enumerate(of_round):
            rng = stream(0, f"certificate/{kind}", r + 1, client)
            row[:] = rng.standard_normal(size, dtype=np.float32) if kind == "gaussian" else rng.laplace(size=size)
    updates.flags.writeable = False
    return Sample(kind, f"independent {kind.capitalize()} coordinates", _square(size), updates)


def _square(size: int) -> Layout:
    """A square matrix, as large as fits, and a vector of the rest: some compressors work by matrix."""
    side = math.isqrt(size)
    rest = size - side * side
    return Layout(("matrix", "vector"), ((side, side), (rest,))) if rest else Layout(("matrix",), ((side, side),))


@cache
def _trained() -> Sample:
    """FedAvg on the digits that scikit-learn carries: one epoch of each client in each round, sent as float32 without loss."""
    from fedsgd.build import build
    from fedsgd.loop import Crossing, run
    from fedsgd.scenario import from_dict
    from fedsgd.wire import Kind as Frames
    from fedsgd.wire import decode_frame

    scenario = from_dict(
        {
            "name": "certificate",
            "rounds": ROUNDS,
            "data": {"name": "digits", "partition": {"name": "iid", "clients": CLIENTS}},
            "model": {"name": "mlp", "hidden": list(HIDDEN)},
            "client": {"batch_size": BATCH_SIZE, "optimizer": {"name": "sgd", "lr": LR}},
        }
    )
    experiment = build(scenario)
    plan = experiment.plan
    updates = np.empty((ROUNDS, CLIENTS, plan.layout.size), dtype=np.float32)

    def keep(crossing: Crossing) -> None:
        if crossing.kind == Frames.UPDATE:
            ctx = plan.context(crossing.round, crossing.client)
            decoded = plan.uplink.decode(decode_frame(crossing.frame).sections, ctx)
            updates[crossing.round - 1, crossing.client] = decoded.to_dense()

    for server, _ in run(plan, experiment.server, experiment.runtime, experiment.attendance, keep):
        if server.round > ROUNDS:
            break
    updates.flags.writeable = False
    network = f"digits, MLP {'-'.join(map(str, HIDDEN))}, 1 epoch, batches of {BATCH_SIZE}, learning rate {LR:g}"
    return Sample("real", f"FedAvg client updates ({network})", plan.layout, updates)
