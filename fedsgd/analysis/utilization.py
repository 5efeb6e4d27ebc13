"""Compute utilization of methods against the link speed: the share of training in the time of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsgd.analysis.methods import Method
from fedsgd.analysis.pricing import BISECTIONS, SPEEDS, PricedRun, make_link_scaler, price
from fedsgd.experiment.time_to_target import SeedSummary, summarize_seeds
from fedsgd.network import Network, PricingModel, RoundTimeModel

UTILIZATION_LEVELS = (0.5, 0.8, 0.95)
"""Utilizations whose link speeds are reported."""


@dataclass(frozen=True)
class MethodUtilization:
    """Compute utilization of a method on a network, over its seeds.

    Attributes:
        label: label of the method.
        training_seconds: mean over the rounds of the slowest client's training.
        utilization: share of training in the time of all rounds, on the network's link.
        limit: utilization at the fastest of SPEEDS, where latency, coding and the server are left.
        speeds: uplink speed in bits per second from which the utilization reaches each of UTILIZATION_LEVELS. A seed whose
            utilization stays below the level at all SPEEDS counts as not reached.
    """

    label: str
    training_seconds: SeedSummary
    utilization: SeedSummary
    limit: SeedSummary
    speeds: Mapping[float, SeedSummary]

    def to_json(self) -> dict[str, Any]:
        """Return all figures, speeds by level in text; figures of seeds that do not reach a level are infinite."""
        summaries = {"training_seconds": self.training_seconds, "utilization": self.utilization, "limit": self.limit}
        figures = {name: _summary_to_json(summary) for name, summary in summaries.items()}
        speeds = {f"{level:g}": _summary_to_json(summary) for level, summary in self.speeds.items()}
        return {"label": self.label, **figures, "up_bits_per_second": speeds}


def _summary_to_json(summary: SeedSummary) -> dict[str, float | int]:
    return {key: getattr(summary, key) for key in ("median", "low", "high", "mean", "reached", "n")}


def compute_utilizations(
    methods: Sequence[Method], pricing_models: Mapping[str, PricingModel], measured_coding: bool = False
) -> dict[str, tuple[MethodUtilization, ...]]:
    """Return the utilization of each method that can be priced, by the name of the network.

    Args:
        methods: methods, as from `load_methods`.
        pricing_models: pricing models by the name of the network.
        measured_coding: True for coding times that each run's machine measured.
    """
    results: dict[str, list[MethodUtilization]] = {name: [] for name in pricing_models}
    for method in methods:
        if any(run.why_not_repriceable for run in method.runs):
            continue
        priced_runs = zip(*(price(run, [*pricing_models.values()], measured_coding) for run in method.runs), strict=True)
        for name, runs in zip(pricing_models, priced_runs, strict=True):
            results[name].append(_summarize_utilization(method.label, runs))
    return {name: tuple(rows) for name, rows in results.items()}


def _summarize_utilization(label: str, priced_runs: Sequence[PricedRun]) -> MethodUtilization:
    network = priced_runs[0].pricing_model.network
    link, models = network.link, [run.round_time_model for run in priced_runs]
    scale_link = make_link_scaler(network)
    speeds = {
        level: summarize_seeds([find_utilization_speed(model, network, level) for model in models])
        for level in UTILIZATION_LEVELS
    }
    place = link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds
    return MethodUtilization(
        label,
        summarize_seeds([float(model.breakdown(*place).compute.mean()) for model in models]),
        summarize_seeds([model.utilization(*place) for model in models]),
        summarize_seeds([model.utilization(*scale_link(SPEEDS[-1])) for model in models]),
        speeds,
    )


def find_utilization_speed(round_time_model: RoundTimeModel, network: Network, level: float) -> float | None:
    """Return the lowest uplink speed at which the utilization reaches a level; None if it stays lower at all SPEEDS.

    The network's latency and its ratio of downlink to uplink speed are constant. The speed lies between two neighboring SPEEDS,
    or is the slowest of them; bisection finds the value.

    Args:
        round_time_model: round times of a run.
        network: network whose link is scaled.
        level: utilization, above 0 and below 1.
    """
    scale_link = make_link_scaler(network)
    index = next((i for i, speed in enumerate(SPEEDS) if round_time_model.utilization(*scale_link(speed)) >= level), None)
    if index is None or index == 0:
        return None if index is None else SPEEDS[0]
    low, high = math.log10(SPEEDS[index - 1]), math.log10(SPEEDS[index])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_reached = round_time_model.utilization(*scale_link(10.0**middle)) >= level
        low, high = (low, middle) if is_reached else (middle, high)
    speed: float = 10.0**high
    return speed
