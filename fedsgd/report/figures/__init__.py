"""Figures for a paper, at the width of one column or of two, drawn from what the ledger has and Python's own price says."""

from __future__ import annotations

from fedsgd.report.figures.style import paper

# isort: split
# what is above is imported before matplotlib, and lets it be imported whatever MPLBACKEND names
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from fedsgd.errors import OutputError, cannot_write, did_you_mean
from fedsgd.report.figures.accuracy import accuracy_bytes, accuracy_rounds, accuracy_time, pareto
from fedsgd.report.figures.bars import anatomy, round_time
from fedsgd.report.figures.clients import clients, memory
from fedsgd.report.figures.shown import Shown, show
from fedsgd.report.figures.speeds import link_speed
from fedsgd.report.methods import Method
from fedsgd.report.payload import Asked
from fedsgd.run_folder import write

Format = Literal["pdf", "svg", "png"]
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
FORMATS = tuple(METADATA)
FIGURES: dict[str, Callable[[Sequence[Shown], Asked], Figure | None]] = {
    "accuracy-bytes": accuracy_bytes,
    "accuracy-rounds": accuracy_rounds,
    "accuracy-time": accuracy_time,
    "link-speed": link_speed,
    "pareto": pareto,
    "anatomy": anatomy,
    "round-time": round_time,
    "clients": clients,
    "memory": memory,
}
"""By the name of their file. Each is None where it would be empty: those of accuracy if none was measured, of time if no run
can be priced, of link speeds if no run gets to the target, of memory if no client has any."""


def draw(methods: Sequence[Method], asked: Asked, folder: Path, format: Format) -> list[Path]:
    """All FIGURES that there is something to show in, a file each. Equal runs give equal files, and an error leaves none half
    written.

    The folder is made if its parent is there. OutputError for an unknown format, or if a file cannot be written; ReportError as
    of `price`.
    """
    check(folder, format)
    with paper():
        made = {name: _saved(figure, format) for name, figure in figures(methods, asked).items()}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    for name, data in made.items():
        write(folder / f"{name}.{format}", data)
    return [folder / f"{name}.{format}" for name in made]


def check(folder: Path, format: str) -> None:
    """OutputError unless figures of that format can be written there."""
    if format not in FORMATS:
        raise OutputError(f'got the format "{format}"{did_you_mean(format, FORMATS)}')
    if not folder.parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder")


def figures(methods: Sequence[Method], asked: Asked) -> dict[str, Figure]:
    """What `draw` saves, by name; each run is priced once."""
    with paper():
        shown = show(methods, asked)
        made = {name: make(shown, asked) for name, make in FIGURES.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def _saved(figure: Figure, format: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=format, metadata=METADATA[format])
    return data.getvalue()
