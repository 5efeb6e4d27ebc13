"""A report of runs: the page, or figures for a paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.figures import draw_figures
from fedsgd.analysis.methods import Method, RunSpec, load_methods
from fedsgd.analysis.page.html import render
from fedsgd.analysis.page.payload import ReportOptions, build_payload, collect_coding_notes
from fedsgd.errors import OutputError, ReportError
from fedsgd.network import PricingModel
from fedsgd.storage.run_directory import write_atomically


def write_report(
    run_specs: Sequence[RunSpec],
    out: Path,
    file_format: Literal["html", "pdf", "svg", "png"],
    *,
    target: float | None,
    tuned: Sequence[str],
    network_name: str,
    pricing_model: PricingModel,
    price_per_gigabyte: float | None,
    title: str | None,
    measured_coding: bool = False,
    on_notice: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write it; the files that were written. form: "html", or "pdf", "svg", "png" for figures in the folder `out`;
    measured_coding: whether coding is by the clock of the machine that made each run; say: is told of what is left out, of runs
    that differ in more than their method, and of what figures do not show of coding."""
    target = choose_default_target(load_methods(run_specs, None, tuned)) if target is None else target
    methods = load_methods(run_specs, target, tuned, on_notice)
    mixed = describe_other_differences(methods)
    if mixed is not None:
        on_notice(mixed)
    asked = ReportOptions(
        title or _build_title(methods), target, pricing_model, network_name, price_per_gigabyte, measured_coding
    )
    if file_format != "html":
        for text in collect_coding_notes(methods, asked):
            on_notice(text)
        return draw_figures(methods, asked, out, file_format)
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}")
    page = render(build_payload(methods, asked))
    write_atomically(out, page.encode())
    return [out]


def choose_default_target(methods: Sequence[Method]) -> float:
    """What runs were asked to reach, if all that were asked say the same, or else the highest whole percent that each method
    reaches in the median over its seeds."""
    asked = [run.settings.get(f"{table}.target_accuracy") for m in methods for run in m.runs for table in ("report", "stop")]
    wanted = {float(one) for one in asked if one is not None}
    if len(wanted) == 1:
        return wanted.pop()
    best = [method.best_variant.summarize_best_accuracy() for method in methods]
    known = [each.median for each in best if each is not None]
    if not known:
        raise ReportError("no accuracy was measured in these runs; give metrics.accuracy in [model], or use `fedsgd compare`")
    return max(0.01, math.floor(100 * min(known)) / 100)


def _build_title(methods: Sequence[Method]) -> str:
    names = list(dict.fromkeys(run.name for method in methods for run in method.runs))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
