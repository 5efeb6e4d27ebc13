"""The cells of a sweep: methods × grid × tuned values × seeds, each a scenario, a label and a folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsgd.errors import OutputError, ScenarioError
from fedsgd.overrides import apply_settings
from fedsgd.scenario import PythonObjects, Scenario, from_dict
from fedsgd.schema import to_table
from fedsgd.sweeps.naming import settings_text, short_names, unique_slugs
from fedsgd.sweeps.settings import Grid, Settings
from fedsgd.user_files import read_text

SWEEP_FILE = "sweep.json"
FORMAT = 1
OWN_RESULTS = ("RunError", "NonFiniteError")
"""How a run ends that would end so again."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep. folder: its run folder, below the sweep's; grid, tuned: dotted key → value; error: why it
    failed, and cause: by which error of fedsgd.errors."""

    folder: str
    label: str
    method: str
    grid: Settings
    tuned: Settings
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
        text = settings_text(self.tuned, short_names([*self.grid, *self.tuned]))
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
            if raw["format"] != FORMAT:
                raise OutputError(f"{path}: got format {raw['format']!r}, expected {FORMAT}")
            cells = tuple(Cell(**cell) for cell in raw["cells"])
            return cls(Path(out), raw["scenario"], tuple(raw["tuned"]), tuple(raw["grid"]), cells)
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path}: is not a sweep's ({type(error).__name__}: {error})") from None

    def to_json(self) -> str:
        """As sweep.json has it."""
        head = {"format": FORMAT, "scenario": self.scenario, "tuned": self.tuned, "grid": self.grid}
        return json.dumps({**head, "cells": [asdict(cell) for cell in self.cells]}, indent=2, ensure_ascii=False) + "\n"

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """The summary.json of a finished cell, None for others."""
        if cell.state != "finished":
            return None
        summary: dict[str, Any] = json.loads((self.out / cell.folder / "summary.json").read_text(encoding="utf-8"))
        return summary


@dataclass(frozen=True)
class Planned:
    """A cell, and what is to be run for it."""

    cell: Cell
    scenario: Scenario


def planned(base: Scenario, methods: Mapping[str, Settings], grid: Grid, tune: Grid, seeds: int, where: str) -> list[Planned]:
    """All cells, each with its scenario checked, in an order that gives a first impression early: all methods with one seed and
    one value of what is tuned before the next. Over the scenario go a method's settings, over these the grid's. where: what
    messages have in front of a method's name; ScenarioError names the cell.
    """
    table, names = to_table(base), short_names([*grid, *tune])
    rows = [(method, point, _label(method, point, names)) for method in methods for point in _product(grid)]
    labels = [label for *_, label in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ScenarioError(f'{where}two methods and grid values give the same label, "{label}": rename the method')
    columns = list(_product(tune))
    folders = unique_slugs(labels, taken=(SWEEP_FILE,))
    below = unique_slugs(dict.fromkeys(settings_text(point, names) for point in columns))
    if len(below) < len(columns):
        raise ScenarioError("tune: two values look the same when they are shown")
    out = []
    for seed, tuned, (method, point, label) in itertools.product(range(base.seed, base.seed + seeds), columns, rows):
        parts = [folders[label], *([below[settings_text(tuned, names)]] if tuned else []), f"seed-{seed}"]
        cell = Cell("/".join(parts), label, method, point, tuned, seed)
        try:
            ours = apply_settings(Scenario, table, methods[method])
            scenario = from_dict(apply_settings(Scenario, ours, {**point, **tuned, "seed": seed}))
            PythonObjects().check(scenario)
        except ScenarioError as error:
            raise ScenarioError(_blamed(error, cell, table, methods[method], where)) from None
        out.append(Planned(cell, scenario))
    return out


def _product(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _label(method: str, point: Settings, names: Mapping[str, str]) -> str:
    return f"{method}, {settings_text(point, names)}" if point else method


def _blamed(error: ScenarioError, cell: Cell, table: Mapping[str, Any], method: Settings, where: str) -> str:
    """The message with what it is about in front: the method, if that is wrong by itself, else the cell."""
    try:
        from_dict(apply_settings(Scenario, table, method))
    except ScenarioError as alone:
        if str(alone) == str(error):
            return f"{where}[{cell.method}]: {error}"
    return f'cell "{cell}": {error}'


def keys_of(settings: Iterable[Settings]) -> tuple[str, ...]:
    """All keys that any of them has, in order of appearance."""
    return tuple(dict.fromkeys(key for some in settings for key in some))
