"""Duration of each round on a network, as a function of the rates and the latency of the median client's link.

A round ends when the slowest client and then the server are done:

    seconds = server + max over clients c of
        M_c · latency + delay_c + max(D_c / down, SD) + compute_c + coding_c + max(U_c / up, SU)

D_c, U_c: bits to and from the client, divided by the factors of the client's link. M_c: number of the client's messages.
delay_c: jitter, and the difference between the client's and the network's latency. SD, SU: minimum seconds that the server's
own link needs for all clients. server: encoding and decoding at the server. With a deadline, only clients with an accepted
reply count, and a round with a lost reply lasts until the deadline at least.

Each term grows with each figure of a client. So a client never determines the maximum if another client has at least equal
figures throughout. All other clients, the Q candidates of all rounds, are stored. Candidates are few even in a large cohort,
so a run can be priced again quickly, also in a browser. `analysis/page/assets/pricing.js` repeats the arithmetic in the same
order.
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
    """Traffic and work of the clients in consecutive rounds, ascending by round, then client.

    Attributes:
        first_round: number of the first round.
        round, client: [T] int64, round and client of each row.
        down_bytes, up_bytes: [T] int64, bytes of all frames to and from the client.
        down_messages, up_messages: [T] int64, messages to and from the client; 2 if the client requested a second message.
        examples: [T] int64, examples of the client's steps, counted once for each batch; 0 for a client without a reply,
            unless it is a dropped straggler.
        accepted: [T] bool, True if the reply was aggregated.
        down_distinct_bytes: [R] float64, downlink bytes in each round, with each distinct frame counted once.
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
"""Columns of `RoundTimeModel` with one entry for each candidate."""
ROUND_TIME_COLUMNS = ("shared_down", "shared_up", "server_seconds", "lost_reply_wait", "deadline")
"""Columns of `RoundTimeModel` with one entry for each round."""


@dataclass(frozen=True)
class ComputeProfile(ValidatedConfig):
    """Work of a run, independent of a machine; the unit "copy" is a copy of the P float32 parameters in memory.

    Attributes:
        parameters: P.
        flops_per_example: floating-point operations of training on one example, forward and backward.
        encode_copies, decode_copies: work of a client to encode an update; to decode a message.
        server_copies, sending_copies: work of the server to decode and add an update; to encode the frames of a round.
    """

    parameters: int
    flops_per_example: PositiveFloat
    encode_copies: NonNegativeFloat
    decode_copies: NonNegativeFloat
    server_copies: NonNegativeFloat
    sending_copies: NonNegativeFloat = 0.0


class RoundTimeBreakdown(NamedTuple):
    """Seconds of each round by phase, [R] float64 each, of the slowest client and of the server.

    `down` and `up` each have half of latency and jitter; `coding` and `server_seconds` are encoding and decoding at the client
    and at the server; `lost_reply_wait` is the server's wait for lost replies, up to the deadline.
    """

    down: F64
    compute: F64
    coding: F64
    up: F64
    server_seconds: F64
    lost_reply_wait: F64


