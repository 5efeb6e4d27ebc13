"""Record of a round: participants, bytes, metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsgd.config.quantities import compression_ratios
from fedsgd.federation.plan import Reply


@dataclass(frozen=True)
class RoundRecord:
    """One round, finished. lr: the clients' step size, None with a schedule over steps. cohort: who was sent a message;
    accepted: whose reply is in the model; failures: what went wrong at those that broke down. metrics: "loss", the task's own,
    and what `[evaluation]` adds; None where it was not evaluated.

    Bytes are cumulative: of frames that were sent, up and down, to each client by itself; received: of updates that arrived and
    were taken; broadcast: of the downlink, if all who are sent the same frame heard it at once; dense: what as many dense
    float32 frames would weigh. residual_norm: of what a client of the cohort holds back after the round, in the mean;
    rounds_missed: since it last took part, in the mean over those that had before; None where there is nothing of the kind.
    """

    round: int
    lr: float | None
    cohort: tuple[int, ...]
    accepted: tuple[int, ...]
    uplink_bytes: int
    uplink_received_bytes: int
    downlink_bytes: int
    downlink_broadcast_bytes: int
    dense_uplink_bytes: int
    dense_downlink_bytes: int
    residual_norm: float | None
    rounds_missed: float | None
    metrics: Mapping[str, float] | None
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test examples after this round, if it was measured."""
        return None if self.metrics is None else self.metrics.get("accuracy")

    @property
    def compression_ratios(self) -> dict[str, float | None]:
        """Compression ratios of the bytes so far: of the uplink, of the downlink, and of both directions together."""
        return compression_ratios(self.uplink_bytes, self.downlink_bytes, self.dense_uplink_bytes, self.dense_downlink_bytes)


@dataclass
class ResidualStatistics:
    """What clients hold back, and how stale it gets. norms: of each client's, after its last reply; missed: the rounds that
    clients missed between two in which they took part, all of them."""

    norms: dict[int, float] = field(default_factory=dict)
    rounds_missed: list[int] = field(default_factory=list)

    def add(self, replies: Sequence[Reply], accepted_clients: Collection[int]) -> tuple[float | None, float | None]:
        """(mean norm, mean rounds missed) of a round's replies; None where there is none. accepted: whose were."""
        taken = set(accepted_clients)
        held = {
            reply.client: reply.residual_norm if reply.client in taken else reply.residual_norm_if_lost for reply in replies
        }
        norms = {client: norm for client, norm in held.items() if not math.isnan(norm)}
        missed = [reply.rounds_missed for reply in replies if reply.rounds_missed >= 0]
        self.norms.update(norms)
        self.rounds_missed += missed
        return _mean(list(norms.values())), _mean(missed)

    def summarize(self) -> dict[str, float | int | None] | None:
        """Figures over all clients that hold anything back; None if there are none."""
        if not self.norms:
            return None
        norms = list(self.norms.values())
        return {
            "clients": len(norms),
            "norm_median": statistics.median(norms),
            "norm_max": max(norms),
            "rounds_missed_median": statistics.median(self.rounds_missed) if self.rounds_missed else None,
            "rounds_missed_max": max(self.rounds_missed, default=None),
        }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
