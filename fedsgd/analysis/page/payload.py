"""Payload of the page: all data that its figures and prices need.

Arrays are written as {"f8": base64 of little-endian float64}, without rounding; constant round times as one number.
"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedsgd._version import __version__
from fedsgd.analysis.columns import describe_tuning_costs
from fedsgd.analysis.comparison import compare
from fedsgd.analysis.compute_profile import describe_coding_source, find_uncosted_codecs
from fedsgd.analysis.differences import describe_other_differences, find_differing_settings
from fedsgd.analysis.fleet import FleetConfig
from fedsgd.analysis.ledger_stats import LedgerStats, read_ledger_stats
from fedsgd.analysis.methods import Method
from fedsgd.analysis.page.fleet_payload import build_fleet_payload
from fedsgd.analysis.page.statistics_payload import build_statistics_payload
from fedsgd.analysis.pricing import SPEEDS, PricedRun, price
from fedsgd.analysis.runs import Run
from fedsgd.analysis.tables import collect_measured_coding_notes, collect_uncosted_codec_notes
from fedsgd.analysis.tuning import uses_validation
from fedsgd.analysis.utilization import UTILIZATION_LEVELS
from fedsgd.config.python_objects import describe_missing_objects, find_markers
from fedsgd.experiment.divergence import LEARNING_RATE_HINT
from fedsgd.network import PricingModel
from fedsgd.network.profiles import NETWORKS
from fedsgd.network.round_times import CANDIDATE_COLUMNS
from fedsgd.scenario.target import Target

FORMAT_VERSION = 1
N_QUANTILES = 101
"""Number of quantiles of the clients' bytes: 0, 1, ..., 100 %."""
BREAKDOWN_KEYS = ("header", "index", "value", "side")
MAX_DRAWN_ROUNDS = 2000
"""Maximum number of points of the curves of residual norms and missed rounds."""
TIME_COLUMNS = {
    **{name: name for name in ("offsets", *CANDIDATE_COLUMNS, "shared_down", "shared_up")},
    "serving": "server_seconds",
    "waiting": "lost_reply_wait",
    "due": "deadline",
}
"""Field of `RoundTimeModel` for each key of "timeline" in a payload, except "work"."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        title: heading of the page.
        target: target of the figures, with which the page starts.
        pricing_model: network, devices and deadline of the figures, and initial values of the controls on the page.
        network_name: name of the network in the report.
        price_per_gigabyte: price of 10⁹ bytes, in any currency; None: the report has no costs.
        measured_coding: True for coding times that each run's machine measured, False for those of the cost table.
        fleet: initial values of the page's fleet; None for the clients of the runs.
        baseline: label of the method that ratios refer to; None for the first uncompressed method, otherwise the first method.
    """

    title: str
    target: Target
    pricing_model: PricingModel
    network_name: str
    price_per_gigabyte: float | None = None
    measured_coding: bool = False
    fleet: FleetConfig | None = None
    baseline: str | None = None


def encode_array(values: ArrayLike) -> dict[str, str]:
    """Return an array in the form that the page reads.

    >>> encode_array([1.0])
    {'f8': 'AAAAAAAA8D8='}
    """
    return {"f8": base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()}


def build_payload(methods: Sequence[Method], options: ReportOptions) -> dict[str, Any]:
    """Return the payload of a page about these methods, in their order."""
    network, differing_keys = options.pricing_model.network, find_differing_settings(methods)
    comparison = compare(methods, options.target, baseline=options.baseline)
    return {
        "format": FORMAT_VERSION,
        "made_by": f"fedsgd {__version__}",
        "title": options.title,
        "target": options.target.threshold,
        "metric": {
            "name": options.target.metric,
            "direction": options.target.direction,
            "best": options.target.criterion.best_name,
        },
        "price_per_gigabyte": options.price_per_gigabyte,
        "speeds": encode_array(SPEEDS),
        "utilization_levels": list(UTILIZATION_LEVELS),
        "terms": {
            "network": options.network_name,
            "title": network.title,
            "source": network.source,
            "text": str(network),
            **asdict(network.link),
            "downlink": network.downlink,
            "device": _device_to_json(options.pricing_model.device),
            "training_seconds": options.pricing_model.training_seconds,
            "server": {**_device_to_json(options.pricing_model.server), "text": options.pricing_model.server.copy_rate_text},
            "deadline_seconds": options.pricing_model.deadline_seconds,
        },
        "networks": [
            {"name": name, "title": profile.title, "source": profile.source, **asdict(profile.link)}
            for name, profile in ((name, NETWORKS[name]) for name in NETWORKS)
        ],
        "coding": describe_coding_source(options.measured_coding),
        "methods": [_method_to_json(method, options, differing_keys) for method in methods],
        "baseline": comparison.baseline.label,
        "statistics": build_statistics_payload(comparison),
        "mixture": describe_other_differences(methods),
        "notes": [*_collect_notes(methods, options), *describe_tuning_costs(comparison)],
        "fleet": build_fleet_payload(methods, options.fleet, options.price_per_gigabyte, network, encode_array),
    }


def _collect_notes(methods: Sequence[Method], options: ReportOptions) -> Iterator[str]:
    """Yield notes on seeds, failed clients and coding times, which do not depend on the page's controls."""
    if len({frozenset((*(run.seed for run in m.runs), *m.best_variant.failed_seeds)) for m in methods}) > 1:
        yield "the methods were not run with the same seeds"
    labels = [method.label for method in methods if any(run.summary.get("failures") for run in method.runs)]
    if labels and options.pricing_model.deadline_seconds is None:
        yield f"some clients of {', '.join(labels)} failed; a client without a reply counts with download and decoding only"
    yield from collect_coding_notes(methods, options)


