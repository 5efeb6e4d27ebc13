"""Bytes and money a month of a fleet of clients and of one client, from the ledgers of finished runs.

A run measures the bytes of a participation: of a client that was sent a message in a round. A fleet has other numbers of
clients and of rounds than the run. In each round of the fleet, the same share of the clients takes part as in the run, unless
the fleet's cohort is set. A participation of the fleet has the mean bytes of the run's participations.

Bytes of clients that drop out:

- Before the download, for example by the sampler "trace": the client is sent no message, so there are no bytes.
- After the download, by an error or a timeout: the bytes of the download count, and there are none of an upload.
- After the upload, by `participation.dropout` or a deadline: the bytes of both directions count, because the reply was sent.

The shares of these clients are those of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsgd.analysis.comparison import GIGABYTE
from fedsgd.analysis.ledger_stats import check_byte_totals, read_client_traffic
from fedsgd.analysis.runs import Run
from fedsgd.config.component import FieldError, FractionAboveZero, PositiveFloat, PositiveInt, ValidatedConfig
from fedsgd.config.quantities import parse_monthly_bytes, parse_size
from fedsgd.errors import ScenarioError
from fedsgd.experiment.time_to_target import SeedSummary, summarize_seeds
from fedsgd.numerics.arrays import F64

MAX_ROUNDS_PER_MONTH = 1_000_000
MAX_CLIENT_QUANTILES = 10_000
"""Maximum number of clients whose bytes are stored one by one; of more clients, this number of quantiles is stored."""
SHARE_TOLERANCE = 1e-9
"""Rounding error of a share of clients up to which a percentile is reached."""
HIGH_PERCENTILE = 0.95


@dataclass(frozen=True)
class FleetConfig(ValidatedConfig):
    """Clients that run a method continuously. A month has 30 days, and money is in any currency.

    Attributes:
        rounds_per_month: rounds of the whole fleet in a month.
        clients: M, number of registered clients; None: only the figures of one client are computed.
        cohort: clients that are sent a message in a round; None: the same share of the clients as in the run.
        cap: limit of a client's bytes in both directions, such as "200MB/month" or "1 GB/day"; None for no limit.
        share: share of the clients that must stay within the cap, for the limit of a compressor's setting.
        price_per_gigabyte: price of 10⁹ bytes; None for no price.
        overhead_up, overhead_down: bytes that the transport adds to each message, such as "12 kB".
    """

    rounds_per_month: PositiveInt
    clients: PositiveInt | None = None
    cohort: PositiveInt | None = None
    cap: str | None = None
    share: FractionAboveZero = HIGH_PERCENTILE
    price_per_gigabyte: PositiveFloat | None = None
    overhead_up: str = "0 B"
    overhead_down: str = "0 B"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.rounds_per_month > MAX_ROUNDS_PER_MONTH:
            problem = f"expected a whole number from 1 to {MAX_ROUNDS_PER_MONTH}, got {self.rounds_per_month}"
            raise FieldError(name, "rounds_per_month", problem)
        if self.cohort is not None and (self.clients is None or self.cohort > self.clients):
            example = f"the number of clients too, for example clients={max(1000, self.cohort)}"
            expected = example if self.clients is None else f"at most {self.clients}, the number of clients"
            raise FieldError(name, "cohort", f"got {self.cohort}, expected {expected}")
        for field in ("cap_bytes", "overhead_up_bytes", "overhead_down_bytes"):
            try:
                getattr(self, field)
            except ScenarioError as error:
                raise FieldError(name, field.removesuffix("_bytes"), str(error)) from None

    @cached_property
    def cap_bytes(self) -> float | None:
        """Limit of a client's bytes a month; None for no limit."""
        return None if self.cap is None else parse_monthly_bytes(self.cap)

    @cached_property
    def overhead_up_bytes(self) -> float:
        """Bytes that the transport adds to an uplink message."""
        return parse_size(self.overhead_up)

    @cached_property
    def overhead_down_bytes(self) -> float:
        """Bytes that the transport adds to a downlink message."""
        return parse_size(self.overhead_down)


