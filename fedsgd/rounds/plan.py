"""What server and clients agree on, and what they say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.compress import ClientId, Context, Scheme, Weighting
from fedsgd.downlink import Downlink
from fedsgd.engine import Recipe
from fedsgd.layout import Layout
from fedsgd.optim import Optimizer
from fedsgd.rounds.statistics import CarriedBuffers, max_section_bytes
from fedsgd.wire import MAX_SECTIONS, overhead

Message = tuple[bytes, ...]
"""The frames of one client in one direction: TASK, one or more MODEL and perhaps REFERENCE down; UPDATE or RESYNC up."""


@dataclass(frozen=True)
class Plan:
    """What server and clients agree on before the first round. clients: N; cohort: m; examples: of all clients together, 0
    where nobody has to know; normalised: whether updates are weighed by how far their steps go (FedNova); buffers: those
    that training changes, None if there are none; bfloat16_states: whether clients remember in half the precision."""

    seed: int
    layout: Layout
    recipe: Recipe
    uplink: Scheme
    downlink: Downlink
    optimizer: Optimizer
    weighting: Weighting
    clients: int
    cohort: int
    examples: int = 0
    normalised: bool = False
    buffers: CarriedBuffers | None = None
    bfloat16_states: bool = False

    def context(self, round: int, client: ClientId, reference: F32 | None = None, travelled: float = 1.0) -> Context:
        """What both ends of a frame know without being told."""
        return Context(self.seed, round, client, self.layout, reference, self.cohort, travelled)

    @property
    def max_update(self) -> int:
        """The longest valid UPDATE: nothing longer is looked at."""
        return overhead(MAX_SECTIONS) + self.uplink.max_bytes(self.layout) + max_section_bytes(self.buffers)


@dataclass(frozen=True, eq=False)
class Reply:
    """A client's answer: its frames, and what decoding the message and encoding the answer took.

    What an observer in the same process may know beside: steps: local steps that were made; withheld, withheld_if_lost: the
    norm of what the client holds back if this reply is accepted, and if it is not, NaN where its scheme holds nothing back;
    missed: the rounds that it missed since it last took part, −1 for the first time; seen: the examples that its steps took in,
    each counted as often as it was in a batch.
    """

    client: ClientId
    frames: Message
    decode_seconds: float
    encode_seconds: float
    steps: int = 0
    withheld: float = float("nan")
    withheld_if_lost: float = float("nan")
    missed: int = -1
    seen: int = 0


def first_bad(vector: NDArray[Any], layout: Layout) -> str:
    """Where it first is not finite; named by the tensor if it is a vector over the parameters."""
    bad = np.flatnonzero(~np.isfinite(vector))
    where = layout.locate(int(bad[0])) if vector.shape == (layout.size,) else f"[{int(bad[0])}]"
    return f"is not finite in {len(bad)} of {vector.size} coordinates, first {vector.flat[bad[0]]} at {where}"
