"""Cells of a sweep: methods × grid × tuned values × seeds, each with a scenario, a label and a folder."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
TUNING_VALIDATION = 0.1
"""Share of validation examples in the cells of a sweep that tunes and does not set `[evaluation] validation`."""
DETERMINISTIC_ERRORS = ("RunError", "NonFiniteError")
"""Names of errors that count as a cell's result, because a repeated run is expected to raise them again."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        folder: run folder, relative to the sweep's folder.
        label: method, and the values of the grid.
        grid, tuned: values of the grid, and tuned values, by dotted key.
        error: message of the error that the run failed with.
        cause: name of the error's class in fedsgd.errors.
    """

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
        """True if the run failed because of numbers that are not finite, which is a result for the method."""
        return self.cause == "NonFiniteError"

    @property
    def group(self) -> str:
        """Label and tuned values; equal for cells that differ only in the seed."""
        text = format_settings(self.tuned, shorten_keys([*self.grid, *self.tuned]))
        return f"{self.label}, {text}" if text else self.label

    def __str__(self) -> str:
        return f"{self.group}, seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """State of a sweep.

    Attributes:
        scenario: name of the scenario.
        tuned, grid: dotted keys of the tuned settings and of the grid.
        cells: planned cells in the order in which they run, then finished cells of earlier calls that are no longer planned.
    """

    out: Path
    scenario: str
    tuned: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = field(default=())

    def __repr__(self) -> str:
        states = Counter(cell.state for cell in self.cells)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        return f'Sweep("{self.out}": {self.scenario}, {len(self.cells)} cells: {counts})'

    @classmethod
    def read(cls, out: str | Path) -> Sweep:
        """Read the sweep of a folder from its sweep.json, or raise an OutputError."""
        path = Path(out) / SWEEP_FILE
        try:
            table = json.loads(read_text(path))
            if table["format"] != FORMAT_VERSION:
                raise OutputError(f"{path}: got format {table['format']!r}, expected {FORMAT_VERSION}")
            cells = tuple(Cell(**cell) for cell in table["cells"])
            for cell in cells:
                if not (isinstance(cell.folder, str) and isinstance(cell.grid, dict) and isinstance(cell.tuned, dict)):
                    raise TypeError(f"cell {cell.folder!r}: expected a text as folder, and tables as grid and tuned")
            return cls(Path(out), table["scenario"], tuple(table["tuned"]), tuple(table["grid"]), cells)
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path}: not the file of a sweep ({type(error).__name__}: {error})") from None

    def to_json(self) -> str:
        """Return the contents of sweep.json."""
        head = {"format": FORMAT_VERSION, "scenario": self.scenario, "tuned": self.tuned, "grid": self.grid}
        return json.dumps({**head, "cells": [asdict(cell) for cell in self.cells]}, indent=2, ensure_ascii=False) + "\n"

    def read_summary(self, cell: Cell) -> dict[str, Any] | None:
        """Return the contents of summary.json of a finished cell, None for other cells."""
        if cell.state != "finished":
            return None
        summary: dict[str, Any] = json.loads((self.out / cell.folder / "summary.json").read_text(encoding="utf-8"))
        return summary


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the checked scenario of its run."""

    cell: Cell
    scenario: Scenario


def plan_cells(
    base: Scenario, methods: Mapping[str, DottedSettings], grid: Grid, tune: Grid, seeds: int, message_prefix: str
) -> list[PlannedCell]:
    """Return all cells, each with a checked scenario.

    All methods run with one seed and one combination of tuned values before the next, so that comparisons are possible early.
    Settings of a method replace settings of the scenario; values of the grid, tuned values and the seed replace both.

    If settings are tuned, `[evaluation] validation` is `TUNING_VALIDATION` in each cell that does not set it.

    Labels have the values of `grid`, not of `tune`. Seeds are numbered from the scenario's seed on. `message_prefix` precedes a
    method's name in messages, such as the methods' file. A wrong scenario, and equal labels, raise a ScenarioError.
    """
    table, names = dump_table(base), shorten_keys([*grid, *tune])
    rows = [(method, point, _format_label(method, point, names)) for method in methods for point in _expand_grid(grid)]
    labels = [label for *_, label in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ScenarioError(
                f'{message_prefix}two pairs of method and grid values are called "{label}": rename a method or change a value'
            )
    columns = list(_expand_grid(tune))
    folders = assign_unique_slugs(labels, reserved=(SWEEP_FILE,))
    subfolders = assign_unique_slugs(dict.fromkeys(format_settings(point, names) for point in columns))
    if len(subfolders) < len(columns):
        raise ScenarioError("tune: two values have the same text in a label")
    plan = []
    for seed, tuned, (method, point, label) in itertools.product(range(base.seed, base.seed + seeds), columns, rows):
        parts = [folders[label], *([subfolders[format_settings(tuned, names)]] if tuned else []), f"seed-{seed}"]
        cell = Cell("/".join(parts), label, method, point, tuned, seed)
        try:
            method_table = apply_settings(Scenario, table, methods[method])
            scenario = parse_scenario(apply_settings(Scenario, method_table, {**point, **tuned, "seed": seed}))
            scenario = _set_validation(scenario, is_tuned=bool(tune))
            PythonObjects().check(scenario)
        except ScenarioError as error:
            raise ScenarioError(_format_cell_error(error, cell, table, methods[method], message_prefix)) from None
        plan.append(PlannedCell(cell, scenario))
    return plan


def _set_validation(scenario: Scenario, is_tuned: bool) -> Scenario:
    """Return a cell's scenario with the share of validation examples of a sweep that tunes, if the scenario does not set it.

    The share 0 is removed, because cells of earlier releases do not have the key and are equal runs.
    """
    share = scenario.evaluation.validation
    if is_tuned and share is None:
        return replace(scenario, evaluation=replace(scenario.evaluation, validation=TUNING_VALIDATION))
    return scenario if share != 0 else replace(scenario, evaluation=replace(scenario.evaluation, validation=None))


def _expand_grid(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _format_label(method: str, point: DottedSettings, names: Mapping[str, str]) -> str:
    return f"{method}, {format_settings(point, names)}" if point else method


def _format_cell_error(
    error: ScenarioError, cell: Cell, table: Mapping[str, Any], method: DottedSettings, message_prefix: str
) -> str:
    """Return an error's message after its subject: the method, if the method alone gives the same error, else the cell."""
    try:
        parse_scenario(apply_settings(Scenario, table, method))
    except ScenarioError as method_error:
        if str(method_error) == str(error):
            return f"{message_prefix}[{cell.method}]: {error}"
    return f'cell "{cell}": {error}'


def collect_keys(settings: Iterable[DottedSettings]) -> tuple[str, ...]:
    """Return the keys of all settings, in order of appearance.

    >>> collect_keys([{"uplink.density": 0.1}, {"client.lr": 0.2, "uplink.density": 0.01}])
    ('uplink.density', 'client.lr')
    """
    return tuple(dict.fromkeys(key for table in settings for key in table))
