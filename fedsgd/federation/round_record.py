"""Records of rounds: participants, bytes, metrics, and statistics of the clients' residuals."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsgd.config.quantities import compression_ratios, format_bytes, format_ratio
from fedsgd.federation.plan import Reply


@dataclass(frozen=True)
class RoundRecord:
    """Record of a finished round. Byte counts are sums over all rounds so far.

    Attributes:
        round: number of the round, from 1.
        lr: learning rate of the clients; None if the schedule changes the learning rate from step to step.
        cohort: clients that were sent a message, ascending.
        accepted: clients whose update was aggregated, ascending.
        uplink_bytes: bytes of all frames that clients sent.
        uplink_received_bytes: bytes of the UPDATE frames that were aggregated.
        downlink_bytes: bytes of all frames that the server sent. A frame that clients share counts once for each client.
        downlink_broadcast_bytes: bytes of the downlink over a broadcast channel, where frames that clients share count once.
        dense_uplink_bytes: bytes of one dense float32 frame for each reply.
        dense_downlink_bytes: bytes of one dense float32 frame for each message.
        residual_norm: mean Euclidean norm of residuals, over the clients that replied; None if there are no residuals.
        rounds_missed: mean number of rounds between a reply and the client's previous reply; None without a previous reply.
        metrics: "loss", the metrics of the task, and metrics that `[evaluation]` adds; None if the model was not evaluated.
        seconds: seconds of wall-clock time that the round took.
        failures: one line for each client that failed.
        diverged: clients that were skipped because their update was not finite, ascending.
        dropped: stragglers that sent no update, ascending.
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
    diverged: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Test accuracy after this round; None if accuracy was not measured."""
        return None if self.metrics is None else self.metrics.get("accuracy")

    @property
    def compression_ratios(self) -> dict[str, float | None]:
        """Compression ratios of the bytes so far, for the uplink, the downlink and both directions together."""
        return compression_ratios(self.uplink_bytes, self.downlink_bytes, self.dense_uplink_bytes, self.dense_downlink_bytes)

    def describe(self) -> str:
        """Return "acc 0.967 · up 101 kB, 76× · both ways 1.27 MB, 12.1×": bytes so far, and their compression ratio."""
        accuracy = "" if self.accuracy is None else f"acc {self.accuracy:.3f} · "
        ratios = self.compression_ratios
        uplink = _format_bytes_and_ratio(self.uplink_bytes, ratios["uplink_ratio"])
        total = _format_bytes_and_ratio(self.uplink_bytes + self.downlink_bytes, ratios["bidirectional_ratio"])
        return f"{accuracy}up {uplink} · both ways {total}"

    def __repr__(self) -> str:
        return f"RoundRecord(round {self.round}: {len(self.accepted)} of {len(self.cohort)} accepted · {self.describe()})"


def _format_bytes_and_ratio(n_bytes: int, ratio: float | None) -> str:
    return ", ".join(filter(None, (format_bytes(n_bytes), format_ratio(ratio))))


@dataclass
class ResidualStatistics:
    """Norms of the clients' residuals, and rounds between the clients' replies.

    Attributes:
        norms: client → Euclidean norm of the client's residual after the client's last reply.
        rounds_missed: rounds between a reply and the same client's previous reply → number of such pairs of replies.
    """

    norms: dict[int, float] = field(default_factory=dict)
    rounds_missed: Counter[int] = field(default_factory=Counter)

    def add(self, replies: Sequence[Reply], accepted_clients: Collection[int]) -> tuple[float | None, float | None]:
        """Add a round's replies, and return (mean norm, mean rounds missed), each None if there is no value.

        Args:
            replies: all replies of the round.
            accepted_clients: clients whose update was aggregated.
        """
        clients = set(accepted_clients)
        norms_by_client = {
            reply.client: reply.residual_norm if reply.client in clients else reply.residual_norm_if_lost for reply in replies
        }
        norms = {client: norm for client, norm in norms_by_client.items() if not math.isnan(norm)}
        rounds_missed = [reply.rounds_missed for reply in replies if reply.rounds_missed >= 0]
        self.norms.update(norms)
        self.rounds_missed.update(rounds_missed)
        return _mean(list(norms.values())), _mean(rounds_missed)

    def summarize(self) -> dict[str, float | int | None] | None:
        """Return medians and maxima: of norms over clients, of missed rounds over replies; None if no client has a residual."""
        if not self.norms:
            return None
        norms = list(self.norms.values())
        return {
            "clients": len(norms),
            "norm_median": statistics.median(norms),
            "norm_max": max(norms),
            "rounds_missed_median": _median_of_counts(self.rounds_missed) if self.rounds_missed else None,
            "rounds_missed_max": max(self.rounds_missed, default=None),
        }


def _median_of_counts(counts: Mapping[int, int]) -> float | int:
    """Return the median of values that occur as often as their counts say."""
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values])
    total = int(ends[-1])
    lower, upper = (values[int(np.searchsorted(ends, rank, side="right"))] for rank in ((total - 1) // 2, total // 2))
    return lower if total % 2 else (lower + upper) / 2


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
