"""What server and clients agree on, and what they say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId, CodecContext, CompressionScheme, Weighting
from fedsgd.federation.buffers import BufferPlan, max_buffer_section_bytes
from fedsgd.federation.downlink import ModelBroadcast
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import Optimizer
from fedsgd.training import LocalTraining
from fedsgd.wire import MAX_SECTIONS, frame_overhead

Message = tuple[bytes, ...]
"""The frames of one client in one direction: TASK, one or more MODEL and perhaps REFERENCE down; UPDATE or RESYNC up."""


@dataclass(frozen=True)
class FederationPlan:
    """What server and clients agree on before the first round. clients: N; cohort: m; examples: of all clients together, 0
    where nobody has to know; normalised: whether updates are weighed by how far their steps go (FedNova); buffers: those
    that training changes, None if there are none; bfloat16_states: whether clients remember in half the precision."""

    seed: int
    layout: ParameterLayout
    local_training: LocalTraining
    uplink: CompressionScheme
    downlink: ModelBroadcast
    server_optimizer: Optimizer
    weighting: Weighting
    n_clients: int
    cohort_size: int
    n_examples: int = 0
    uses_fednova: bool = False
    buffers: BufferPlan | None = None
    bfloat16_states: bool = False

    def make_context(
        self, round: int, client: ClientId, reference: F32 | None = None, learning_rate_sum: float = 1.0
    ) -> CodecContext:
        """What both ends of a frame know without being told."""
        return CodecContext(self.seed, round, client, self.layout, reference, self.cohort_size, learning_rate_sum)

    @property
    def max_update_bytes(self) -> int:
        """The longest valid UPDATE: nothing longer is looked at."""
        return frame_overhead(MAX_SECTIONS) + self.uplink.max_bytes(self.layout) + max_buffer_section_bytes(self.buffers)


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
    residual_norm: float = float("nan")
    residual_norm_if_lost: float = float("nan")
    rounds_missed: int = -1
    examples_processed: int = 0


def describe_non_finite(vector: NDArray[Any], layout: ParameterLayout) -> str:
    """Where it first is not finite; named by the tensor if it is a vector over the parameters."""
    bad = np.flatnonzero(~np.isfinite(vector))
    where = layout.describe_position(int(bad[0])) if vector.shape == (layout.size,) else f"[{int(bad[0])}]"
    return f"is not finite in {len(bad)} of {vector.size} coordinates, first {vector.flat[bad[0]]} at {where}"
