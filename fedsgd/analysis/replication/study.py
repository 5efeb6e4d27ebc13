"""Studies: published tables with the settings of each cell, read from study.toml.

A study is a folder with study.toml and either a scenario, whose runs give the figures, or a script that computes them.

| key of study.toml | meaning |
|---|---|
| title, source | what is replicated, and the paper with its table |
| scenario, script | scenario file of the runs; or a Python file with a function `compute_cells()` |
| measure | figure of a cell, a name of MEASURES |
| tolerance | factor, or for accuracies and losses the difference, within which a figure counts as reproduced |
| baseline | cell to which the measures "accuracy-difference" and "speedup" refer |
| counting | counting rule of the paper's bytes, a name of `COUNTING_RULES` |
| networks | networks on which the time to the target is computed: names, or rates such as "10 Mbit/s" in both directions |
| device | device of the clients for these times |
| seeds | number of runs of a cell |
| tune | values of dotted keys, of which one is selected for each cell, by runs with another seed |
| differences | what differs from the paper's set-up, and the settings that the paper leaves out |
| cells | a table for each cell, see `StudyCell` |
| claims | comparisons of two cells, see `Claim` |
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsgd.analysis.replication.counting_rules import COUNTING_RULES, CountingRule, MessageCounts, get_counting_rule
from fedsgd.config.component import FieldError, PositiveInt, ValidatedConfig, field_types
from fedsgd.config.quantities import parse_rate
from fedsgd.errors import ReportError, ScenarioError, suggest_name
from fedsgd.network import Link, Network, get_device, get_network
from fedsgd.system.user_files import expand_user_path, read_text

Measure = Literal[
    "rounds", "speedup", "accuracy", "final-accuracy", "accuracy-difference", "loss", "uplink-bytes", "ratio", "bits"
]
"""Figure of a cell: rounds to the target, the baseline's rounds divided by them, best or final accuracy, the final accuracy
minus that of the baseline, lowest loss, uplink bytes to the target; and for scripts a compression ratio, or bits of a
coordinate."""
SCRIPT_MEASURES = ("ratio", "bits")
"""Measures of scripts; others are of runs."""
RELATIVE = ("speedup", "accuracy-difference")
BY_DIFFERENCE = ("accuracy", "final-accuracy", "accuracy-difference", "loss")
"""Measures that are compared by their difference; others by their ratio."""
TO_TARGET = ("rounds", "uplink-bytes")
SMALLER_IS_BETTER = (*TO_TARGET, "loss", "bits")
VERDICTS = REPRODUCED, KNOWN, UNKNOWN, NOT_RUN, UNPUBLISHED = (
    "reproduced",
    "differs, cause known",
    "differs, cause unknown",
    "not run",
    "no published figure",
)
"""Verdicts on a cell."""
STUDY_FILE, RESULTS_FILE, REPORT_FILE = "study.toml", "results.json", "RESULTS.md"
STUDIES_FOLDER = Path("scenarios")


@dataclass(frozen=True)
class StudyCell(ValidatedConfig):
    """Cell of a published table.

    Attributes:
        paper: published figure; None where the paper has none.
        settings: settings over the study's scenario, nested or dotted.
        seeds: number of runs; None for that of the study.
        tune: values by dotted key; None for those of the study.
        baseline: label of the cell to which a relative measure refers; None for that of the study.
        counting: counting rule of this cell; None for that of the study, "" for none.
        expected: verdict of the committed results, which the quick form compares with its own; None without a check.
        cause: known cause of a difference, for the verdict.
        quick: settings of the quick form, over `settings`; None if the cell is not part of it.
    """

    paper: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: PositiveInt | None = None
    tune: dict[str, Any] | None = None
    baseline: str | None = None
    counting: str | None = None
    expected: str | None = None
    cause: str = ""
    quick: dict[str, Any] | None = None


@dataclass(frozen=True)
class Claim(ValidatedConfig):
    """Statement of a paper about two cells: the figure of `better` is at least that of `worse` − `margin`.

    Attributes:
        text: the statement, with its source.
        better, worse: labels of cells. For rounds and bytes, the smaller figure is the better one.
        margin: difference by which `better` may be worse: of the figure for accuracies and losses, in shares of it for others.
        expected: verdict of the committed results, which the quick form compares with its own; None without a check.
    """

    text: str
    better: str
    worse: str
    margin: float = 0.0
    expected: Literal["holds", "does not hold"] | None = None


@dataclass(frozen=True)
class Study(ValidatedConfig):
    """Published table, as study.toml describes it; the module has the keys.

    Attributes:
        folder: folder of the study, as text.
        cells: cells by label, in the order in which they run.
    """

    folder: str
    title: str
    source: str
    measure: Measure
    tolerance: float
    cells: dict[str, Any]
    scenario: str | None = None
    script: str | None = None
    baseline: str | None = None
    counting: str | None = None
    networks: tuple[str, ...] = ()
    device: str = "phone"
    seeds: PositiveInt = 3
    tune: dict[str, Any] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.scenario is None) == (self.script is None):
            raise FieldError("study", "scenario", 'expected "scenario" or "script", and only one of them')
        if self.tolerance < (0 if self.measure in BY_DIFFERENCE else 1):
            expected = "a difference of at least 0" if self.measure in BY_DIFFERENCE else "a factor of at least 1"
            raise FieldError("study", "tolerance", f"got {self.tolerance:g}, expected {expected}")
        if (self.measure in RELATIVE) != (self.baseline is not None):
            raise FieldError("study", "baseline", f"expected with the measures {' and '.join(RELATIVE)}, and only with them")
        rules = [("counting", self.counting), *((f"cells.{k}.counting", cell.counting) for k, cell in self.cells.items())]
        for key, rule in rules:
            _check_rule(key, rule)
        for label, cell in self.cells.items():
            if not label.strip() or not label.isprintable():
                raise FieldError("study", f"cells.{label!r}", "expected a label of printable characters")
            if cell.paper is not None and cell.paper <= 0 and self.measure not in BY_DIFFERENCE:
                raise FieldError("study", f"cells.{label}.paper", f"got {cell.paper:g}, expected a number above 0")
        labels = [(f"claims[{i}].{key}", getattr(c, key)) for i, c in enumerate(self.claims) for key in ("better", "worse")]
        labels += [(f"cells.{label}.baseline", cell.baseline) for label, cell in self.cells.items()]
        for key, label in [*labels, ("baseline", self.baseline)]:
            if label is not None and label not in self.cells:
                raise FieldError("study", key, f"got {label!r}{suggest_name(label, self.cells)}")
        for label, cell in self.cells.items():
            if self.get_baseline(label) == label and cell.paper is not None:
                problem = "got a figure, expected none: the cell is its own baseline, so its figure is known without a run"
                raise FieldError("study", f"cells.{label}.paper", problem)
        for label, cell in self.cells.items():
            if cell.expected is not None and cell.expected not in VERDICTS:
                raise FieldError(
                    "study", f"cells.{label}.expected", f"got {cell.expected!r}{suggest_name(cell.expected, VERDICTS)}"
                )
        for key, build, names in (("networks", build_network, self.networks), ("device", get_device, (self.device,))):
            for name in names:
                try:
                    build(name)
                except ScenarioError as error:
                    raise FieldError("study", key, str(error)) from None

    @property
    def name(self) -> str:
        """Name of the study, that of its folder."""
        return Path(self.folder).name

    def get_cell(self, label: str) -> StudyCell:
        """Return a cell. ScenarioError, with the nearest label, if the study has no such cell."""
        if label not in self.cells:
            raise ScenarioError(f"{self.name}: cell {label!r}{suggest_name(label, self.cells)}")
        cell: StudyCell = self.cells[label]
        return cell

    def get_tune(self, label: str) -> dict[str, Any]:
        """Return the tuned keys of a cell with their values."""
        cell = self.get_cell(label)
        return self.tune if cell.tune is None else cell.tune

    def get_counting_rule(self, label: str) -> CountingRule | None:
        """Return the counting rule of a cell, None if it has none."""
        name = self.get_cell(label).counting
        name = self.counting if name is None else name
        return get_counting_rule(name) if name else None

    def get_baseline(self, label: str) -> str | None:
        """Return the label of the cell to which the measure of a cell refers; None for other measures."""
        return None if self.baseline is None else self.get_cell(label).baseline or self.baseline


def _check_rule(key: str, name: str | None) -> None:
    """Raise FieldError for a counting rule that does not exist, or that needs more counts than a run has."""
    if name is None or (name == "" and key != "counting"):
        return
    if name not in COUNTING_RULES:
        raise FieldError("study", key, f"got {name!r}{suggest_name(name, COUNTING_RULES)}")
    try:
        COUNTING_RULES[name].count_bytes(MessageCounts(1000, 10))
    except ReportError as error:
        raise FieldError("study", key, f"got {name!r}, which needs counts that runs do not have ({error})") from None


def build_network(text: str) -> Network:
    """Return a network by its name, or a link with one rate in both directions and no latency.

    >>> build_network("10 Mbit/s").link.down_bits_per_second
    10000000.0

    Args:
        text: name of a network, or a rate with its unit.

    Raises:
        ScenarioError: there is no network of that name, and the text is not a rate.
    """
    if not (text[:1].isdigit() and " " in text):
        return get_network(text)
    rate = parse_rate(text)
    return Network(Link(rate, rate), title=text)


def load_study(folder: Path) -> Study:
    """Read the study of a folder; ScenarioError with file, key and expected value if it is wrong."""
    path = folder / STUDY_FILE
    try:
        table = tomllib.loads(read_text(path))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    try:
        cell_tables, claim_tables = table.get("cells", {}), table.get("claims", [])
        if not isinstance(cell_tables, dict) or not cell_tables:
            raise ScenarioError("cells: none, expected a table for each cell")
        if not isinstance(claim_tables, list):
            raise ScenarioError(f"claims: got {claim_tables!r}, expected a list of tables, [[claims]]")
        cells = {label: _build(StudyCell, cell, f"cells.{label}") for label, cell in cell_tables.items()}
        claims = tuple(_build(Claim, claim, f"claims[{i}]") for i, claim in enumerate(claim_tables))
        study: Study = _build(Study, {**table, "folder": str(folder.resolve()), "cells": cells, "claims": claims}, "")
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None
    return study


def _build(cls: Any, table: Any, place: str) -> Any:
    """Create a dataclass from a table; messages of errors begin with the place."""
    prefix = f"{place}." if place else ""
    if not isinstance(table, Mapping):
        raise ScenarioError(f"{place}: got {table!r}, expected a table")
    names = field_types(cls)
    for key in table:
        if key not in names:
            raise ScenarioError(f"{prefix}{key}: no such key{suggest_name(key, names)}")
    required = [name for name in ("title", "source", "measure", "tolerance", "text", "better", "worse") if name in names]
    for name in required:
        if name not in table:
            raise ScenarioError(f"{prefix}{name}: missing")
    try:
        return cls(**table)
    except FieldError as error:
        raise ScenarioError(f"{prefix}{error.field}: {error.problem}") from None


def find_study(name: str | Path) -> Path:
    """Return the folder of a study, by its path, or by its name in `scenarios` of this folder or of the checkout.

    Raises:
        ReportError: there is no such study; the message has the nearest name, or all names.
    """
    path = expand_user_path(name, "study")
    if (path / STUDY_FILE).is_file():
        return path
    studies = _find_studies()
    if str(name) in studies:
        return studies[str(name)]
    names = list(studies)
    if not names:
        raise ReportError(f"{name}: there are no studies here; they are in `scenarios` of a checkout, or give the path of one")
    raise ReportError(f"study {str(name)!r}{suggest_name(str(name), names)}")


def list_studies() -> list[str]:
    """Return the names of the studies in `scenarios` of this folder or, if it has none, of the checkout."""
    return list(_find_studies())


def _find_studies() -> dict[str, Path]:
    """Return the folder of each study by its name, sorted."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        folders = sorted(path.parent for path in (root / STUDIES_FOLDER).rglob(STUDY_FILE))
        if folders:
            return dict(sorted((folder.name, folder) for folder in folders))
    return {}