def collect_coding_notes(methods: Sequence[Method], options: ReportOptions) -> Iterator[str]:
    """Yield notes on coding times: codecs without costs in the table or, for measured times, their ranges."""
    priceable = [method for method in methods if not any(run.why_not_repriceable for run in method.runs)]
    if options.measured_coding and priceable:
        yield from collect_measured_coding_notes(
            compare(priceable, options.target, {options.network_name: options.pricing_model}, measured_coding=True)
        )
    labels_by_codec: dict[str, list[str]] = {}
    for method in priceable if not options.measured_coding else ():
        for name in find_uncosted_codecs(method.runs[0]):
            labels_by_codec.setdefault(name, []).append(method.label)
    for name, labels in labels_by_codec.items():
        yield from collect_uncosted_codec_notes(", ".join(labels), [name])


def _device_to_json(device: Any) -> dict[str, Any]:
    return {**asdict(device), "text": str(device)}


def _method_to_json(method: Method, options: ReportOptions, differing_keys: Sequence[str]) -> dict[str, Any]:
    settings = method.runs[0].settings
    return {
        "label": method.label,
        "uncompressed": method.uncompressed,
        "tuned": dict(method.best_variant.tuned),
        "tried": [dict(variant.tuned) for variant in method.variants],
        "at_edge": list(method.grid_edge_keys),
        "on_validation": method.tuned_on is not None and uses_validation(method.tuned_on),
        "failed_seeds": method.best_variant.n_failed,
        "diverged": [
            f"the run with seed {seed} diverged: {text}; {LEARNING_RATE_HINT}"
            for seed, text in method.divergence_by_seed.items()
        ],
        "warnings": [f"warning: {text}" for text in method.warnings],
        "settings": {key: settings[key] for key in differing_keys if key in settings},
        "runs": [_run_to_json(run, options) for run in method.runs],
    }


def _run_to_json(run: Run, options: ReportOptions) -> dict[str, Any]:
    if run.why_not_repriceable is None:
        (priced_run,) = price(run, [options.pricing_model], options.measured_coding)
        stats, timeline = priced_run.ledger_stats, _round_times_to_json(priced_run)
        transferred_bytes = encode_array(priced_run.transferred_bytes)
    else:
        stats, timeline, transferred_bytes = read_ledger_stats(run), None, None
    measurements = run.get_measurements(options.target.metric)
    rounds, values = zip(*measurements, strict=True) if measurements else ((), ())
    return {
        "folder": str(run.folder),
        "seed": run.seed,
        "rounds": run.n_rounds,
        "clients": run.summary["clients"],
        "parameters": run.summary["parameters"],
        "digests": {key: run.summary[key] for key in ("params_sha256", "ledger_sha256")},
        "versions": run.summary["versions"],
        "scenario": run.scenario_text,
        "needs": _describe_required_objects(run),
        "measured": {"round": encode_array(rounds), "value": encode_array(values)},
        "up": encode_array(run.get_cumulative("uplink_bytes")),
        "down": encode_array(run.get_cumulative("downlink_bytes")),
        "broadcast": encode_array(run.get_cumulative("downlink_broadcast_bytes")),
        "paid": transferred_bytes,
        "residual_norm": _downsample_column(run, "residual_norm"),
        "rounds_missed": _downsample_column(run, "rounds_missed"),
        "parts": _breakdown_to_json(run, stats),
        "clients_bytes": {
            "up": _encode_quantiles(stats.uplink_bytes_by_client),
            "down": _encode_quantiles(stats.downlink_bytes_by_client),
        },
        "timeline": timeline,
        "not_priced": run.why_not_repriceable,
    }


def _describe_required_objects(run: Run) -> str | None:
    """Return a predicate, "needs ...", about the Python objects that the scenario needs to run; None without such objects."""
    markers = dict(find_markers(tomllib.loads(run.scenario_text)))
    return describe_missing_objects(markers) if markers else None


def _round_times_to_json(priced_run: PricedRun) -> dict[str, Any]:
    """Return `TIME_COLUMNS`, a constant column as one number (offsets: always an array), and the compute profile as "work"."""
    columns: dict[str, Any] = {}
    for name, field in TIME_COLUMNS.items():
        values = getattr(priced_run.round_time_model, field)
        is_constant = name != "offsets" and len(values) and bool((values == values[0]).all())
        columns[name] = float(values[0]) if is_constant else encode_array(values)
    return {**columns, "work": asdict(priced_run.compute_profile)}


def _downsample_column(run: Run, column: str) -> dict[str, Any] | None:
    """Return every j-th finite value of a column, at most MAX_DRAWN_ROUNDS, with its round; None without finite values."""
    values = run.rounds[column]
    indices = np.flatnonzero(np.isfinite(values))
    if not len(indices):
        return None
    indices = indices[:: -(-len(indices) // MAX_DRAWN_ROUNDS)]
    return {"round": encode_array(indices + 1), "value": encode_array(values[indices])}


def _breakdown_to_json(run: Run, ledger_stats: LedgerStats) -> dict[str, Any]:
    """Return bytes by direction and part of a frame; for the uplink, bytes of positions, their lower bound, and coordinates."""
    totals = {key: {part: run.summary[f"{key}link"][part] for part in BREAKDOWN_KEYS} for key in ("up", "down")}
    return {
        **totals,
        "index_bytes": ledger_stats.index_bytes,
        "bound_bytes": ledger_stats.bound_bytes,
        "kept": run.summary["uplink"]["kept"],
    }


def _encode_quantiles(values: Any) -> dict[str, str]:
    """Return the N_QUANTILES quantiles of the clients' bytes, as the page reads arrays."""
    return encode_array(np.quantile(values, np.linspace(0, 1, N_QUANTILES)))
