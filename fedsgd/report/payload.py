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

from fedsgd import __version__
from fedsgd.divergence import HINT
from fedsgd.network import Terms
from fedsgd.network.profiles import networks
from fedsgd.network.timeline import COLUMNS, ROUND_COLUMNS
from fedsgd.python_objects import ask_for, find_markers
from fedsgd.report.compare import compare
from fedsgd.report.facts import Facts, read_facts
from fedsgd.report.methods import Method
from fedsgd.report.mixture import differing_settings, mixture
from fedsgd.report.price import SPEEDS, Priced, price
from fedsgd.report.runs import Run
from fedsgd.report.tables import clock_notes, uncounted_notes
from fedsgd.report.work import coding_text, uncounted_codecs

FORMAT = 1
QUANTILES = 101
PARTS = ("header", "index", "value", "side")
SHOWN_ROUNDS = 2000
TIMELINE = ("offsets", *COLUMNS, *ROUND_COLUMNS)


@dataclass(frozen=True)
class Asked:
    """What a report is asked for. title; target: accuracy to be reached; terms: the network that the page begins with;
    network: what that is called; price_per_gigabyte: what 10⁹ bytes cost, in any currency, None if that is not asked;
    measured_coding: whether coding is by the clock of the machine that made each run."""

    title: str
    target: float
    terms: Terms
    network: str
    price_per_gigabyte: float | None = None
    measured_coding: bool = False


def array(values: ArrayLike) -> dict[str, str]:
    """Numbers as the page reads them."""
    return {"f8": base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()}


def payload(methods: Sequence[Method], asked: Asked) -> dict[str, Any]:
    """Of these methods, in this order."""
    network, differing = asked.terms.network, differing_settings(methods)
    return {
        "format": FORMAT,
        "made_by": f"fedsgd {__version__}",
        "title": asked.title,
        "target": asked.target,
        "price_per_gigabyte": asked.price_per_gigabyte,
        "speeds": array(SPEEDS),
        "terms": {
            "network": asked.network,
            "title": network.title,
            "source": network.source,
            "text": str(network),
            **asdict(network.link),
            "downlink": network.downlink,
            "device": _device(asked.terms.device),
            "server": {**_device(asked.terms.server), "text": asked.terms.server.copies_text},
            "deadline_seconds": asked.terms.deadline_seconds,
        },
        "networks": [
            {"name": name, "title": one.title, "source": one.source, **asdict(one.link)} for name, one in networks().items()
        ],
        "coding": coding_text(asked.measured_coding),
        "methods": [_method(method, asked, differing) for method in methods],
        "mixture": mixture(methods),
        "notes": list(_notes(methods, asked)),
    }


def _notes(methods: Sequence[Method], asked: Asked) -> Iterator[str]:
    """What has to be known of all figures, wherever the sliders are."""
    if len({tuple(run.seed for run in method.runs) for method in methods}) > 1:
        yield "the methods were not run with the same seeds"
    broken = [method.label for method in methods if any(run.summary.get("failures") for run in method.runs)]
    if broken and asked.terms.deadline_seconds is None:
        yield f"some clients of {', '.join(broken)} broke down; where nothing was heard of one, its download alone counts"
    yield from coding_notes(methods, asked)


def coding_notes(methods: Sequence[Method], asked: Asked) -> Iterator[str]:
    """Describe what a page or figures do not show of coding: codecs that count as nothing, and ranges by the clock."""
    priced = [method for method in methods if not any(run.time_dependent for run in method.runs)]
    if asked.measured_coding and priced:
        yield from clock_notes(compare(priced, asked.target, {asked.network: asked.terms}, measured_coding=True))
    for method in priced if not asked.measured_coding else ():
        yield from uncounted_notes(method.label, uncounted_codecs(method.runs[0]))


def _device(device: Any) -> dict[str, Any]:
    return {**asdict(device), "text": str(device)}


