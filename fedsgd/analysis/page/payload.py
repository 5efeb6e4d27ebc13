"""What the page knows: everything that its figures and its re-pricing need, as plain data.

Arrays of numbers are written as {"f8": base64 of little-endian float64}, so that the page computes with the very numbers that
Python does.
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
from fedsgd.analysis.comparison import compare
from fedsgd.analysis.compute_profile import describe_coding_source, find_uncosted_codecs
from fedsgd.analysis.differences import describe_other_differences, find_differing_settings
from fedsgd.analysis.ledger_stats import LedgerStats, read_ledger_stats
from fedsgd.analysis.methods import Method
from fedsgd.analysis.pricing import SPEEDS, PricedRun, price
from fedsgd.analysis.runs import Run
from fedsgd.analysis.tables import collect_measured_coding_notes, collect_uncosted_codec_notes
from fedsgd.config.python_objects import describe_missing_objects, find_markers
from fedsgd.experiment.divergence import LEARNING_RATE_HINT
from fedsgd.network import PricingModel
from fedsgd.network.profiles import load_networks
from fedsgd.network.round_times import CANDIDATE_COLUMNS

FORMAT_VERSION = 1
N_QUANTILES = 101
BREAKDOWN_KEYS = ("header", "index", "value", "side")
MAX_DRAWN_ROUNDS = 2000
TIME_COLUMNS = {
    **{name: name for name in ("offsets", *CANDIDATE_COLUMNS, "shared_down", "shared_up")},
    "serving": "server_seconds",
    "waiting": "lost_reply_wait",
    "due": "deadline",
}
"""Fields of `RoundTimeModel` by their keys in a payload."""


@dataclass(frozen=True)
class ReportOptions:
    """What a report is asked for. title; target: accuracy to be reached; terms: the network that the page begins with;
    network: what that is called; price_per_gigabyte: what 10⁹ bytes cost, in any currency, None if that is not asked;
    measured_coding: whether coding is by the clock of the machine that made each run."""

    title: str
    target: float
    pricing_model: PricingModel
    network_name: str
    price_per_gigabyte: float | None = None
    measured_coding: bool = False


def encode_array(values: ArrayLike) -> dict[str, str]:
    """Numbers as the page reads them."""
    return {"f8": base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()}


def build_payload(methods: Sequence[Method], options: ReportOptions) -> dict[str, Any]:
    """Of these methods, in this order."""
    network, differing = options.pricing_model.network, find_differing_settings(methods)
    return {
        "format": FORMAT_VERSION,
        "made_by": f"fedsgd {__version__}",
        "title": options.title,
        "target": options.target,
        "price_per_gigabyte": options.price_per_gigabyte,
        "speeds": encode_array(SPEEDS),
        "terms": {
            "network": options.network_name,
            "title": network.title,
            "source": network.source,
            "text": str(network),
            **asdict(network.link),
            "downlink": network.downlink,
            "device": _device_to_json(options.pricing_model.device),
            "server": {**_device_to_json(options.pricing_model.server), "text": options.pricing_model.server.copy_rate_text},
            "deadline_seconds": options.pricing_model.deadline_seconds,
        },
        "networks": [
            {"name": name, "title": one.title, "source": one.source, **asdict(one.link)}
            for name, one in load_networks().items()
        ],
        "coding": describe_coding_source(options.measured_coding),
        "methods": [_method_to_json(method, options, differing) for method in methods],
        "mixture": describe_other_differences(methods),
        "notes": list(_collect_notes(methods, options)),
    }


def _collect_notes(methods: Sequence[Method], options: ReportOptions) -> Iterator[str]:
    """What has to be known of all figures, wherever the sliders are."""
    if len({tuple(run.seed for run in method.runs) for method in methods}) > 1:
        yield "the methods were not run with the same seeds"
    broken = [method.label for method in methods if any(run.summary.get("failures") for run in method.runs)]
    if broken and options.pricing_model.deadline_seconds is None:
        yield f"some clients of {', '.join(broken)} broke down; where nothing was heard of one, its download alone counts"
    yield from collect_coding_notes(methods, options)


def collect_coding_notes(methods: Sequence[Method], options: ReportOptions) -> Iterator[str]:
    """Describe what a page or figures do not show of coding: codecs that count as nothing, and ranges by the clock."""
    priced = [method for method in methods if not any(run.why_not_repriceable for run in method.runs)]
    if options.measured_coding and priced:
        yield from collect_measured_coding_notes(
            compare(priced, options.target, {options.network_name: options.pricing_model}, measured_coding=True)
        )
    for method in priced if not options.measured_coding else ():
        yield from collect_uncosted_codec_notes(method.label, find_uncosted_codecs(method.runs[0]))


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
        (priced,) = price(run, [options.pricing_model], options.measured_coding)
        facts, timeline, paid = priced.ledger_stats, _round_times_to_json(priced), encode_array(priced.transferred_bytes)
    else:
        facts, timeline, paid = read_ledger_stats(run), None, None
    rounds, accuracies = zip(*run.measured_accuracies, strict=True) if run.measured_accuracies else ((), ())
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
        "measured": {"round": encode_array(rounds), "accuracy": encode_array(accuracies)},
        "up": encode_array(run.get_cumulative("uplink_bytes")),
        "down": encode_array(run.get_cumulative("downlink_bytes")),
        "broadcast": encode_array(run.get_cumulative("downlink_broadcast_bytes")),
        "paid": paid,
        "residual_norm": _downsample_column(run, "residual_norm"),
        "rounds_missed": _downsample_column(run, "rounds_missed"),
        "parts": _breakdown_to_json(run, facts),
        "clients_bytes": {
            "up": _encode_quantiles(facts.uplink_bytes_by_client),
            "down": _encode_quantiles(facts.downlink_bytes_by_client),
        },
        "timeline": timeline,
        "not_priced": run.why_not_repriceable,
    }


def _describe_required_objects(run: Run) -> str | None:
    """Return the sentence that says which Python objects a rerun of the scenario needs; None if it runs by itself."""
    markers = dict(find_markers(tomllib.loads(run.scenario_text)))
    return describe_missing_objects(markers) if markers else None


def _round_times_to_json(priced_run: PricedRun) -> dict[str, Any]:
    """A column that is the same throughout is one number."""
    columns: dict[str, Any] = {}
    for name, field in TIME_COLUMNS.items():
        values = getattr(priced_run.round_time_model, field)
        alike = name != "offsets" and len(values) and bool((values == values[0]).all())
        columns[name] = float(values[0]) if alike else encode_array(values)
    return {**columns, "work": asdict(priced_run.compute_profile)}


def _downsample_column(run: Run, column: str) -> dict[str, Any] | None:
    """A column over rounds, of a long run every so many; None if there is nothing."""
    values = run.rounds[column]
    at = np.flatnonzero(np.isfinite(values))
    if not len(at):
        return None
    at = at[:: -(-len(at) // MAX_DRAWN_ROUNDS)]
    return {"round": encode_array(at + 1), "value": encode_array(values[at])}


def _breakdown_to_json(run: Run, ledger_stats: LedgerStats) -> dict[str, Any]:
    """Where the bytes went; index_bytes and bound_bytes: of the updates that say where their coordinates are."""
    totals = {way: {part: run.summary[f"{way}link"][part] for part in BREAKDOWN_KEYS} for way in ("up", "down")}
    return {
        **totals,
        "index_bytes": ledger_stats.index_bytes,
        "bound_bytes": ledger_stats.bound_bytes,
        "kept": run.summary["uplink"]["kept"],
    }


def _encode_quantiles(values: Any) -> dict[str, str]:
    """Bytes of the clients at 0, 1, ..., 100 % when they are sorted by them."""
    return encode_array(np.quantile(values, np.linspace(0, 1, N_QUANTILES)))