@dataclass(frozen=True, eq=False)
class MeasuredTraffic:
    """Traffic of a run by participation.

    Attributes:
        n_clients, n_rounds: N and R of the run.
        n_participations: T, number of pairs of a round and a client that was sent a message in it.
        n_unanswered: participations without a reply; they have the bytes of the download alone.
        n_unused: participations whose reply was lost, late or refused; they have the bytes of both directions.
        up_bytes, down_bytes: mean bytes of a participation, with the overhead of its messages.
        sampler: name of the sampler.
        client_bytes: [min(N, 10 000)] bytes of a client in both directions in all rounds, ascending: all clients, or quantiles.
    """

    n_clients: int
    n_rounds: int
    n_participations: int
    n_unanswered: int
    n_unused: int
    up_bytes: float
    down_bytes: float
    sampler: str
    client_bytes: F64

    @property
    def sampled_share(self) -> float:
        """Share of the clients that take part in a round, mean over the rounds."""
        return self.n_participations / (self.n_clients * self.n_rounds)

    @property
    def mean_bytes(self) -> float:
        """Mean bytes of a participation in both directions."""
        return self.up_bytes + self.down_bytes


def measure_traffic(run: Run, overhead_up_bytes: float = 0.0, overhead_down_bytes: float = 0.0) -> MeasuredTraffic:
    """Read the traffic of a run from its ledger.

    Args:
        run: finished run.
        overhead_up_bytes: bytes that the transport adds to an uplink message.
        overhead_down_bytes: bytes that the transport adds to a downlink message.

    Raises:
        ReportError: the ledger is incomplete or belongs to another run.
    """
    n_clients = int(run.summary["clients"])
    counts, sums, client_bytes = np.zeros(3, dtype=np.int64), np.zeros(4), np.zeros(n_clients)
    for traffic in read_client_traffic(run):
        counts += (len(traffic.round), (traffic.up_messages == 0).sum(), ((traffic.up_messages > 0) & ~traffic.accepted).sum())
        columns = (traffic.up_bytes, traffic.down_bytes, traffic.up_messages, traffic.down_messages)
        sums += [column.sum() for column in columns]
        overhead = overhead_up_bytes * traffic.up_messages + overhead_down_bytes * traffic.down_messages
        client_bytes += np.bincount(traffic.client, traffic.up_bytes + traffic.down_bytes + overhead, minlength=n_clients)
    check_byte_totals(run, sums[0], sums[1])
    n_participations, n_unanswered, n_unused = (int(count) for count in counts)
    n = max(1, n_participations)
    return MeasuredTraffic(
        n_clients,
        run.n_rounds,
        n_participations,
        n_unanswered,
        n_unused,
        up_bytes=float(sums[0] + overhead_up_bytes * sums[2]) / n,
        down_bytes=float(sums[1] + overhead_down_bytes * sums[3]) / n,
        sampler=str(run.settings.get("server.sampler.name", "uniform")),
        client_bytes=_reduce_to_quantiles(client_bytes),
    )


def get_whole_model_bytes(run: Run) -> int | None:
    """Return the bytes of the whole model, the largest download; None if each download of the run has the whole model."""
    return None if run.settings.get("downlink.policy") == "model" else 4 * int(run.summary["parameters"])