@dataclass(frozen=True, eq=False)
class RoundTimeModel:
    """Durations of a run's rounds as a function of the rates and the latency of the median client's link.

    A round with an accepted reply after the deadline would have had other participants: its duration is infinite.

    Attributes:
        offsets: [R + 1] int64, position of each round's first candidate.
        messages: [Q] float64, number of each candidate's messages.
        delay, compute, coding: [Q] seconds of jitter and latency difference; of training; of encoding and decoding.
        down, up: [Q] bits to and from the candidate, divided by the factor of the candidate's link.
        shared_down, shared_up: [R] seconds, minimum time that the server's own link needs.
        server_seconds: [R] seconds of encoding and decoding at the server.
        lost_reply_wait: [R] seconds, the deadline of a round with a lost reply; 0: there is no lost reply or no deadline.
        deadline: [R] seconds, the deadline of a round with an accepted reply; 0: there is no accepted reply or no deadline.
    """

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
        """Return (latency and jitter of all messages, downlink, uplink) of each candidate, seconds [Q]."""
        counts = np.diff(self.offsets)
        delay = np.maximum(0.0, self.messages * latency_seconds + self.delay)
        down = np.maximum(self.down / down_bps, np.repeat(self.shared_down, counts))
        up = np.maximum(self.up / up_bps, np.repeat(self.shared_up, counts))
        return delay, down, up

    def slowest_client_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """Return the seconds until each round's slowest client is done, [R]."""
        delay, down, up = self._transfer_seconds(up_bps, down_bps, latency_seconds)
        slowest: F64 = np.maximum.reduceat(delay + down + self.compute + self.coding + up, self.offsets[:-1])
        return slowest

    def round_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """Return each round's seconds [R], from the rates (bits per second) and the one-way latency of the median client."""
        slowest = self.slowest_client_seconds(up_bps, down_bps, latency_seconds)
        is_late = (self.deadline > 0) & (slowest > self.deadline)
        return np.where(is_late, np.inf, np.maximum(slowest, self.lost_reply_wait) + self.server_seconds)

    def first_rounds(self, n_rounds: int) -> RoundTimeModel:
        """Return the model of the first `n_rounds` rounds."""
        end = self.offsets[n_rounds]
        candidate_columns = (getattr(self, name)[:end] for name in CANDIDATE_COLUMNS)
        round_columns = (getattr(self, name)[:n_rounds] for name in ROUND_TIME_COLUMNS)
        return RoundTimeModel(self.offsets[: n_rounds + 1], *candidate_columns, *round_columns)

    def cumulative_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """Return the seconds from the start to the end of each round, preceded by 0, [R + 1]."""
        return np.concatenate([[0.0], np.cumsum(self.round_seconds(up_bps, down_bps, latency_seconds))])

    def utilization(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """Return the share of the slowest clients' training in the time of all rounds; 0 if the rounds take no time."""
        seconds = float(self.round_seconds(up_bps, down_bps, latency_seconds).sum())
        return float(self.breakdown(up_bps, down_bps, latency_seconds).compute.sum()) / seconds if seconds else 0.0

    def breakdown(self, up_bps: float, down_bps: float, latency_seconds: float) -> RoundTimeBreakdown:
        """Return the duration of each round by phase; latency and jitter count half as downlink and half as uplink."""
        delay, down, up = self._transfer_seconds(up_bps, down_bps, latency_seconds)
        total = delay + down + self.compute + self.coding + up
        slowest = np.maximum.reduceat(total, self.offsets[:-1])
        counts = np.diff(self.offsets)
        ties = np.flatnonzero(total == np.repeat(slowest, counts))
        rounds = np.repeat(np.arange(len(counts)), counts)[ties]
        last = ties[np.unique(rounds, return_index=True)[1]]  # of equally slow candidates, the first
        half_delay = delay[last] / 2
        wait = np.maximum(slowest, self.lost_reply_wait) - slowest
        return RoundTimeBreakdown(
            down[last] + half_delay, self.compute[last], self.coding[last], up[last] + half_delay, self.server_seconds, wait
        )


@dataclass(frozen=True)
class PricingModel(ValidatedConfig):
    """Network, and devices of the clients and of the server, on which a run is priced.

    Attributes:
        deadline_seconds: seconds, time that the server waits for a lost reply; None: the round lasts as if the reply had
            arrived, and a client without a recorded reply counts with its download and decoding alone; a dropped straggler
            also with its training.
        training_seconds: seconds, training of a client of median speed in a round, in place of operations / throughput, for
            clients with few and with many steps alike; None: the operations of the run on `device`.
    """

    network: Network
    device: Device
    server: Device
    deadline_seconds: PositiveFloat | None = None
    training_seconds: PositiveFloat | None = None

    @property
    def training_text(self) -> str:
        """Training of the clients in words, for a sentence about them."""
        if self.training_seconds is None:
            return f"compute {self.device}"
        spread = f", spread {self.device.spread:g}" if self.device.spread else ""
        return f"train {format_seconds(self.training_seconds)} a round, {self.device.copy_rate_text}{spread}"


def round_time_models(
    traffic: Iterable[ClientTraffic], compute_profile: ComputeProfile, seed: int, pricing_models: Sequence[PricingModel]
) -> list[RoundTimeModel]:
    """Build the round time model of a run for each pricing model, from the traffic in chunks of consecutive rounds.

    ReportError if there is no traffic, or if an accepted reply would arrive after a deadline, as participants would differ.

    >>> from fedsgd.network.link import Link
    >>> row = {name: np.array([1]) for name in ("round", "client", "down_messages", "up_messages")}
    >>> volume = {name: np.array([125_000]) for name in ("down_bytes", "up_bytes")}
    >>> traffic = ClientTraffic(1, **row, **volume, examples=np.array([50]), accepted=np.array([True]),
    ...                         down_distinct_bytes=np.array([125_000.0]))
    >>> work = ComputeProfile(parameters=31_250, flops_per_example=1e6, encode_copies=0, decode_copies=0, server_copies=0)
    >>> network, device = Network(Link(1e6, 2e6)), Device(flops_per_second=1e9, copy_bytes_per_second=1e9)
    >>> (model,) = round_time_models([traffic], work, seed=0, pricing_models=[PricingModel(network, device, device)])
    >>> model.round_seconds(1e6, 2e6, 0.0).round(2).tolist()  # 0.5 s down, 0.05 s of training, 1 s up
    [1.55]
    """
    parts: list[list[RoundTimeModel]] = [[] for _ in pricing_models]
    for chunk in traffic:
        for models, pricing_model in zip(parts, pricing_models, strict=True):
            models.append(_build_part(chunk, compute_profile, seed, pricing_model))
    results = [_concatenate(models) for models in parts]
    for round_times, pricing_model in zip(results, pricing_models, strict=True):
        _check_deadline(round_times, pricing_model)
    return results


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
    rounds = traffic.round - traffic.first_round
    columns = _candidate_columns(traffic, rounds, compute_profile, pricing_model, seed)
    server_link_seconds = _server_link_seconds(traffic, rounds, network)
    is_counted = np.ones(len(rounds), dtype=bool) if deadline is None else traffic.accepted
    n_lost = np.bincount(rounds[~traffic.accepted], minlength=n_rounds)
    n_accepted = np.bincount(rounds[traffic.accepted], minlength=n_rounds)
    copies = (
        np.where(np.bincount(rounds, minlength=n_rounds) > 0, compute_profile.sending_copies, 0.0)
        + n_accepted * compute_profile.server_copies
    )
    server_seconds = copies * (FLOAT_BYTES * compute_profile.parameters / server.copy_bytes_per_second)
    # a round without clients, or with a deadline and without an accepted reply, gets one candidate of zeros
    empty_rounds = np.flatnonzero(np.bincount(rounds[is_counted], minlength=n_rounds) == 0)
    rounds = np.concatenate([rounds[is_counted], empty_rounds])
    columns = np.concatenate([columns[:, is_counted], np.zeros((len(columns), len(empty_rounds)))], axis=1)
    order = np.argsort(rounds, kind="stable")
    rounds, columns = rounds[order], columns[:, order]
    candidates = _pareto_candidates(rounds, np.stack([*columns[:3], columns[3] + columns[4], columns[5]]), n_rounds)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rounds[candidates], minlength=n_rounds))])
    limit = 0.0 if deadline is None else deadline
    wait, due = np.where(n_lost > 0, limit, 0.0), np.where(n_accepted > 0, limit, 0.0)
    return RoundTimeModel(offsets, *(*columns[:, candidates], *server_link_seconds, server_seconds, wait, due))


