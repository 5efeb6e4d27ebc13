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

from fedsgd.arrays import F64, I64, Bools
from fedsgd.component import Checked, NonNegative, Positive
from fedsgd.errors import ReportError
from fedsgd.network.base import Device, Network
from fedsgd.network.draws import log_normal
from fedsgd.network.trips import Trips
from fedsgd.rng import stream
from fedsgd.units import seconds_text

FLOAT_BYTES = 4
COLUMNS = ("messages", "delay", "down", "compute", "coding", "up")
"""Of each candidate."""
ROUND_COLUMNS = ("shared_down", "shared_up", "serving", "waiting", "due")
"""Of each round."""


@dataclass(frozen=True)
class Work(Checked):
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
    flops_per_example: Positive
    encode_copies: NonNegative
    decode_copies: NonNegative
    server_copies: NonNegative
    sending_copies: NonNegative = 0.0


class Stack(NamedTuple):
    """Where the time of each round goes, seconds [R]: of the client that is the last, and of the server (serving: its encoding
    and decoding; waiting: for replies that never come, up to the deadline)."""

    down: F64
    compute: F64
    coding: F64
    up: F64
    serving: F64
    waiting: F64


@dataclass(frozen=True, eq=False)
class Timeline:
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
    serving: F64
    waiting: F64
    due: F64

    def _legs(self, up_bps: float, down_bps: float, latency_seconds: float) -> tuple[F64, F64, F64]:
        """(on the way in either direction beside the bytes, down, up) of each candidate, seconds [C]."""
        counts = np.diff(self.offsets)
        delay = np.maximum(0.0, self.messages * latency_seconds + self.delay)
        down = np.maximum(self.down / down_bps, np.repeat(self.shared_down, counts))
        up = np.maximum(self.up / up_bps, np.repeat(self.shared_up, counts))
        return delay, down, up

    def slowest(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """When the last client of each round is done [R]."""
        delay, down, up = self._legs(up_bps, down_bps, latency_seconds)
        last: F64 = np.maximum.reduceat(delay + down + self.compute + self.coding + up, self.offsets[:-1])
        return last

    def seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """The duration of each round [R]. up_bps, down_bps: bits per second of the link in the middle."""
        slowest = self.slowest(up_bps, down_bps, latency_seconds)
        late = (self.due > 0) & (slowest > self.due)
        return np.where(late, np.inf, np.maximum(slowest, self.waiting) + self.serving)

    def until(self, round: int) -> Timeline:
        """The first so many rounds."""
        end = self.offsets[round]
        columns = (getattr(self, name)[:end] for name in COLUMNS)
        shared = (getattr(self, name)[:round] for name in ROUND_COLUMNS)
        return Timeline(self.offsets[: round + 1], *columns, *shared)

    def cumulative(self, up_bps: float, down_bps: float, latency_seconds: float) -> F64:
        """Seconds after each round, 0 before the first [R + 1]."""
        return np.concatenate([[0.0], np.cumsum(self.seconds(up_bps, down_bps, latency_seconds))])

    def stack(self, up_bps: float, down_bps: float, latency_seconds: float) -> Stack:
        """The same by what it goes into; latency and jitter in halves with the way down and the way up."""
        delay, down, up = self._legs(up_bps, down_bps, latency_seconds)
        total = delay + down + self.compute + self.coding + up
        slowest = np.maximum.reduceat(total, self.offsets[:-1])
        counts = np.diff(self.offsets)
        is_last = np.flatnonzero(total == np.repeat(slowest, counts))
        rounds = np.repeat(np.arange(len(counts)), counts)[is_last]
        last = is_last[np.unique(rounds, return_index=True)[1]]
        halves = delay[last] / 2
        waiting = np.maximum(slowest, self.waiting) - slowest
        return Stack(down[last] + halves, self.compute[last], self.coding[last], up[last] + halves, self.serving, waiting)


@dataclass(frozen=True)
class Terms(Checked):
    """What a run is priced on. device: what the clients compute on; server: what decodes and adds their updates.

    deadline_seconds: how long the server waits for a reply that never comes; None: such a round takes as long as if it had
    come, and a client of which nothing was heard counts with its download alone, since nobody knows what else it did.
    """

    network: Network
    device: Device
    server: Device
    deadline_seconds: Positive | None = None


def timelines(trips: Iterable[Trips], work: Work, seed: int, terms: Sequence[Terms]) -> list[Timeline]:
    """What the durations of a run's rounds depend on, for each of `terms`. trips: all of its rounds, stretch by stretch; seed:
    of the clients' links and speeds.

    ReportError if a reply that was taken would have come after the deadline on this network: who takes part would then have
    been others.
    """
    parts: list[list[Timeline]] = [[] for _ in terms]
    for stretch in trips:
        for made, each in zip(parts, terms, strict=True):
            made.append(_part(stretch, work, seed, each))
    joined = [_joined(made) for made in parts]
    for whole, each in zip(joined, terms, strict=True):
        _check_deadline(whole, each)
    return joined


def _joined(parts: Sequence[Timeline]) -> Timeline:
    if not parts:
        raise ReportError("the ledger has no rows")
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in (*COLUMNS, *ROUND_COLUMNS))
    return Timeline(np.concatenate([[0], np.cumsum(counts)]), *columns)