def _reduce_to_quantiles(values: F64) -> F64:
    """Return the sorted values, or MAX_CLIENT_QUANTILES quantiles of more values."""
    values = np.sort(values)
    n = len(values)
    if n <= MAX_CLIENT_QUANTILES:
        return values
    return values[-(-np.arange(1, MAX_CLIENT_QUANTILES + 1) * n // MAX_CLIENT_QUANTILES) - 1]


@dataclass(frozen=True, eq=False)
class ClientBytes:
    """Distribution of the bytes of a client in a month.

    Attributes:
        values: [V] bytes, ascending.
        cumulative: [V] share of the clients with at most these bytes, ascending to 1.
    """

    values: F64
    cumulative: F64

    def percentile(self, share: float) -> float:
        """Return the smallest bytes such that at least this share of the clients has at most these bytes."""
        index = int(np.searchsorted(self.cumulative, share - SHARE_TOLERANCE))
        return float(self.values[min(index, len(self.values) - 1)])

    def share_within(self, cap: float) -> float:
        """Return the share of the clients with at most `cap` bytes."""
        index = int(np.searchsorted(self.values, cap, side="right"))
        return float(self.cumulative[index - 1]) if index else 0.0


def compute_binomial_shares(n: int, probability: float) -> F64:
    """Return the probabilities [n + 1] of at most 0, 1, ..., n participations in n independent rounds.

    >>> compute_binomial_shares(2, 0.5).round(12).tolist()
    [0.25, 0.75, 1.0]

    Args:
        n: number of rounds.
        probability: probability that a client takes part in a round.
    """
    if probability <= 0 or probability >= 1:
        return np.concatenate([np.full(n, float(probability <= 0)), [1.0]])
    counts = np.arange(n)
    steps = np.log((n - counts) / (counts + 1)) + math.log(probability / (1 - probability))
    logs = n * math.log1p(-probability) + np.concatenate([[0.0], np.cumsum(steps)])
    shares: F64 = np.minimum(1.0, np.cumsum(np.exp(logs)))
    return shares


def model_client_bytes(traffic: MeasuredTraffic, rounds_per_month: int, sampled_share: float) -> ClientBytes:
    """Return the distribution of a client's bytes in a month.

    - Sampler "uniform": the participations are binomial, because each round samples independently.
    - Sampler "cyclic": the participations of two clients differ by at most one.
    - Other samplers: the bytes of the run's clients, in proportion to the fleet's number of participations of a client.

    Args:
        traffic: measured traffic of a run.
        rounds_per_month: rounds of the fleet in a month.
        sampled_share: share of the fleet's clients that take part in a round.
    """
    if traffic.sampler == "uniform":
        shares = compute_binomial_shares(rounds_per_month, sampled_share)
        return ClientBytes(np.arange(rounds_per_month + 1.0) * traffic.mean_bytes, shares)
    if traffic.sampler == "cyclic":
        turns = rounds_per_month * sampled_share
        fewest = math.floor(turns + SHARE_TOLERANCE)
        counts = np.array([fewest, fewest + 1.0])
        return ClientBytes(counts * traffic.mean_bytes, np.array([1 - max(0.0, turns - fewest), 1.0]))
    scale = rounds_per_month / traffic.n_rounds * (sampled_share / (traffic.sampled_share or 1))
    n = len(traffic.client_bytes)
    return ClientBytes(traffic.client_bytes * scale, np.arange(1, n + 1) / n)


@dataclass(frozen=True)
class FleetRow:
    """Figures of a method, each over its finished seeds. Bytes are in both directions unless a name has one direction.

    Attributes:
        label: method.
        sampler: name of the run's sampler.
        measured_share: share of the run's clients that took part in a round.
        sampled_share: share of the fleet's clients that take part in a round.
        uplink_bytes_per_participation, downlink_bytes_per_participation: mean bytes, with overheads.
        unanswered_share: share of the participations without a reply; they count with the download alone.
        unused_share: share of the participations whose reply was sent, but lost, late or refused; they count fully.
        fleet_uplink_bytes_per_month, fleet_downlink_bytes_per_month, fleet_bytes_per_month: of all clients; None without their
            number.
        fleet_cost_per_month: money for these bytes; None without a price.
        client_median_bytes_per_month, client_95th_percentile_bytes_per_month: percentiles over the clients.
        client_median_cost_per_month, client_95th_percentile_cost_per_month: money for these bytes; None without a price.
        share_of_clients_within_cap: share of the clients whose bytes are at most the cap; None without a cap.
    """

    label: str
    sampler: str
    measured_share: SeedSummary
    sampled_share: SeedSummary
    uplink_bytes_per_participation: SeedSummary
    downlink_bytes_per_participation: SeedSummary
    unanswered_share: SeedSummary
    unused_share: SeedSummary
    fleet_uplink_bytes_per_month: SeedSummary | None
    fleet_downlink_bytes_per_month: SeedSummary | None
    fleet_bytes_per_month: SeedSummary | None
    fleet_cost_per_month: SeedSummary | None
    client_median_bytes_per_month: SeedSummary
    client_95th_percentile_bytes_per_month: SeedSummary
    client_median_cost_per_month: SeedSummary | None
    client_95th_percentile_cost_per_month: SeedSummary | None
    share_of_clients_within_cap: SeedSummary | None


def get_sampled_share(traffic: MeasuredTraffic, fleet: FleetConfig) -> float:
    """Return the share of the fleet's clients that take part in a round."""
    if fleet.cohort is None or fleet.clients is None:
        return traffic.sampled_share
    return fleet.cohort / fleet.clients


def build_fleet_row(label: str, all_traffic: Sequence[MeasuredTraffic], fleet: FleetConfig) -> FleetRow:
    """Return the figures of a method in a fleet.

    Args:
        label: method.
        all_traffic: measured traffic of each of the method's seeds.
        fleet: fleet that runs the method.
    """
    shares = [get_sampled_share(traffic, fleet) for traffic in all_traffic]
    pairs = list(zip(all_traffic, shares, strict=True))
    distributions = [model_client_bytes(traffic, fleet.rounds_per_month, share) for traffic, share in pairs]

    def summarize(figure: Callable[[MeasuredTraffic], float]) -> SeedSummary:
        return summarize_seeds([figure(traffic) for traffic in all_traffic])

    def summarize_fleet(figure: Callable[[MeasuredTraffic], float]) -> SeedSummary | None:
        """Summarize a figure of a participation, times the participations of all clients in a month."""
        if fleet.clients is None:
            return None
        participations = [fleet.clients * fleet.rounds_per_month * share for share in shares]
        return summarize_seeds([n * figure(traffic) for n, traffic in zip(participations, all_traffic, strict=True)])

    fleet_bytes = summarize_fleet(lambda traffic: traffic.mean_bytes)
    median, high = (summarize_seeds([d.percentile(p) for d in distributions]) for p in (0.5, HIGH_PERCENTILE))
    cap = fleet.cap_bytes
    return FleetRow(
        label=label,
        sampler=all_traffic[0].sampler,
        measured_share=summarize(lambda traffic: traffic.sampled_share),
        sampled_share=summarize_seeds(shares),
        uplink_bytes_per_participation=summarize(lambda traffic: traffic.up_bytes),
        downlink_bytes_per_participation=summarize(lambda traffic: traffic.down_bytes),
        unanswered_share=summarize(lambda traffic: traffic.n_unanswered / max(1, traffic.n_participations)),
        unused_share=summarize(lambda traffic: traffic.n_unused / max(1, traffic.n_participations)),
        fleet_uplink_bytes_per_month=summarize_fleet(lambda traffic: traffic.up_bytes),
        fleet_downlink_bytes_per_month=summarize_fleet(lambda traffic: traffic.down_bytes),
        fleet_bytes_per_month=fleet_bytes,
        fleet_cost_per_month=_price_bytes(fleet_bytes, fleet),
        client_median_bytes_per_month=median,
        client_95th_percentile_bytes_per_month=high,
        client_median_cost_per_month=_price_bytes(median, fleet),
        client_95th_percentile_cost_per_month=_price_bytes(high, fleet),
        share_of_clients_within_cap=None if cap is None else summarize_seeds([d.share_within(cap) for d in distributions]),
    )


def _price_bytes(n_bytes: SeedSummary | None, fleet: FleetConfig) -> SeedSummary | None:
    """Return the money for bytes; None without bytes or without a price."""
    price = fleet.price_per_gigabyte
    if n_bytes is None or price is None:
        return None
    figures = {name: getattr(n_bytes, name) / GIGABYTE * price for name in ("median", "low", "high", "mean", "std")}
    return replace(n_bytes, **figures)


def compute_client_bytes(all_traffic: Sequence[MeasuredTraffic], fleet: FleetConfig) -> float:
    """Return the bytes a month of the client at the fleet's `share`, median over the traffic of a method's seeds."""
    pairs = ((traffic, get_sampled_share(traffic, fleet)) for traffic in all_traffic)
    distributions = [model_client_bytes(traffic, fleet.rounds_per_month, share) for traffic, share in pairs]
    return summarize_seeds([client_bytes.percentile(fleet.share) for client_bytes in distributions]).median