def _candidate_columns(
    traffic: ClientTraffic, round_positions: I64, compute_profile: ComputeProfile, pricing_model: PricingModel, seed: int
) -> F64:
    """Return `CANDIDATE_COLUMNS` of each row of the traffic, [6, T]."""
    network, device = pricing_model.network, pricing_model.device
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
    seconds_per_example = compute_profile.flops_per_example / device.flops_per_second
    training: F64 = np.multiply(traffic.examples, seconds_per_example, dtype=np.float64)
    if pricing_model.training_seconds is not None:
        training = np.where(traffic.examples > 0, pricing_model.training_seconds, 0.0)
    copies = np.where(
        traffic.up_messages > 0, compute_profile.encode_copies + compute_profile.decode_copies, compute_profile.decode_copies
    )
    return np.stack(
        [
            messages,
            delay,
            8 * down_bytes / factors.down,
            training / speed,
            copies * (FLOAT_BYTES * compute_profile.parameters / device.copy_bytes_per_second) / speed,
            8 * up_bytes / factors.up,
        ]
    )


def _sum_broadcast_bytes(traffic: ClientTraffic, round_positions: I64, network: Network) -> F64:
    """Return the bytes on the broadcast channel in each round [R], with the overhead of each client's message."""
    messages = np.bincount(round_positions, traffic.down_messages, len(traffic.down_distinct_bytes))
    return traffic.down_distinct_bytes + messages * network.down_overhead_bytes