def _part(trips: Trips, work: Work, seed: int, terms: Terms) -> Timeline:
    network, deadline, server = terms.network, terms.deadline_seconds, terms.server
    n_rounds = len(trips.down_distinct_bytes)
    at = trips.round - trips.first
    columns, shared = _columns(trips, at, network, work, terms.device, seed), _shared(trips, at, network)
    kept = np.ones(len(at), dtype=bool) if deadline is None else trips.taken
    lost = np.bincount(at[~trips.taken], minlength=n_rounds) > 0
    taken = np.bincount(at[trips.taken], minlength=n_rounds)
    copies = np.where(np.bincount(at, minlength=n_rounds) > 0, work.sending_copies, 0.0) + taken * work.server_copies
    serving = copies * (FLOAT_BYTES * work.parameters / server.copy_bytes_per_second)
    # a round of nobody, or of nobody whose reply was taken, has one candidate that does nothing
    empty = np.flatnonzero(np.bincount(at[kept], minlength=n_rounds) == 0)
    at = np.concatenate([at[kept], empty])
    columns = np.concatenate([columns[:, kept], np.zeros((len(columns), len(empty)))], axis=1)
    order = np.argsort(at, kind="stable")
    at, columns = at[order], columns[:, order]
    which = _skyline(at, np.stack([*columns[:3], columns[3] + columns[4], columns[5]]), n_rounds)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(at[which], minlength=n_rounds))])
    limit = 0.0 if deadline is None else deadline
    waiting, due = np.where(lost, limit, 0.0), np.where(taken > 0, limit, 0.0)
    return Timeline(offsets, *(*columns[:, which], *shared, serving, waiting, due))


def _columns(trips: Trips, at: I64, network: Network, work: Work, device: Device, seed: int) -> F64:
    """COLUMNS of each trip [6, T]."""
    factors = network.draws.factors(seed, trips.client)
    speed = log_normal(seed, "device", trips.client, device.spread)
    messages = (trips.down_messages + trips.up_messages).astype(np.float64)
    delay = messages * factors.latency_seconds
    if network.link.jitter_seconds:
        delay = delay + network.link.jitter_seconds * _jitter(trips, messages, seed)
    down_bytes: F64 = trips.down_bytes + trips.down_messages * network.down_overhead_bytes
    if network.downlink == "broadcast":
        down_bytes = _broadcast_bytes(trips, at, network)[at]
    up_bytes = trips.up_bytes + trips.up_messages * network.up_overhead_bytes
    copies = np.where(trips.up_messages > 0, work.encode_copies + work.decode_copies, work.decode_copies)
    return np.stack(
        [
            messages,
            delay,
            8 * down_bytes / factors.down,
            trips.examples * (work.flops_per_example / device.flops_per_second) / speed,
            copies * (FLOAT_BYTES * work.parameters / device.copy_bytes_per_second) / speed,
            8 * up_bytes / factors.up,
        ]
    )


