"""A report of runs: the page, or figures for a paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from fedsgd.errors import OutputError, ReportError
from fedsgd.network import Terms
from fedsgd.report.methods import Given, Method, gather
from fedsgd.report.mixture import mixture
from fedsgd.report.payload import Asked, coding_notes, payload
from fedsgd.run_folder import write


def make(
    runs: Sequence[Given],
    out: Path,
    form: Literal["html", "pdf", "svg", "png"],
    *,
    target: float | None,
    tuned: Sequence[str],
    network: str,
    terms: Terms,
    price_per_gigabyte: float | None,
    title: str | None,
    measured_coding: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write it; the files that were written. form: "html", or "pdf", "svg", "png" for figures in the folder `out`;
    measured_coding: whether coding is by the clock of the machine that made each run; say: is told of what is left out, of runs
    that differ in more than their method, and of what figures do not show of coding."""
    target = default_target(gather(runs, None, tuned)) if target is None else target
    methods = gather(runs, target, tuned, say)
    mixed = mixture(methods)
    if mixed is not None:
        say(mixed)
    asked = Asked(title or _title(methods), target, terms, network, price_per_gigabyte, measured_coding)
    if form != "html":
        for text in coding_notes(methods, asked):
            say(text)
        from fedsgd.report.figures import draw

        return draw(methods, asked, out, form)
    from fedsgd.report.page import render

    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}")
    page = render(payload(methods, asked))
    write(out, page.encode())
    return [out]


def default_target(methods: Sequence[Method]) -> float:
    """What runs were asked to reach, if all that were asked say the same, or else the highest whole percent that each method
    reaches in the median over its seeds."""
    asked = [run.settings.get(f"{table}.target_accuracy") for m in methods for run in m.runs for table in ("report", "stop")]
    wanted = {float(one) for one in asked if one is not None}
    if len(wanted) == 1:
        return wanted.pop()
    best = [method.chosen.best_accuracy() for method in methods]
    known = [each.median for each in best if each is not None]
    if not known:
        raise ReportError("no accuracy was measured in these runs; give metrics.accuracy in [model], or use `fedsgd compare`")
    return max(0.01, math.floor(100 * min(known)) / 100)


def _title(methods: Sequence[Method]) -> str:
    names = list(dict.fromkeys(run.name for method in methods for run in method.runs))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
