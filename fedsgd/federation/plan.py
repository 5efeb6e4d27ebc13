"""Settings that server and clients share, and the messages that they exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.aggregation import Aggregator
from fedsgd.compression import ClientId, CodecContext, CompressionScheme, Weighting
from fedsgd.federation.buffers import BufferPlan, max_buffer_section_bytes
from fedsgd.federation.downlink import ModelBroadcast
from fedsgd.federation.faults import HostileClients
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import Optimizer
from fedsgd.sampling import StragglerModel
from fedsgd.training import LocalTraining
from fedsgd.wire import MAX_SECTIONS, frame_overhead

Message = tuple[bytes, ...]
"""Frames of one client in one direction. Downlink: TASK, one or more MODEL, at most one BUFFERS and at most one REFERENCE.
Uplink: UPDATE or RESYNC.
"""


@dataclass(frozen=True)
class FederationPlan:
    """Settings that server and clients share before the first round.

    Attributes:
        seed: seed of the scenario.
        layout: names and shapes of the P parameters that are sent.
        local_training: rule of local training.
        uplink: scheme that compresses the clients' updates.
        downlink: policy and operator that carry the model to the clients.
        server_optimizer: rule of the server's step.
        weighting: "examples" for aggregation weights in proportion to each client's examples, "uniform" for equal weights.
        n_clients: N, number of registered clients.
        cohort_size: maximum number of replies that a round aggregates.
        n_examples: training examples of all clients together; 0 if the sampler yields no inclusion probabilities.
        uses_fednova: True if updates are normalized by the progress of their local steps (FedNova, Wang et al. 2020).
        buffers: buffers that training changes; None if there are none.
        bfloat16_states: True if clients store their states in bfloat16.
        hostile: clients that replace their updates; None for none.
        stragglers: clients of a round that make fewer local steps; None for none.
        aggregator: rule that combines the updates, which `fedsgd.aggregation.select_aggregator` finds for the scheme.
    """

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
    hostile: HostileClients | None = None
    stragglers: StragglerModel | None = None
    aggregator: Aggregator = field(kw_only=True)

    def make_context(
        self, round: int, client: ClientId, reference: F32 | None = None, learning_rate_sum: float = 1.0
    ) -> CodecContext:
        """Return the codec context of a frame, which sender and receiver derive independently.

        Args:
            round: round of the frame, from 1.
            client: client of the frame; `ALL_CLIENTS` for a frame that clients share.
            reference: [P] float32, vector of the round's REFERENCE frame; None if there is none.
            learning_rate_sum: sum of the local steps' learning rates, for schemes that correct gradients; otherwise 1.
        """
        return CodecContext(self.seed, round, client, self.layout, reference, self.cohort_size, learning_rate_sum)

    def local_training_of(self, round: int, client: ClientId) -> LocalTraining:
        """Return the rule of a client's local training in a round, which has fewer steps for a straggler.

        Args:
            round: number of the round, from 1.
            client: number of the client, from 0.
        """
        work = None if self.stragglers is None else self.stragglers.work_of(round, client)
        return self.local_training.with_work(work)

    @cached_property
    def max_update_bytes(self) -> int:
        """Bytes of the longest valid UPDATE frame. Longer frames are rejected before they are decoded."""
        return frame_overhead(MAX_SECTIONS) + self.uplink.max_bytes(self.layout) + max_buffer_section_bytes(self.buffers)


@dataclass(frozen=True, eq=False)
class Reply:
    """Reply of a client to a message. Only `client` and `frames` are part of the protocol; the other fields are measurements.

    Attributes:
        client: client that replies.
        frames: one UPDATE frame or one RESYNC frame; no frame from a straggler that is dropped, which sends nothing.
        decode_seconds, encode_seconds: seconds that decoding the message and encoding the reply took.
        steps: local steps of the client in the round.
        residual_norm: Euclidean norm of the client's residual if the reply is accepted; NaN if the scheme has no residual.
        residual_norm_if_lost: Euclidean norm of the client's residual if the reply is not accepted; NaN likewise.
        rounds_missed: rounds between the client's last reply and this round; −1 if the client has not replied before.
        examples_processed: examples in all batches of the local steps, with repetitions.
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
    """Describe the first coordinate of a vector that is not finite, for an error message.

    Args:
        vector: array with at least one entry that is not finite.
        layout: names of the parameters, which locate the coordinate if the vector has P entries.
    """
    positions = np.flatnonzero(~np.isfinite(vector))
    position = layout.describe_position(int(positions[0])) if vector.shape == (layout.size,) else f"[{int(positions[0])}]"
    return f"is not finite in {len(positions)} of {vector.size} coordinates, first {vector.flat[positions[0]]} at {position}"