def _broadcast_bytes(trips: Trips, at: I64, network: Network) -> F64:
    """What goes over the one channel in each round [R]: each client has a message, with a frame of its own, in it."""
    messages = np.bincount(at, trips.down_messages, len(trips.down_distinct_bytes))
    return trips.down_distinct_bytes + messages * network.down_overhead_bytes


def _shared(trips: Trips, at: I64, network: Network) -> tuple[F64, F64]:
    """The least that the server's own link takes in each round, down and up, seconds [R]."""
    n_rounds = len(trips.down_distinct_bytes)
    up: F64 = np.zeros(n_rounds)
    down: F64 = np.zeros(n_rounds)
    if network.server_up_bits_per_second is not None:
        n_bytes = (trips.up_bytes + trips.up_messages * network.up_overhead_bytes) * trips.taken  # lost is before it
        up = 8 * np.bincount(at, n_bytes, n_rounds) / network.server_up_bits_per_second
    if network.server_down_bits_per_second is not None:
        n_bytes = trips.down_bytes + trips.down_messages * network.down_overhead_bytes
        sent = _broadcast_bytes(trips, at, network) if network.downlink == "broadcast" else np.bincount(at, n_bytes, n_rounds)
        down = 8 * sent / network.server_down_bits_per_second
    return down, up


def _jitter(trips: Trips, messages: F64, seed: int) -> F64:
    """For each trip the sum of a unit exponential for each of its messages [T]; those of a round depend on that round alone."""
    sums = np.empty(len(trips.round))
    starts = np.flatnonzero(np.diff(trips.round, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(sums)], strict=True):
        sums[start:stop] = stream(seed, "jitter", int(trips.round[start])).standard_gamma(messages[start:stop])
    return sums


def _skyline(at: I64, figures: F64, n_rounds: int) -> I64:
    """Which trips can be the last of their round: those of whom no other one of the round has at least as much of everything,
    and of equals the first. at: their round [T], ascending; figures [F, T]."""
    counts = np.bincount(at, minlength=n_rounds)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.arange(len(at)) - starts[at]
    grid = np.full((len(figures), n_rounds, counts.max()), -np.inf)
    grid[:, at, place] = figures
    most = np.repeat(np.maximum.reduceat(figures, starts, axis=1), counts, axis=1)
    score = np.full(grid.shape[1:], -np.inf)  # grows with each figure, so whoever has most of it is not outdone by anybody
    score[at, place] = (figures / np.where(most > 0, most, 1)).sum(axis=0)
    alive, chosen = np.isfinite(score), np.zeros(score.shape, dtype=bool)
    rows = np.arange(n_rounds)
    while len(rows):
        best = np.where(alive[rows], score[rows], -np.inf).argmax(axis=1)
        chosen[rows, best] = True
        alive[rows] &= (grid[:, rows] > grid[:, rows, best][..., None]).any(axis=0)
        rows = rows[alive[rows].any(axis=1)]
    which: I64 = np.flatnonzero(chosen[at, place])
    return which


def _check_deadline(whole: Timeline, terms: Terms) -> None:
    deadline, link = terms.deadline_seconds, terms.network.link
    if deadline is None:
        return
    slowest = whole.slowest(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    late: Bools = (whole.due > 0) & (slowest > whole.due)
    if late.any():
        round = int(late.argmax())
        taken = f"a reply that was taken in round {round + 1} would come after {seconds_text(float(slowest[round]))}"
        then = "on this network others would have taken part, and the run another one"
        raise ReportError(f"{taken}, later than the deadline of {seconds_text(deadline)}: {then}")
