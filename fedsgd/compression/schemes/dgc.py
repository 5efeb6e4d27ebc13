"""Deep Gradient Compression: top-k of a momentum that is corrected for the coordinates that were not sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.kernels import tensor_forms
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
from fedsgd.numerics.vectors import is_tensor, to_host, zeros_like
from fedsgd.wire import Sections, ValueFormat

TINY = np.float32(2.0**-126)
"""Smallest normal float32."""


@dataclass(frozen=True)
class DGC(CompressionScheme):
    """Momentum correction, local gradient accumulation, momentum factor masking and local clipping, with top-k.

    Lin, Han, Mao, Wang and Dally, ICLR 2018 (arXiv 1712.01887), algorithms 3 and 4. With g the client's update, which includes
    the learning rate:

        u ← βu + g;  v ← v + u;  send the largest of v;  v ← v − sent and u ← 0 where v was sent

    Σ sent + v = Σ u always. If every coordinate is sent, DGC equals plain SGD (masking) or momentum SGD (no masking) bit for
    bit. With β = 0 and no clip it equals error feedback over top-k to the last bit. Values that are rounded for sending leave
    their rounding error in v. If a reply is lost, masked entries are restored.

    Traps: β > 0 suits one local step of every client in every round. Otherwise set β = 0, and use momentum at the server;
    fedsgd warns. In other settings the accuracy is below that of β = 0:

    * after several local steps, because g is no gradient;
    * with a part of the clients in a round, by a few points, because u is as old as the client's last round;
    * with a second momentum, of local training or of the server, because the step is multiplied once more: close to chance.

    Use: in the setting of the paper: one local step of every client in every round, momentum, and densities of 1 % and less.

    Avoid: momentum above 0 with several local steps, with a part of the clients in a round, or with a second momentum. Set
    momentum = 0 there.

    Attributes:
        density: share of the coordinates that is sent.
        momentum: β, decay of u.
        values: format of the values that are sent.
        nesterov: Nesterov momentum: u ← β(u + g), v ← v + u + g.
        masking: clear u where v was sent, so that old momentum does not move a delayed coordinate in a stale direction.
        clip: threshold for the norm of the mean update, learning rate included; 0 for none. Each of C clients clips its own
            update at clip · √C, as the paper clips g/N at clip/√N.
        warm_up: densities of the first rounds (the paper's: 25, 6.25, 1.5625, 0.4 %).
        warm_up_rounds: rounds that each density of `warm_up` lasts, 0 for no warm-up.
        per_layer: send the k largest of each tensor with more than one dimension and all coordinates of the other tensors,
            instead of the k largest of all. The paper's compression ratios follow from this rule.
    """

    name: ClassVar[str] = "dgc"
    codec: ClassVar[int] = 20
    accepts_tensors = True
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
        """Return the share of coordinates that is sent in a round.

        Args:
            round: number of the round, from 1.
        """
        return density_in_round(self.density, self.warm_up, self.warm_up_rounds, round)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        u, v = accumulate(x, *self._read_state(state, x), self.momentum, self._compute_clip_factor(x, ctx), self.nesterov)
        sections, update = encode_sparse(*self._select(v, ctx), self.values, ctx)
        positions = update.indices
        rollback = {"u": EntryPatch(positions, u[positions]), "v": EntryPatch(positions, v[positions])}
        update.add_to(v, -1.0)
        if self.masking:
            u[positions] = 0
        return EncodedUpdate(sections, {"u": u, "v": v}, rollback)

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
        """Warn of momentum outside the setting of the paper, which the class docstring describes."""
        yield from super().find_warnings(run)
        if self.momentum:
            rule = "DGC corrects the momentum of one local step of every client in every round (Lin et al. 2018)"
            yield from run.find_momentum_warnings(self.momentum, rule, _find_broken_assumptions(run))

    def _read_state(self, state: StateArrays, x: F32) -> tuple[F32, F32]:
        if state:
            return state["u"], state["v"]
        return zeros_like(x), zeros_like(x)

    def _compute_clip_factor(self, x: F32, ctx: CodecContext) -> np.float32:
        """Return the factor of clipping for an update."""
        if not self.clip:
            return np.float32(1)
        norm, limit = float(np.sqrt(squared_norm(to_host(x)))), self.clip * float(np.sqrt(ctx.cohort))
        return np.float32(limit / norm if norm > limit else 1.0)

    def _select(self, v: F32, ctx: CodecContext) -> tuple[I64, F32]:
        """Return the positions that are sent, ascending, and the values of v there."""
        density = self.density_in_round(ctx.round)
        if not self.per_layer:
            return top_k(v, top_k_size(density, len(v)))
        selections = [(part.start, *top_k(v[part], k)) for part, k in _allocate_coordinates(ctx.layout, density)]
        positions = np.concatenate([start + i for start, i, _ in selections])
        return positions, np.concatenate([values for _, _, values in selections])

    def _max_coordinates(self, layout: ParameterLayout, density: float) -> int:
        if not self.per_layer:
            return top_k_size(density, layout.size)
        return sum(k for _, k in _allocate_coordinates(layout, density))


def _find_broken_assumptions(run: RunConfig) -> Iterable[tuple[str, str]]:
    """Yield each assumption of momentum correction that a run breaks, and the setting that restores it."""
    if run.local_steps is not None and run.local_steps > 1:
        yield "clients make several local steps", "client.steps = 1"
    if run.cohort < run.clients:
        yield f"{run.cohort:,} of {run.clients:,} clients take part in a round", "all clients in a round"
    yield from run.find_second_momenta()


def _allocate_coordinates(layout: ParameterLayout, density: float) -> list[tuple[slice, int]]:
    """Return the slice and k of each tensor that is not empty."""
    sizes = [(part, part.stop - part.start, len(shape)) for _, part, shape in layout.list_slices()]
    return [(part, top_k_size(density, size) if dimensions > 1 else size) for part, size, dimensions in sizes if size]


def accumulate(x: F32, u: F32, v: F32, momentum: float, factor: np.float32, nesterov: bool) -> tuple[F32, F32]:
    """Return the next u and v, [P] each, of arrays or tensors: see `DGC`. The update is multiplied by `factor` first."""
    if is_tensor(x):
        x_tensor, u_tensor, v_tensor = (cast("Any", vector) for vector in (x, u, v))
        tensors = tensor_forms.accumulate(x_tensor, u_tensor, v_tensor, np.float32(momentum), factor, nesterov, TINY)
        return cast("tuple[F32, F32]", tensors)
    return _accumulate(x, u, v, np.float32(momentum), factor, nesterov)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _accumulate_reference(x: F32, u: F32, v: F32, momentum: np.float32, factor: np.float32, nesterov: bool) -> tuple[F32, F32]:
    g = x * factor
    next_u = momentum * (u + g) if nesterov else momentum * u + g
    next_u = np.where(np.abs(next_u) < TINY, np.float32(0), next_u)
    return next_u, v + next_u + g if nesterov else v + next_u


@kernel(_accumulate_reference)
def _accumulate(x: F32, u: F32, v: F32, momentum: np.float32, factor: np.float32, nesterov: bool) -> tuple[F32, F32]:
    """Return the next u and v [P]. A subnormal momentum becomes 0: arithmetic with subnormal numbers is many times slower."""
    next_u = np.empty(x.size, dtype=np.float32)
    next_v = np.empty(x.size, dtype=np.float32)
    for i in range(x.size):
        g = x[i] * factor
        u_i = momentum * (u[i] + g) if nesterov else momentum * u[i] + g
        u_i = np.float32(0) if abs(u_i) < TINY else u_i
        next_u[i] = u_i
        next_v[i] = v[i] + u_i + g if nesterov else v[i] + u_i
    return next_u, next_v
