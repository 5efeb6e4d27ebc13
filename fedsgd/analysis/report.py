"""Report of finished runs, as a page or as figures for a paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.figures import draw_figures
from fedsgd.analysis.fleet import FleetConfig
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
    fleet: FleetConfig | None = None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write a report to `out`, the file of a page ("html") or the folder of figures, and return the paths of the files.

    Without a target, `choose_default_target` chooses a target; without a title, the first three scenarios' names are the title.
    `tuned` has the dotted keys of tuned settings. The other options are those of `ReportOptions`. `on_notice` gets lines about
    ignored runs and other differences between methods; with figures, also about coding times.
    """
    target = choose_default_target(load_methods(run_specs, None, tuned)) if target is None else target
    methods = load_methods(run_specs, target, tuned, on_notice)
    differences = describe_other_differences(methods)
    if differences is not None:
        on_notice(differences)
    options = ReportOptions(
        title or _build_title(methods), target, pricing_model, network_name, price_per_gigabyte, measured_coding, fleet
    )
    if file_format != "html":
        for text in collect_coding_notes(methods, options):
            on_notice(text)
        return draw_figures(methods, options, out, file_format)
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}")
    page = render(build_payload(methods, options))
    write_atomically(out, page.encode())
    return [out]


def choose_default_target(methods: Sequence[Method]) -> float:
    """Return the target of the runs' scenarios if they agree, otherwise the highest whole percent that all methods reach.

    A method reaches an accuracy if its median best accuracy over seeds does. ReportError if no accuracy was measured.
    """
    runs = [run for method in methods for run in method.runs]
    settings = [run.settings.get(f"{section}.target_accuracy") for run in runs for section in ("report", "stop")]
    targets = {float(setting) for setting in settings if setting is not None}
    if len(targets) == 1:
        return targets.pop()
    summaries = [method.best_variant.summarize_best_accuracy() for method in methods]
    medians = [summary.median for summary in summaries if summary is not None]
    if not medians:
        raise ReportError("these runs have no measured accuracy; set metrics.accuracy in [model], or use `fedsgd compare`")
    return max(0.01, math.floor(100 * min(medians)) / 100)


def _build_title(methods: Sequence[Method]) -> str:
    names = list(dict.fromkeys(run.name for method in methods for run in method.runs))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
