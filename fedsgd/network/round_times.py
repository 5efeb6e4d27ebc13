"""How long each round of a run takes on a network, whatever the speed of its links.

A round lasts until its slowest client is done:

    T = serving + max over clients c of
        M_c · latency + delay_c + max(D_c / down, SD) + compute_c + coding_c + max(U_c / up, SU)

D_c, U_c: bits that the client is sent and sends, by its link's factor; M_c: how many messages; delay_c: jitter, and what its
latency is beside the network's; SD, SU: the least that the server's own link takes for all of them; serving: the server's
encoding and decoding. As everything in it grows with each figure of a client, a client of whom another one has no less of
anything is never the last. Only the others, the round's candidates, are kept: a handful of a large cohort, so that a run can be
priced again in no time, also in a browser. `report/assets/pricing.js` does the same arithmetic in the same order.

R rounds, T trips, C candidates of all rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedsgd.config.component import NonNegativeFloat, PositiveFloat, ValidatedConfig
from fedsgd.config.quantities import format_seconds
from fedsgd.errors import ReportError
from fedsgd.network.heterogeneity import draw_log_normal_factors
from fedsgd.network.link import Device, Network
from fedsgd.numerics.arrays import F64, I64, BoolArray
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True, eq=False)
class ClientTraffic:
    """Arrays [T], ascending by round, then client. down_bytes, up_bytes: of all its frames in the round; down_messages,
    up_messages: how many messages these were (two each way where the client asked for another one); examples: that its steps
    took in, each counted as often as it was in a batch, 0 if nothing was heard of it; taken: whether its reply is in the
    model.

    For each of the rounds first, first + 1, ... [R] down_distinct_bytes: those of the downlink with each distinct frame counted
    once.
    """

    first_round: int
    round: I64
    client: I64
    down_bytes: I64
    up_bytes: I64
    down_messages: I64
    up_messages: I64
    examples: I64
    accepted: BoolArray
    down_distinct_bytes: F64


FLOAT_BYTES = 4
CANDIDATE_COLUMNS = ("messages", "delay", "down", "compute", "coding", "up")
"""Of each candidate."""
ROUND_TIME_COLUMNS = ("shared_down", "shared_up", "server_seconds", "lost_reply_wait", "deadline")
"""Of each round."""


@dataclass(frozen=True)
class ComputeProfile(ValidatedConfig):
    """Work of a run, in units of no machine; a copy is that of the P float32 numbers in memory.

    Attributes:
        parameters: P.
        flops_per_example: floating-point operations of training on one example, forward and backward.
        encode_copies: of encoding an update at the client.
        decode_copies: of decoding a message at the client.
        server_copies: of decoding and adding an update at the server.
        sending_copies: of encoding what goes down in a round.
    """

    parameters: int
    flops_per_example: PositiveFloat
    encode_copies: NonNegativeFloat
    decode_copies: NonNegativeFloat
    server_copies: NonNegativeFloat
    sending_copies: NonNegativeFloat = 0.0


class RoundTimeBreakdown(NamedTuple):
    """Where the time of each round goes, seconds [R]: of the client that is the last, and of the server (serving: its encoding
    and decoding; waiting: for replies that never come, up to the deadline)."""

    down: F64
    compute: F64
    coding: F64
    up: F64
    server_seconds: F64
    lost_reply_wait: F64


@dataclass(frozen=True, eq=False)
class RoundTimeModel:
    """offsets: where the candidates of each round begin [R + 1]; of each candidate [C] messages, delay (seconds), down and up
    (bits by the factor of the link), compute, coding (seconds); of each round [R] shared_down, shared_up, serving (seconds),
    waiting: the deadline where a reply never came and there is one, else 0; due: the deadline where a reply was taken and there
    is one, else 0. A round whose last reply comes after it is due would have been another one: it takes infinitely long."""

    offsets: I64
    messages: F64
    delay: F64
    down: F64
    compute: F64
    coding: F64
    up: F64
    shared_down: F64
    shared_up: F64
    server_seconds: F64
    lost_reply_wait: F64
    deadline: F64

    def _transfer_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> tuple[F64, F64, F64]:
        """(on the way in either direction beside the bytes, down, up) of each candidate, seconds [C]."""
        counts = np.diff(self.offsets)
        delay = np.maximum(0.0, self.messages * latency_seconds + self.delay)
        down = np.maximum(self.down / down_bps, np.repeat(self.shared_down, counts))
        up = np.maximum(self.up / up_bps, np.repeat(self.shared_up, counts))
        return delay, down, up

    def slowest_client_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """When the last client of each round is done [R]."""
        delay, down, up = self._transfer_seconds(up_bps, down_bps, latency_seconds)
        last: F64 = np.maximum.reduceat(delay + down + self.compute + self.coding + up, self.offsets[:-1])
        return last

    def round_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """The duration of each round [R]. up_bps, down_bps: bits per second of the link in the middle."""
        slowest = self.slowest_client_seconds(up_bps, down_bps, latency_seconds)
        late = (self.deadline > 0) & (slowest > self.deadline)
        return np.where(late, np.inf, np.maximum(slowest, self.lost_reply_wait) + self.server_seconds)

    def first_rounds(self, n_rounds: int) -> RoundTimeModel:
        """The first so many rounds."""
        end = self.offsets[n_rounds]
        columns = (getattr(self, name)[:end] for name in CANDIDATE_COLUMNS)
        shared = (getattr(self, name)[:n_rounds] for name in ROUND_TIME_COLUMNS)
        return RoundTimeModel(self.offsets[: n_rounds + 1], *columns, *shared)

    def cumulative_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """Seconds after each round, 0 before the first [R + 1]."""
        return np.concatenate([[0.0], np.cumsum(self.round_seconds(up_bps, down_bps, latency_seconds))])

    def breakdown(self, up_bps: float, down_bps: float, latency_seconds: float) -> RoundTimeBreakdown:
        """The same by what it goes into; latency and jitter in halves with the way down and the way up."""
        delay, down, up = self._transfer_seconds(up_bps, down_bps, latency_seconds)
        total = delay + down + self.compute + self.coding + up
        slowest = np.maximum.reduceat(total, self.offsets[:-1])
        counts = np.diff(self.offsets)
        is_last = np.flatnonzero(total == np.repeat(slowest, counts))
        rounds = np.repeat(np.arange(len(counts)), counts)[is_last]
        last = is_last[np.unique(rounds, return_index=True)[1]]
        halves = delay[last] / 2
        waiting = np.maximum(slowest, self.lost_reply_wait) - slowest
        return RoundTimeBreakdown(
            down[last] + halves, self.compute[last], self.coding[last], up[last] + halves, self.server_seconds, waiting
        )


@dataclass(frozen=True)
class PricingModel(ValidatedConfig):
    """What a run is priced on. device: what the clients compute on; server: what decodes and adds their updates.

    deadline_seconds: how long the server waits for a reply that never comes; None: such a round takes as long as if it had
    come, and a client of which nothing was heard counts with its download alone, since nobody knows what else it did.
    """

    network: Network
    device: Device
    server: Device
    deadline_seconds: PositiveFloat | None = None


def round_time_models(
    traffic: Iterable[ClientTraffic], compute_profile: ComputeProfile, seed: int, pricing_models: Sequence[PricingModel]
) -> list[RoundTimeModel]:
    """What the durations of a run's rounds depend on, for each of `terms`. trips: all of its rounds, stretch by stretch; seed:
    of the clients' links and speeds.

    ReportError if a reply that was taken would have come after the deadline on this network: who takes part would then have
    been others.
    """
    parts: list[list[RoundTimeModel]] = [[] for _ in pricing_models]
    for stretch in traffic:
        for made, each in zip(parts, pricing_models, strict=True):
            made.append(_build_part(stretch, compute_profile, seed, each))
    joined = [_concatenate(made) for made in parts]
    for whole, each in zip(joined, pricing_models, strict=True):
        _check_deadline(whole, each)
    return joined


def _concatenate(parts: Sequence[RoundTimeModel]) -> RoundTimeModel:
    if not parts:
        raise ReportError("the ledger has no rows")
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in (*CANDIDATE_COLUMNS, *ROUND_TIME_COLUMNS))
    return RoundTimeModel(np.concatenate([[0], np.cumsum(counts)]), *columns)


def _build_part(
    traffic: ClientTraffic, compute_profile: ComputeProfile, seed: int, pricing_model: PricingModel
) -> RoundTimeModel:
    network, deadline, server = pricing_model.network, pricing_model.deadline_seconds, pricing_model.server
    n_rounds = len(traffic.down_distinct_bytes)
    at = traffic.round - traffic.first_round
    columns, shared = (
        _candidate_columns(traffic, at, network, compute_profile, pricing_model.device, seed),
        _server_link_seconds(traffic, at, network),
    )
    kept = np.ones(len(at), dtype=bool) if deadline is None else traffic.accepted
    lost = np.bincount(at[~traffic.accepted], minlength=n_rounds) > 0
    taken = np.bincount(at[traffic.accepted], minlength=n_rounds)
    copies = (
        np.where(np.bincount(at, minlength=n_rounds) > 0, compute_profile.sending_copies, 0.0)
        + taken * compute_profile.server_copies
    )
    serving = copies * (FLOAT_BYTES * compute_profile.parameters / server.copy_bytes_per_second)
    # a round of nobody, or of nobody whose reply was taken, has one candidate that does nothing
    empty = np.flatnonzero(np.bincount(at[kept], minlength=n_rounds) == 0)
    at = np.concatenate([at[kept], empty])
    columns = np.concatenate([columns[:, kept], np.zeros((len(columns), len(empty)))], axis=1)
    order = np.argsort(at, kind="stable")
    at, columns = at[order], columns[:, order]
    which = _pareto_candidates(at, np.stack([*columns[:3], columns[3] + columns[4], columns[5]]), n_rounds)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(at[which], minlength=n_rounds))])
    limit = 0.0 if deadline is None else deadline
    waiting, due = np.where(lost, limit, 0.0), np.where(taken > 0, limit, 0.0)
    return RoundTimeModel(offsets, *(*columns[:, which], *shared, serving, waiting, due))


def _candidate_columns(
    traffic: ClientTraffic, round_positions: I64, network: Network, compute_profile: ComputeProfile, device: Device, seed: int
) -> F64:
    """COLUMNS of each trip [6, T]."""
    factors = network.draws.compute_factors(seed, traffic.client)
    speed = draw_log_normal_factors(seed, "device", traffic.client, device.spread)
    messages = (traffic.down_messages + traffic.up_messages).astype(np.float64)
    delay = messages * factors.latency_seconds
    if network.link.jitter_seconds:
        delay = delay + network.link.jitter_seconds * _draw_jitter(traffic, messages, seed)
    down_bytes: F64 = traffic.down_bytes + traffic.down_messages * network.down_overhead_bytes
    if network.downlink == "broadcast":
        down_bytes = _sum_broadcast_bytes(traffic, round_positions, network)[round_positions]
    up_bytes = traffic.up_bytes + traffic.up_messages * network.up_overhead_bytes
    copies = np.where(
        traffic.up_messages > 0, compute_profile.encode_copies + compute_profile.decode_copies, compute_profile.decode_copies
    )
    return np.stack(
        [
            messages,
            delay,
            8 * down_bytes / factors.down,
            traffic.examples * (compute_profile.flops_per_example / device.flops_per_second) / speed,
            copies * (FLOAT_BYTES * compute_profile.parameters / device.copy_bytes_per_second) / speed,
            8 * up_bytes / factors.up,
        ]
    )


def _sum_broadcast_bytes(traffic: ClientTraffic, round_positions: I64, network: Network) -> F64:
    """What goes over the one channel in each round [R]: each client has a message, with a frame of its own, in it."""
    messages = np.bincount(round_positions, traffic.down_messages, len(traffic.down_distinct_bytes))
    return traffic.down_distinct_bytes + messages * network.down_overhead_bytes


def _server_link_seconds(traffic: ClientTraffic, round_positions: I64, network: Network) -> tuple[F64, F64]:
    """The least that the server's own link takes in each round, down and up, seconds [R]."""
    n_rounds = len(traffic.down_distinct_bytes)
    up: F64 = np.zeros(n_rounds)
    down: F64 = np.zeros(n_rounds)
    if network.server_up_bits_per_second is not None:
        n_bytes = (traffic.up_bytes + traffic.up_messages * network.up_overhead_bytes) * traffic.accepted  # lost is before it
        up = 8 * np.bincount(round_positions, n_bytes, n_rounds) / network.server_up_bits_per_second
    if network.server_down_bits_per_second is not None:
        n_bytes = traffic.down_bytes + traffic.down_messages * network.down_overhead_bytes
        sent = (
            _sum_broadcast_bytes(traffic, round_positions, network)
            if network.downlink == "broadcast"
            else np.bincount(round_positions, n_bytes, n_rounds)
        )
        down = 8 * sent / network.server_down_bits_per_second
    return down, up


