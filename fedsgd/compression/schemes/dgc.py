"""Deep Gradient Compression: top-k of a momentum that is corrected for what was not sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.sparsifier import (
    decode_sparse,
    density_in_round,
    encode_sparse,
    max_sparse_bytes,
    n_sparse_coordinates,
    top_k_size,
)
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import EntryPatch, StateArrays, Update
from fedsgd.config.component import FractionAboveZero, FractionBelowOne, NonNegativeFloat, NonNegativeInt
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.kernels import kernel
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import squared_norm
from fedsgd.wire import Sections, ValueFormat

TINY = np.float32(2.0**-126)


@dataclass(frozen=True)
class DGC(CompressionScheme):
    """Momentum correction, local accumulation, momentum factor masking and local clipping, with top-k.

    Lin, Han, Mao, Wang and Dally, ICLR 2018 (arXiv 1712.01887), algorithms 2 and 3. With g the client's update, its step size
    in it:

        u ← βu + g;  v ← v + u;  send the largest of v;  v ← v − sent and u ← 0 where they were sent

    With every coordinate sent it is plain SGD (masking) or momentum SGD (no masking) bit for bit. With β = 0 and no clip it is
    error feedback over top-k: a run ends at the same parameters, to the last bit. Σ sent + v = Σ u always. Values that are
    rounded for sending leave their rounding error in v. If a reply is lost, what was masked comes back.

    Rule: β > 0 is for one local step of every client in every round. After several local steps g is no gradient; u is as old as
    the client's last round; a second momentum, of local training or of the server, multiplies the step once more. Elsewhere set
    β = 0, and let the server have the momentum; fedsgd warns. scenarios/dgc.toml, three seeds, accuracy with β = 0.9: 0.97 by
    the rule, 0.93 with 8 of 16 clients in a round (β = 0: 0.96), 0.86 with 2 (β = 0: 0.92), 0.12 with a momentum of the server
    in addition, 0.17 with one of local training that is carried over.

    Attributes:
        density: share of the coordinates that is sent.
        momentum: β.
        values: format of the values that are sent.
        nesterov: u ← β(u + g), v ← v + u + g.
        masking: u is cleared where v was sent, so that old momentum does not push a delayed coordinate on in a stale direction.
        clip: threshold for the norm of the summed update, step size included; 0 for none. Each of m clients clips its own
            update at clip · √m first, as the paper clips g/N at clip/√N.
        warm_up: densities of the first rounds (the paper's: 25, 6.25, 1.5625, 0.4 %).
        warm_up_rounds: rounds that each density of `warm_up` lasts, 0 for no warm-up.
        per_layer: send the k largest of each tensor with more than one dimension and all of the others, from which the paper's
            ratios follow, instead of the k largest of all.
    """

    name: ClassVar[str] = "dgc"
    codec: ClassVar[int] = 20
    residual_entries: ClassVar[tuple[str, ...]] = ("u", "v")

    density: FractionAboveZero = 0.001
    momentum: FractionBelowOne = 0.9
    values: ValueFormat = "float32"
    nesterov: bool = False
    masking: bool = True
    clip: NonNegativeFloat = 0.0
    warm_up: tuple[FractionAboveZero, ...] = (0.25, 0.0625, 0.015625, 0.004)
    warm_up_rounds: NonNegativeInt = 0
    per_layer: bool = False

    def density_in_round(self, round: int) -> float:
        """The share of coordinates that is sent in `round`."""
        return density_in_round(self.density, self.warm_up, self.warm_up_rounds, round)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        u, v = _accumulate(
            x, *self._read_state(state, len(x)), np.float32(self.momentum), self._compute_clip_factor(x, ctx), self.nesterov
        )
        sections, update = encode_sparse(*self._select(v, ctx), self.values, ctx)
        chosen = update.indices
        undo = {"u": EntryPatch(chosen, u[chosen]), "v": EntryPatch(chosen, v[chosen])}
        v[chosen] -= update.values
        if self.masking:
            u[chosen] = 0
        return EncodedUpdate(sections, {"u": u, "v": v}, undo)

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        if self.momentum or self.clip:
            return None
        return state["v"] if "v" in state else np.zeros(layout.size, dtype=np.float32)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return decode_sparse(sections, self.values, ctx, self._max_coordinates(ctx.layout, self.density_in_round(ctx.round)))

    def max_bytes(self, layout: ParameterLayout) -> int:
        densities = (self.density, *(self.warm_up if self.warm_up_rounds else ()))
        return max(max_sparse_bytes(self._max_coordinates(layout, density), self.values, layout.size) for density in densities)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return n_sparse_coordinates(sections, ctx)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of momentum outside the setting of the paper, which the class docstring names."""
        yield from super().find_warnings(run)
        if self.momentum:
            rule = "DGC corrects the momentum of one local step of every client in every round (Lin et al. 2018)"
            yield from run.find_momentum_warnings(self.momentum, rule, _find_broken_assumptions(run))

    def _read_state(self, state: StateArrays, size: int) -> tuple[F32, F32]:
        if state:
            return state["u"], state["v"]
        return np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32)

    def _compute_clip_factor(self, x: F32, ctx: CodecContext) -> np.float32:
        """What clipping multiplies the update by."""
        norm, limit = float(np.sqrt(squared_norm(x))), self.clip * float(np.sqrt(ctx.cohort))
        return np.float32(limit / norm if self.clip and norm > limit else 1.0)

    def _select(self, v: F32, ctx: CodecContext) -> tuple[I64, F32]:
        """The positions that are sent, ascending, and v there."""
        density = self.density_in_round(ctx.round)
        if not self.per_layer:
            return top_k(v, top_k_size(density, len(v)))
        chosen = [(part.start, *top_k(v[part], k)) for part, k in _allocate_coordinates(ctx.layout, density)]
        return np.concatenate([start + i for start, i, _ in chosen]), np.concatenate([values for _, _, values in chosen])

    def _max_coordinates(self, layout: ParameterLayout, density: float) -> int:
        if not self.per_layer:
            return top_k_size(density, layout.size)
        return sum(k for _, k in _allocate_coordinates(layout, density))


