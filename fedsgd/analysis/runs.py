"""Finished runs, read from their folders."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsgd.errors import ReportError, suggest_name
from fedsgd.experiment.time_to_target import TargetReached, find_first_reached
from fedsgd.federation.downlink import POLICY_ALIASES
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.parsing import SettingsSection, flatten_settings
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.target import Criterion, Target
from fedsgd.storage.parquet import read_column_names, read_columns
from fedsgd.storage.run_directory import ROUND_COLUMNS, RUN_FILES, build_round_frame
from fedsgd.system.user_files import expand_user_path, read_text

if TYPE_CHECKING:
    import pandas as pd

REQUIRED_KEYS = {
    "clients": int,
    "parameters": int,
    "params_sha256": str,
    "ledger_sha256": str,
    "uplink": dict,
    "downlink": dict,
    "versions": dict,
}
"""Keys that summary.json must have, with their types."""
REQUIRED_TRAFFIC_KEYS = ("header", "index", "value", "side", "kept")
"""Keys that `uplink` and `downlink` in summary.json must have."""
REQUIRED_FILES = ("scenario.toml", "rounds.parquet", "ledger.parquet", "summary.json")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        settings: settings of the resolved scenario, by dotted keys.
        scenario_text: resolved scenario, as TOML.
        rounds: columns of rounds.parquet by name, [R] float64, NaN for missing values.
    """

    folder: Path
    settings: Mapping[str, Any]
    scenario_text: str
    summary: Mapping[str, Any]
    rounds: Mapping[str, F64]

    def __repr__(self) -> str:
        accuracies = self.get_measurements("accuracy")
        figures = [f"{self.n_rounds} rounds", *([f"accuracy {accuracies[-1][1]:.4f}"] if accuracies else [])]
        up, down = (int(self.rounds[f"{link}_bytes"][-1]) for link in ("uplink", "downlink"))
        return f'Run("{self.folder}": {self.name}, {", ".join(figures)}, {up:,} bytes up, {down:,} bytes down)'

    def to_pandas(self) -> pd.DataFrame:
        """Return the rounds as a pandas table, as `fedsgd.Result.to_pandas` does; ReportError if pandas is not installed."""
        return build_round_frame(self.rounds)

    @property
    def ledger_totals(self) -> Mapping[str, Mapping[str, int]]:
        """Totals of the ledger in each direction, "up" and "down", by the names of `DirectionTotals`."""
        return {"up": self.summary["uplink"], "down": self.summary["downlink"]}

    @property
    def user_code(self) -> Mapping[str, str]:
        """Digests of sources outside fedsgd, by the keys of `digest_user_code`; empty for earlier releases."""
        return self.summary.get("user_code") or {}

    @property
    def name(self) -> str:
        """Name of the scenario."""
        return str(self.settings["name"])

    @property
    def seed(self) -> int:
        """Seed of the scenario."""
        return int(self.settings["seed"])

    @property
    def n_rounds(self) -> int:
        """R, the number of rounds."""
        return len(self.rounds["round"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, "loss" first."""
        return tuple(name for name in self.rounds if name not in ROUND_COLUMNS)

    def get_measurements(self, metric: str) -> list[tuple[int, float]]:
        """Return round and value of each evaluation with a finite value; no pairs for a metric that the run lacks."""
        values = self.rounds.get(metric, np.full(self.n_rounds, np.nan))
        return [(int(i) + 1, float(values[i])) for i in np.flatnonzero(np.isfinite(values))]

    def find_best(self, criterion: Criterion) -> float | None:
        """Return the best measured value of the criterion's metric; None without a measurement."""
        return criterion.find_best(value for _, value in self.get_measurements(criterion.metric))

    def find_reached(self, target: Target) -> TargetReached | None:
        """Return the point at which the run first reaches a target, by the rule of McMahan et al.; None if it never does."""
        return find_first_reached(self.get_measurements(target.metric), target)

    def get_cumulative(self, column: str) -> F64:
        """Return a cumulative column of rounds.parquet, [R + 1], with entry 0 for the time before round 1."""
        return np.concatenate([[0.0], self.rounds[column]])

    @property
    def why_not_repriceable(self) -> str | None:
        """Reason why time decided on participation, so that the run cannot be priced on another network; None otherwise."""
        deadline, over = (self.settings.get(f"participation.{key}") for key in ("deadline", "over_selection"))
        timeouts = self.summary.get("timeouts") or 0
        if deadline is not None:
            cause = f"[participation] deadline = {deadline:g} s decided which replies were accepted"
        elif over is not None and over > 1:
            cause = f"[participation] over_selection = {over:g} accepted the first replies"
        elif timeouts:
            return f"{timeouts} replies did not arrive before a timeout of the deployment"
        else:
            return None
        return f"{cause}, by simulated durations; on another network, other clients would have taken part"


def read_run(run: str | Path) -> Run:
    """Read a finished run from its folder. Nothing is trained, and no module of the user and no plugin is imported.

    A `Run` has a subset of the result of `fedsgd.run`: `summary`, `to_pandas()`, the columns `rounds`, `ledger_totals`, and the
    settings of the scenario. `fedsgd.load_parameters` reads the trained parameters, `fedsgd.load` the scenario as an object.

    >>> import tempfile
    >>> import fedsgd as fs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = fs.run(fs.Scenario(name="digits", rounds=2), out=folder)
    ...     run = fs.read_run(folder)
    >>> run.n_rounds, run.settings["model.name"], dict(run.summary) == dict(result.summary)
    (2, 'mlp', True)

    Args:
        run: run directory.

    Raises:
        ReportError: the directory has no finished run, or the run cannot be read.
    """
    return load_run(expand_user_path(run, "run"))


def load_run(folder: Path) -> Run:
    """Read the run of a folder; ReportError if there is no run, or if the run is unfinished or cannot be read."""
    missing_names = [name for name in REQUIRED_FILES if not (folder / name).exists()]
    if missing_names == ["summary.json"]:
        raise ReportError(f"{folder}: has no summary.json: the run did not finish")
    if missing_names:
        raise ReportError(f"{folder}: is not a run folder (it has no {missing_names[0]})")
    summary = _parse_file(folder / "summary.json", json.loads)
    text, table = _parse_file(folder / "scenario.toml", lambda text: (text, tomllib.loads(text)))
    settings = dict(flatten_settings(table))
    policy = settings.get("downlink.policy")
    if isinstance(policy, str):  # a run of an earlier release may have an earlier name of the policy
        settings["downlink.policy"] = POLICY_ALIASES.get(policy, policy)
    settings = _list_defaults() | settings
    if settings.get("evaluation.validation") == 0:  # equal to a run without this key
        del settings["evaluation.validation"]
    for file, content, types in (
        ("summary.json", summary, REQUIRED_KEYS),
        ("scenario.toml", settings, {"name": str, "seed": int}),
    ):
        table = content if isinstance(content, dict) else {}
        missing_names = [key for key, type_ in types.items() if not isinstance(table.get(key), type_)]
        if missing_names:
            raise ReportError(f"{folder / file}: has no {missing_names[0]}; an older version may have written it")
    for link in ("uplink", "downlink"):
        if not set(REQUIRED_TRAFFIC_KEYS) <= summary[link].keys():
            raise ReportError(f"{folder}/summary.json: has no parts of {link}; an older version may have written it")
    path = folder / "rounds.parquet"
    metrics = [name for name in read_column_names(path) if name not in ROUND_COLUMNS]
    columns = read_columns(path, [*ROUND_COLUMNS, *metrics])
    rounds = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    if not np.array_equal(rounds["round"], np.arange(1, len(rounds["round"]) + 1)):
        raise ReportError(f"{path}: expected a row for each of the rounds 1 to {len(rounds['round'])}")
    if summary.get("rounds", len(rounds["round"])) != len(rounds["round"]):
        problem = f"has {len(rounds['round'])} rounds, expected {summary['rounds']}, as summary.json says"
        raise ReportError(f"{path}: {problem}: the file is incomplete; run the scenario again")
    return Run(folder, settings, text, summary, rounds)


@cache
def _list_defaults() -> dict[str, Any]:
    """Return the defaults of plain settings by dotted key: a run of an earlier release lacks those that came later.

    Settings of components, and settings of which only one may be set, are not among them.
    """
    sections = {f.name: f.default for f in fields(Scenario) if isinstance(f.default, SettingsSection)}
    return {
        f"{name}.{f.name}": value
        for name, section in sections.items()
        for f in fields(section)
        if isinstance(value := getattr(section, f.name), bool | int | float | str) and f.name not in section.mutually_exclusive
    }


def _parse_file(path: Path, parse: Callable[[str], Any]) -> Any:
    """Return the contents of a file, or raise a ReportError that names the file."""
    try:
        return parse(read_text(path))
    except (OSError, ValueError) as error:  # ValueError includes errors of JSON, TOML and UTF-8
        raise ReportError(f"{path}: cannot be read: {error}") from None


def is_run(folder: Path) -> bool:
    """Return True if a folder has a run, finished or not."""
    return (folder / RUN_FILES[0]).is_file()


def find_runs(location: Path) -> list[Path]:
    """Return the run folders of a path: the path itself, or all finished runs below the path. ReportError if there is none."""
    if is_run(location):
        return [location]
    if location.is_file():
        raise ReportError(f"{location}: is a file, expected a run folder")
    if not location.is_dir():
        nearby = sorted(str(path.parent) for path in location.parent.glob("*/summary.json")) if location.parent.is_dir() else []
        hint = f"; runs there: {', '.join(nearby[:5])}" if nearby else ""
        raise ReportError(f"{location}: there is no such folder{hint}")
    folders = sorted(path.parent for path in location.rglob("summary.json") if is_run(path.parent))
    if not folders:
        raise ReportError(f"{location}: has no finished run (no folder with summary.json and scenario.toml)")
    return folders


def choose_criterion(runs: Iterable[Run], target: Target | None = None) -> Criterion:
    """Return the criterion of a target; without a target, accuracy or, if no run has this metric, the loss."""
    return Criterion.default({name for run in runs for name in run.metrics}) if target is None else target.criterion


def check_target(target: Target, runs: Sequence[Run]) -> None:
    """Raise ReportError if a run does not measure the metric of a target."""
    folders = [str(run.folder) for run in runs if target.metric not in run.metrics]
    if folders:
        place = "any run" if len(folders) == len(runs) else ", ".join(folders[:3])
        rest = f" and {len(folders) - 3} more" if len(folders) > 3 and len(folders) < len(runs) else ""
        common_metrics = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
        hint = suggest_name(target.metric, common_metrics)
        raise ReportError(f'target {target}: there is no metric "{target.metric}" in {place}{rest}{hint}')