def _draw_jitter(traffic: ClientTraffic, messages: F64, seed: int) -> F64:
    """For each trip the sum of a unit exponential for each of its messages [T]; those of a round depend on that round alone."""
    sums = np.empty(len(traffic.round))
    starts = np.flatnonzero(np.diff(traffic.round, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(sums)], strict=True):
        sums[start:stop] = derive_generator(seed, "jitter", int(traffic.round[start])).standard_gamma(messages[start:stop])
    return sums


def _pareto_candidates(round_positions: I64, figures: F64, n_rounds: int) -> I64:
    """Which trips can be the last of their round: those of whom no other one of the round has at least as much of everything,
    and of equals the first. at: their round [T], ascending; figures [F, T]."""
    counts = np.bincount(round_positions, minlength=n_rounds)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.arange(len(round_positions)) - starts[round_positions]
    grid = np.full((len(figures), n_rounds, counts.max()), -np.inf)
    grid[:, round_positions, place] = figures
    most = np.repeat(np.maximum.reduceat(figures, starts, axis=1), counts, axis=1)
    score = np.full(grid.shape[1:], -np.inf)  # grows with each figure, so whoever has most of it is not outdone by anybody
    score[round_positions, place] = (figures / np.where(most > 0, most, 1)).sum(axis=0)
    alive, chosen = np.isfinite(score), np.zeros(score.shape, dtype=bool)
    rows = np.arange(n_rounds)
    while len(rows):
        best = np.where(alive[rows], score[rows], -np.inf).argmax(axis=1)
        chosen[rows, best] = True
        alive[rows] &= (grid[:, rows] > grid[:, rows, best][..., None]).any(axis=0)
        rows = rows[alive[rows].any(axis=1)]
    which: I64 = np.flatnonzero(chosen[round_positions, place])
    return which


def _check_deadline(round_times: RoundTimeModel, pricing_model: PricingModel) -> None:
    deadline, link = pricing_model.deadline_seconds, pricing_model.network.link
    if deadline is None:
        return
    slowest = round_times.slowest_client_seconds(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    late: BoolArray = (round_times.deadline > 0) & (slowest > round_times.deadline)
    if late.any():
        round = int(late.argmax())
        taken = f"a reply that was taken in round {round + 1} would come after {format_seconds(float(slowest[round]))}"
        then = "on this network others would have taken part, and the run another one"
        raise ReportError(f"{taken}, later than the deadline of {format_seconds(deadline)}: {then}")
