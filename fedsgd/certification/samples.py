"""Updates on which a compressor is measured: updates of clients that are trained here, or random vectors.

R: rounds; m: clients; P: parameters.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

from fedsgd.certification.certificate import SampleSummary
from fedsgd.config.argument_checks import resolve_whole_number
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.execution import InProcessExecution
from fedsgd.federation.round_loop import FrameEvent, run_round
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.scenario.scenario import parse_scenario
from fedsgd.wire import FrameKind, decode_frame

SampleKind = Literal["real", "gaussian", "laplace"]
DEFAULT_SIZE = 200_000
ROUNDS, CLIENTS = 8, 4
MAX_SAMPLE_BYTES = 2**28
"""Maximum bytes of a random sample of several rounds. A sample of long vectors has fewer rounds, and at least one."""
HIDDEN_SIZES = (512, 320)
LR, BATCH_SIZE = 0.1, 10
"""Network and settings of the training for real updates."""


@dataclass(frozen=True, eq=False)
class UpdateSample:
    """Updates [R, m, P] of several rounds and clients, read-only."""

    kind: SampleKind
    description: str
    layout: ParameterLayout
    updates: F32

    @property
    def summary(self) -> SampleSummary:
        """Summary for a certificate."""
        rounds, clients, size = self.updates.shape
        digest = hashlib.sha256(self.updates.astype("<f4", copy=False).tobytes()).hexdigest()
        return SampleSummary(self.kind, self.description, size, rounds, clients, digest)


def sample_updates(kind: str, size: int | None) -> UpdateSample:
    """Return a sample. `size` is P of random vectors, by default 200,000; for real updates, it must be None.

    >>> sample_updates("gaussian", 1000).updates.shape
    (8, 4, 1000)
    """
    if kind not in get_args(SampleKind):
        raise ScenarioError(f'data: got "{kind}"{suggest_name(kind, get_args(SampleKind))}')
    if kind == "real":
        if size is not None:
            raise ScenarioError(f'size: got {size}, expected none with data = "real", whose network determines the size')
        return _train_updates()
    size = DEFAULT_SIZE if size is None else resolve_whole_number("size", size, 1, 2**31 - 1)
    return _sample_independent("laplace" if kind == "laplace" else "gaussian", size)


def _sample_independent(kind: Literal["gaussian", "laplace"], size: int) -> UpdateSample:
    rounds = min(ROUNDS, max(1, MAX_SAMPLE_BYTES // (4 * CLIENTS * size)))
    updates = np.empty((rounds, CLIENTS, size), dtype=np.float32)
    for r, round_updates in enumerate(updates):
        for client, row in enumerate(round_updates):
            rng = derive_generator(0, f"certificate/{kind}", r + 1, client)
            row[:] = rng.standard_normal(size, dtype=np.float32) if kind == "gaussian" else rng.laplace(size=size)
    updates.flags.writeable = False
    return UpdateSample(kind, f"independent {kind.capitalize()} coordinates", _build_layout(size), updates)


def _build_layout(size: int) -> ParameterLayout:
    """Return a layout of the largest square matrix and a vector with the rest. Some compressors need matrices."""
    side = math.isqrt(size)
    remainder = size - side * side
    return (
        ParameterLayout(("matrix", "vector"), ((side, side), (remainder,)))
        if remainder
        else ParameterLayout(("matrix",), ((side, side),))
    )


@cache
def _train_updates() -> UpdateSample:
    """Train FedAvg on scikit-learn's digits, with one local epoch a round, and collect the uncompressed updates."""
    scenario = parse_scenario(
        {
            "name": "certificate",
            "rounds": ROUNDS,
            "data": {"name": "digits", "partition": {"name": "iid", "clients": CLIENTS}},
            "model": {"name": "mlp", "hidden": list(HIDDEN_SIZES)},
            "client": {"batch_size": BATCH_SIZE, "optimizer": {"name": "sgd", "lr": LR}},
        }
    )
    experiment = build_experiment(scenario)
    plan = experiment.plan
    updates = np.empty((ROUNDS, CLIENTS, plan.layout.size), dtype=np.float32)

    def store_update(event: FrameEvent) -> None:
        if event.kind == FrameKind.UPDATE:
            ctx = plan.make_context(event.round, event.client)
            decoded = plan.uplink.decode(decode_frame(event.frame).sections, ctx)
            updates[event.round - 1, event.client] = decoded.to_dense()

    server = experiment.initial_server_state
    with InProcessExecution(experiment) as execution:
        while server.round <= ROUNDS:
            server, _ = run_round(plan, server, execution.runtime, experiment.participation, store_update)
    updates.flags.writeable = False
    network = f"digits, MLP {'-'.join(map(str, HIDDEN_SIZES))}, 1 epoch, batches of {BATCH_SIZE}, learning rate {LR:g}"
    return UpdateSample("real", f"FedAvg client updates ({network})", plan.layout, updates)