def _method(method: Method, asked: Asked, differing: Sequence[str]) -> dict[str, Any]:
    settings = method.runs[0].settings
    return {
        "label": method.label,
        "uncompressed": method.uncompressed,
        "tuned": dict(method.chosen.tuned),
        "tried": [dict(variant.tuned) for variant in method.variants],
        "at_edge": list(method.at_edge),
        "failed_seeds": method.chosen.failed,
        "diverged": [f"the run with seed {seed} diverged: {text}; {HINT}" for seed, text in method.diverged.items()],
        "warnings": [f"warning: {text}" for text in method.warnings],
        "settings": {key: settings[key] for key in differing if key in settings},
        "runs": [_run(run, asked) for run in method.runs],
    }


def _run(run: Run, asked: Asked) -> dict[str, Any]:
    if run.time_dependent is None:
        (priced,) = price(run, [asked.terms], asked.measured_coding)
        facts, timeline, paid = priced.facts, _timeline(priced), array(priced.paid_bytes)
    else:
        facts, timeline, paid = read_facts(run), None, None
    rounds, accuracies = zip(*run.measured, strict=True) if run.measured else ((), ())
    return {
        "folder": str(run.folder),
        "seed": run.seed,
        "rounds": run.n_rounds,
        "clients": run.summary["clients"],
        "parameters": run.summary["parameters"],
        "digests": {key: run.summary[key] for key in ("params_sha256", "ledger_sha256")},
        "versions": run.summary["versions"],
        "scenario": run.text,
        "needs": _needs(run),
        "measured": {"round": array(rounds), "accuracy": array(accuracies)},
        "up": array(run.cumulative("uplink_bytes")),
        "down": array(run.cumulative("downlink_bytes")),
        "broadcast": array(run.cumulative("downlink_broadcast_bytes")),
        "paid": paid,
        "residual_norm": _thinned(run, "residual_norm"),
        "rounds_missed": _thinned(run, "rounds_missed"),
        "parts": _parts(run, facts),
        "clients_bytes": {"up": _quantiles(facts.clients_up), "down": _quantiles(facts.clients_down)},
        "timeline": timeline,
        "not_priced": run.time_dependent,
    }


def _needs(run: Run) -> str | None:
    """Return the sentence that says which Python objects a rerun of the scenario needs; None if it runs by itself."""
    markers = dict(find_markers(tomllib.loads(run.text)))
    return ask_for(markers) if markers else None


def _timeline(priced: Priced) -> dict[str, Any]:
    """A column that is the same throughout is one number."""
    columns: dict[str, Any] = {}
    for name in TIMELINE:
        values = getattr(priced.timeline, name)
        alike = name != "offsets" and len(values) and bool((values == values[0]).all())
        columns[name] = float(values[0]) if alike else array(values)
    return {**columns, "work": asdict(priced.work)}


def _thinned(run: Run, column: str) -> dict[str, Any] | None:
    """A column over rounds, of a long run every so many; None if there is nothing."""
    values = run.rounds[column]
    at = np.flatnonzero(np.isfinite(values))
    if not len(at):
        return None
    at = at[:: -(-len(at) // SHOWN_ROUNDS)]
    return {"round": array(at + 1), "value": array(values[at])}


def _parts(run: Run, facts: Facts) -> dict[str, Any]:
    """Where the bytes went; index_bytes and bound_bytes: of the updates that say where their coordinates are."""
    totals = {way: {part: run.summary[f"{way}link"][part] for part in PARTS} for way in ("up", "down")}
    return {
        **totals,
        "index_bytes": facts.index_bytes,
        "bound_bytes": facts.bound_bytes,
        "kept": run.summary["uplink"]["kept"],
    }


def _quantiles(values: Any) -> dict[str, str]:
    """Bytes of the clients at 0, 1, ..., 100 % when they are sorted by them."""
    return array(np.quantile(values, np.linspace(0, 1, QUANTILES)))
