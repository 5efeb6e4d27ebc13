"""Differences between the links of clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsgd.config.component import NonNegativeFloat, ValidatedConfig
from fedsgd.config.quantities import MAX_QUANTITY, MIN_QUANTITY
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import F64, I64
from fedsgd.numerics.rng import draw_client_normals
from fedsgd.storage.csv_reader import read_rows

HEADER = ("client", "up_bits_per_second", "down_bits_per_second", "latency_seconds")
"""Columns of a link trace."""


class LinkFactors(NamedTuple):
    """Clients' links relative to the network's link: factors of the rates, and differences of the latency in seconds, [n]."""

    up: F64
    down: F64
    latency_seconds: F64


@dataclass(frozen=True)
class LinkHeterogeneity(ValidatedConfig, ABC):
    """Rule that computes the clients' links, relative to the network's link, which has the medians.

    Laws: factors are above 0 and finite. Latency differences are at least minus the network's latency. Factors and differences
    depend on (seed, client) only.
    """

    @abstractmethod
    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        """Compute the links of n clients.

        Args:
            seed: seed of the run.
            clients: [n] int64, numbers of the clients.
        """


@dataclass(frozen=True)
class HomogeneousLinks(LinkHeterogeneity):
    """Equal links of all clients."""

    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        ones = np.ones(len(clients))
        return LinkFactors(ones, ones, np.zeros(len(clients)))

    def __str__(self) -> str:
        return "equal links"


@dataclass(frozen=True)
class LogNormalLinks(LinkHeterogeneity):
    """Log-normal rates: uplink and downlink rate of a client have the same factor exp(spread · z), z ~ N(0, 1).

    `spread` is the standard deviation of the logarithm. With 0.5, two thirds of clients are within a factor 1.65 of the median.

    >>> factors = LogNormalLinks(spread=0.5).compute_factors(seed=0, clients=np.array([0, 1]))
    >>> bool((factors.up == factors.down).all())
    True
    """

    spread: NonNegativeFloat = 0.5

    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        factor = draw_log_normal_factors(seed, "link", clients, self.spread)
        return LinkFactors(factor, factor, np.zeros(len(clients)))

    def __str__(self) -> str:
        return f"log-normal rates, spread {self.spread:g}"


def draw_log_normal_factors(seed: int, purpose: str, clients: I64, spread: float) -> F64:
    """Return exp(spread · z) of each client, [n], with z ~ N(0, 1) by (seed, purpose, client). DataError for 0 or infinity."""
    if not spread or not len(clients):
        return np.ones(len(clients))
    with np.errstate(over="ignore"):
        factors: F64 = np.exp(spread * draw_client_normals(seed, purpose, clients))
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise DataError(f"spread {spread:g}: the factor of a client is 0 or infinite, expected a smaller spread")
    return factors


@dataclass(frozen=True)
class TraceLinks(LinkHeterogeneity):
    """Measured links relative to the medians of their rates and latencies (see `read_link_trace`).

    Client c has entry c mod m, for m clients in the file. `up` and `down` are factors of the rates, [m]; `latency` is the
    difference in seconds, [m]. `file` is the file's name.
    """

    file: str
    up: tuple[float, ...]
    down: tuple[float, ...]
    latency: tuple[float, ...]

    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        lines = clients % len(self.up)
        return LinkFactors(np.array(self.up)[lines], np.array(self.down)[lines], np.array(self.latency)[lines])

    def __str__(self) -> str:
        return f"links of {len(self.up):,} clients from {self.file}"


class LinkTrace(NamedTuple):
    """Links of a trace, and the medians to which the links are relative."""

    links: TraceLinks
    up_bits_per_second: float
    down_bits_per_second: float
    latency_seconds: float


def read_link_trace(path: Path) -> LinkTrace:
    """Read a CSV file with `HEADER` and a line for each client 0, 1, ... in any order. DataError for an invalid file."""
    rows: dict[int, tuple[float, float, float]] = {}

    def add_line(cells: list[str]) -> None:
        client, link = _parse_line(cells)
        if client in rows:
            raise ValueError(f"client: {client} is repeated")
        rows[client] = link

    for _ in read_rows(path, HEADER, add_line):
        pass
    if not rows:
        raise DataError(f"{path}: expected lines below the header, got none")
    missing_client = next((client for client in range(len(rows)) if client not in rows), None)
    if missing_client is not None:
        problem = f"has {len(rows)} lines, expected the clients 0 to {len(rows) - 1}, but {missing_client} is missing"
        raise DataError(f"{path}: {problem}")
    up, down, latency = (np.array(values) for values in zip(*(rows[client] for client in range(len(rows))), strict=True))
    medians = [float(np.median(values)) for values in (up, down, latency)]
    columns = (up / medians[0], down / medians[1], latency - medians[2])
    return LinkTrace(TraceLinks(path.name, *(tuple(values.tolist()) for values in columns)), *medians)


def _parse_line(cells: list[str]) -> tuple[int, tuple[float, float, float]]:
    """Return (client, (up, down, latency)) of a line. ValueError, with the expected value, for an invalid cell."""
    if not cells[0].strip().isdecimal():
        raise ValueError(f"client: expected a whole number of at least 0, got {cells[0]!r}")
    numbers = []
    for key, cell in zip(HEADER[1:], cells[1:], strict=True):
        try:
            value = float(cell)
        except ValueError:
            raise ValueError(f"{key}: expected a number, got {cell!r}") from None
        allows_zero = key == "latency_seconds"
        if not 0 <= value <= MAX_QUANTITY or (value < MIN_QUANTITY and not allows_zero):
            minimum = 0 if allows_zero else MIN_QUANTITY
            raise ValueError(f"{key}: expected a number from {minimum:g} to {MAX_QUANTITY:g}, got {cell.strip()}")
        numbers.append(value)
    return int(cells[0]), (numbers[0], numbers[1], numbers[2])