def _find_broken_assumptions(run: RunConfig) -> Iterable[tuple[str, str]]:
    """Yield (the assumption of momentum correction that a run breaks, how to keep it)."""
    if run.local_steps is not None and run.local_steps > 1:
        yield "clients make several local steps", "client.steps = 1"
    if run.cohort < run.clients:
        yield f"{run.cohort:,} of {run.clients:,} clients take part in a round", "all clients in a round"
    yield from run.find_second_momenta()


def _allocate_coordinates(layout: ParameterLayout, density: float) -> list[tuple[slice, int]]:
    """(stretch, k) of each tensor that has any coordinates."""
    sizes = [(part, part.stop - part.start, len(shape)) for _, part, shape in layout.list_slices()]
    return [(part, top_k_size(density, size) if dimensions > 1 else size) for part, size, dimensions in sizes if size]


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _accumulate_reference(x: F32, u: F32, v: F32, momentum: np.float32, factor: np.float32, nesterov: bool) -> tuple[F32, F32]:
    g = x * factor
    after = momentum * (u + g) if nesterov else momentum * u + g
    after = np.where(np.abs(after) < TINY, np.float32(0), after)
    return after, v + after + g if nesterov else v + after


@kernel(_accumulate_reference)
def _accumulate(x: F32, u: F32, v: F32, momentum: np.float32, factor: np.float32, nesterov: bool) -> tuple[F32, F32]:
    """The next u and v [P]. A momentum that has decayed below the normal numbers is zero: 0.9^t would never get there by
    itself, and arithmetic with subnormal numbers is many times slower."""
    next_u = np.empty(x.size, dtype=np.float32)
    next_v = np.empty(x.size, dtype=np.float32)
    for i in range(x.size):
        g = x[i] * factor
        after = momentum * (u[i] + g) if nesterov else momentum * u[i] + g
        after = np.float32(0) if abs(after) < TINY else after
        next_u[i] = after
        next_v[i] = v[i] + after + g if nesterov else v[i] + after
    return next_u, next_v
