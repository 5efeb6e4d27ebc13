"""The cells of a sweep: methods × grid × tuned values × seeds, each a scenario, a label and a folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsgd.errors import OutputError, ScenarioError
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.parsing import dump_table
from fedsgd.scenario.scenario import PythonObjects, Scenario, parse_scenario
from fedsgd.sweeps.labels import assign_unique_slugs, format_settings, shorten_keys
from fedsgd.sweeps.settings import DottedSettings, Grid
from fedsgd.system.user_files import read_text

SWEEP_FILE = "sweep.json"
FORMAT_VERSION = 1
DETERMINISTIC_ERRORS = ("RunError", "NonFiniteError")
"""How a run ends that would end so again."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep. folder: its run folder, below the sweep's; grid, tuned: dotted key → value; error: why it
    failed, and cause: by which error of fedsgd.errors."""

    folder: str
    label: str
    method: str
    grid: DottedSettings
    tuned: DottedSettings
    seed: int
    state: Literal["waiting", "finished", "failed"] = "waiting"
    error: str | None = None
    cause: str | None = None

    @property
    def diverged(self) -> bool:
        """Whether it ended in numbers that are not finite, which says something of the method."""
        return self.cause == "NonFiniteError"

    @property
    def group(self) -> str:
        """What it is but for its seed: the label and what is tuned."""
        text = format_settings(self.tuned, shorten_keys([*self.grid, *self.tuned]))
        return f"{self.label}, {text}" if text else self.label

    def __str__(self) -> str:
        return f"{self.group}, seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it stands. scenario: its name; tuned, grid: dotted keys; cells: in the order in which they run, then those of
    earlier calls that were not asked for in the last one."""

    out: Path
    scenario: str
    tuned: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = field(default=())

    @classmethod
    def read(cls, out: str | Path) -> Sweep:
        """The one in that folder; OutputError if there is none."""
        path = Path(out) / SWEEP_FILE
        try:
            raw = json.loads(read_text(path))
            if raw["format"] != FORMAT_VERSION:
                raise OutputError(f"{path}: got format {raw['format']!r}, expected {FORMAT_VERSION}")
            cells = tuple(Cell(**cell) for cell in raw["cells"])
            return cls(Path(out), raw["scenario"], tuple(raw["tuned"]), tuple(raw["grid"]), cells)
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path}: is not a sweep's ({type(error).__name__}: {error})") from None

    def to_json(self) -> str:
        """As sweep.json has it."""
        head = {"format": FORMAT_VERSION, "scenario": self.scenario, "tuned": self.tuned, "grid": self.grid}
        return json.dumps({**head, "cells": [asdict(cell) for cell in self.cells]}, indent=2, ensure_ascii=False) + "\n"

    def read_summary(self, cell: Cell) -> dict[str, Any] | None:
        """The summary.json of a finished cell, None for others."""
        if cell.state != "finished":
            return None
        summary: dict[str, Any] = json.loads((self.out / cell.folder / "summary.json").read_text(encoding="utf-8"))
        return summary


@dataclass(frozen=True)
class PlannedCell:
    """A cell, and what is to be run for it."""

    cell: Cell
    scenario: Scenario


def plan_cells(
    base: Scenario, methods: Mapping[str, DottedSettings], grid: Grid, tune: Grid, seeds: int, message_prefix: str
) -> list[PlannedCell]:
    """All cells, each with its scenario checked, in an order that gives a first impression early: all methods with one seed and
    one value of what is tuned before the next. Over the scenario go a method's settings, over these the grid's. where: what
    messages have in front of a method's name; ScenarioError names the cell.
    """
    table, names = dump_table(base), shorten_keys([*grid, *tune])
    rows = [(method, point, _format_label(method, point, names)) for method in methods for point in _expand_grid(grid)]
    labels = [label for *_, label in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ScenarioError(
                f'{message_prefix}two methods and grid values give the same label, "{label}": rename the method'
            )
    columns = list(_expand_grid(tune))
    folders = assign_unique_slugs(labels, reserved=(SWEEP_FILE,))
    below = assign_unique_slugs(dict.fromkeys(format_settings(point, names) for point in columns))
    if len(below) < len(columns):
        raise ScenarioError("tune: two values look the same when they are shown")
    out = []
    for seed, tuned, (method, point, label) in itertools.product(range(base.seed, base.seed + seeds), columns, rows):
        parts = [folders[label], *([below[format_settings(tuned, names)]] if tuned else []), f"seed-{seed}"]
        cell = Cell("/".join(parts), label, method, point, tuned, seed)
        try:
            ours = apply_settings(Scenario, table, methods[method])
            scenario = parse_scenario(apply_settings(Scenario, ours, {**point, **tuned, "seed": seed}))
            PythonObjects().check(scenario)
        except ScenarioError as error:
            raise ScenarioError(_format_cell_error(error, cell, table, methods[method], message_prefix)) from None
        out.append(PlannedCell(cell, scenario))
    return out


def _expand_grid(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _format_label(method: str, point: DottedSettings, names: Mapping[str, str]) -> str:
    return f"{method}, {format_settings(point, names)}" if point else method


def _format_cell_error(
    error: ScenarioError, cell: Cell, table: Mapping[str, Any], method: DottedSettings, message_prefix: str
) -> str:
    """The message with what it is about in front: the method, if that is wrong by itself, else the cell."""
    try:
        parse_scenario(apply_settings(Scenario, table, method))
    except ScenarioError as alone:
        if str(alone) == str(error):
            return f"{message_prefix}[{cell.method}]: {error}"
    return f'cell "{cell}": {error}'


def collect_keys(settings: Iterable[DottedSettings]) -> tuple[str, ...]:
    """All keys that any of them has, in order of appearance."""
    return tuple(dict.fromkeys(key for some in settings for key in some))