def _server_link_seconds(traffic: ClientTraffic, round_positions: I64, network: Network) -> tuple[F64, F64]:
    """Return the minimum seconds that the server's own link needs in each round, (downlink [R], uplink [R])."""
    n_rounds = len(traffic.down_distinct_bytes)
    up: F64 = np.zeros(n_rounds)
    down: F64 = np.zeros(n_rounds)
    if network.server_up_bits_per_second is not None:
        # lost replies do not reach the server
        n_bytes = (traffic.up_bytes + traffic.up_messages * network.up_overhead_bytes) * traffic.accepted
        up = 8 * np.bincount(round_positions, n_bytes, n_rounds) / network.server_up_bits_per_second
    if network.server_down_bits_per_second is not None:
        n_bytes = traffic.down_bytes + traffic.down_messages * network.down_overhead_bytes
        total = (
            _sum_broadcast_bytes(traffic, round_positions, network)
            if network.downlink == "broadcast"
            else np.bincount(round_positions, n_bytes, n_rounds)
        )
        down = 8 * total / network.server_down_bits_per_second
    return down, up


def _draw_jitter(traffic: ClientTraffic, messages: F64, seed: int) -> F64:
    """Draw the sum of one unit exponential per message for each row, [T]. A round's draws depend on no other round."""
    sums = np.empty(len(traffic.round))
    starts = np.flatnonzero(np.diff(traffic.round, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(sums)], strict=True):
        sums[start:stop] = derive_generator(seed, "jitter", int(traffic.round[start])).standard_gamma(messages[start:stop])
    return sums


def _pareto_candidates(round_positions: I64, figures: F64, n_rounds: int) -> I64:
    """Return the positions of the clients that can be the slowest of their round, from their figures [F, T].

    A client is omitted if another client of the round has at least equal figures throughout. Of equal clients, the first stays.
    """
    counts = np.bincount(round_positions, minlength=n_rounds)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    slots = np.arange(len(round_positions)) - starts[round_positions]
    grid = np.full((len(figures), n_rounds, counts.max()), -np.inf)
    grid[:, round_positions, slots] = figures
    maxima = np.repeat(np.maximum.reduceat(figures, starts, axis=1), counts, axis=1)
    score = np.full(grid.shape[1:], -np.inf)  # grows with each figure, so no client dominates the client of the largest score
    score[round_positions, slots] = (figures / np.where(maxima > 0, maxima, 1)).sum(axis=0)
    is_undecided, is_candidate = np.isfinite(score), np.zeros(score.shape, dtype=bool)
    rows = np.arange(n_rounds)
    while len(rows):
        best_slots = np.where(is_undecided[rows], score[rows], -np.inf).argmax(axis=1)
        is_candidate[rows, best_slots] = True
        is_undecided[rows] &= (grid[:, rows] > grid[:, rows, best_slots][..., None]).any(axis=0)
        rows = rows[is_undecided[rows].any(axis=1)]
    candidates: I64 = np.flatnonzero(is_candidate[round_positions, slots])
    return candidates


def _check_deadline(round_times: RoundTimeModel, pricing_model: PricingModel) -> None:
    deadline, link = pricing_model.deadline_seconds, pricing_model.network.link
    if deadline is None:
        return
    slowest = round_times.slowest_client_seconds(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    is_late: BoolArray = (round_times.deadline > 0) & (slowest > round_times.deadline)
    if is_late.any():
        round = int(is_late.argmax())
        arrival = f"a reply that was accepted in round {round + 1} would arrive after {format_seconds(float(slowest[round]))}"
        consequence = "on this network other clients would have taken part, and the run would differ"
        raise ReportError(f"{arrival}, later than the deadline of {format_seconds(deadline)}: {consequence}")
