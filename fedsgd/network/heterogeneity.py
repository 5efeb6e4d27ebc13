"""How the links of clients differ."""

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
from fedsgd.numerics.rng import derive_generator
from fedsgd.storage.csv_reader import read_rows

_CLIENTS_PER_BLOCK = 1024
HEADER = ("client", "up_bits_per_second", "down_bits_per_second", "latency_seconds")


class LinkFactors(NamedTuple):
    """Of clients [n]: by what their rates are the network's, and by how many seconds their latency is more than it."""

    up: F64
    down: F64
    latency_seconds: F64


@dataclass(frozen=True)
class LinkHeterogeneity(ValidatedConfig, ABC):
    """A client's link, compared with that of the client in the middle.

    Laws: factors are above 0 and finite, latencies at least minus the network's; they depend on (seed, client) alone.
    """

    @abstractmethod
    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        """Of these clients [n]."""


@dataclass(frozen=True)
class HomogeneousLinks(LinkHeterogeneity):
    """All links are alike."""

    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        ones = np.ones(len(clients))
        return LinkFactors(ones, ones, np.zeros(len(clients)))

    def __str__(self) -> str:
        return "all links alike"


@dataclass(frozen=True)
class LogNormalLinks(LinkHeterogeneity):
    """Both rates of a client times exp(spread · z), z standard normal, the same for both: a slow link is slow both ways. With
    spread 0.5 two clients in three are within a factor 1.65 of the one in the middle."""

    spread: NonNegativeFloat = 0.5

    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        factor = draw_log_normal_factors(seed, "link", clients, self.spread)
        return LinkFactors(factor, factor, np.zeros(len(clients)))

    def __str__(self) -> str:
        return f"log-normal rates, spread {self.spread:g}"


def draw_log_normal_factors(seed: int, purpose: str, clients: I64, spread: float) -> F64:
    """exp(spread · z) for each client [n]; a client's z depends on (seed, purpose, client) alone."""
    if not spread or not len(clients):
        return np.ones(len(clients))
    z = np.empty(len(clients))
    blocks = clients // _CLIENTS_PER_BLOCK
    for block in np.unique(blocks).tolist():
        which = blocks == block
        z[which] = derive_generator(seed, purpose, block).standard_normal(_CLIENTS_PER_BLOCK)[
            clients[which] % _CLIENTS_PER_BLOCK
        ]
    with np.errstate(over="ignore"):
        factors: F64 = np.exp(spread * z)
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise DataError(f"spread {spread:g}: a client's speed is beyond what floats can hold")
    return factors


@dataclass(frozen=True)
class TraceLinks(LinkHeterogeneity):
    """Links as measured: `rates` and `latencies` by client, relative to the medians, which are the network's (see
    `read_link_trace`).

    A client whose number is not in the file has the link of its number modulo the number of lines.
    """

    file: str
    up: tuple[float, ...]
    down: tuple[float, ...]
    latency: tuple[float, ...]

    def compute_factors(self, seed: int, clients: I64) -> LinkFactors:
        at = clients % len(self.up)
        return LinkFactors(np.array(self.up)[at], np.array(self.down)[at], np.array(self.latency)[at])

    def __str__(self) -> str:
        return f"links of {len(self.up):,} clients from {self.file}"


class LinkTrace(NamedTuple):
    """A trace, and the medians that it is relative to."""

    links: TraceLinks
    up_bits_per_second: float
    down_bits_per_second: float
    latency_seconds: float


def read_link_trace(path: Path) -> LinkTrace:
    """A CSV file with the header client,up_bits_per_second,down_bits_per_second,latency_seconds, a line for each of the clients
    0, 1, ... in any order. DataError that names the file and the line where something is wrong."""
    rows: dict[int, tuple[float, float, float]] = {}

    def add_line(cells: list[str]) -> None:
        client, link = _parse_line(cells)
        if client in rows:
            raise ValueError(f"client: {client} was there before")
        rows[client] = link

    for _ in read_rows(path, HEADER, add_line):
        pass
    if not rows:
        raise DataError(f"{path}: expected lines below the header, got none")
    missing = next((client for client in range(len(rows)) if client not in rows), None)
    if missing is not None:
        raise DataError(f"{path}: {len(rows)} lines, expected the clients 0 to {len(rows) - 1}, but {missing} is not there")
    up, down, latency = (np.array(values) for values in zip(*(rows[client] for client in range(len(rows))), strict=True))
    middle = [float(np.median(values)) for values in (up, down, latency)]
    relative = (up / middle[0], down / middle[1], latency - middle[2])
    return LinkTrace(TraceLinks(path.name, *(tuple(values.tolist()) for values in relative)), *middle)


def _parse_line(cells: list[str]) -> tuple[int, tuple[float, float, float]]:
    """A line's numbers; ValueError says what was expected."""
    if not cells[0].strip().isdecimal():
        raise ValueError(f"client: expected a whole number from 0 on, got {cells[0]!r}")
    numbers = []
    for key, cell in zip(HEADER[1:], cells[1:], strict=True):
        try:
            value = float(cell)
        except ValueError:
            raise ValueError(f"{key}: expected a number, got {cell!r}") from None
        least = "from 0 on" if key == "latency_seconds" else "above 0"
        if not 0 <= value <= MAX_QUANTITY or (value < MIN_QUANTITY and least == "above 0"):
            raise ValueError(f"{key}: expected a number {least}, got {cell.strip()}")
        numbers.append(value)
    return int(cells[0]), (numbers[0], numbers[1], numbers[2])
