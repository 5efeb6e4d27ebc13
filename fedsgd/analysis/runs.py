"""Finished runs, read from their folders."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsgd.errors import ReportError
from fedsgd.federation.downlink import POLICY_ALIASES
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.parsing import flatten_settings
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
        accuracy = self.accuracy[np.isfinite(self.accuracy)]
        figures = [f"{self.n_rounds} rounds", *([f"accuracy {accuracy[-1]:.4f}"] if accuracy.size else [])]
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

    @cached_property
    def measured_accuracies(self) -> list[tuple[int, float]]:
        """Round and accuracy of each evaluation with a finite accuracy."""
        indices = np.flatnonzero(np.isfinite(self.accuracy))
        return [(int(i) + 1, float(self.accuracy[i])) for i in indices]

    @property
    def accuracy(self) -> F64:
        """[R] accuracy after each round, NaN if it was not measured."""
        return self.rounds.get("accuracy", np.full(self.n_rounds, np.nan))

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
    try:
        summary = json.loads(read_text(folder / "summary.json"))
        text = read_text(folder / "scenario.toml")
        settings = dict(flatten_settings(tomllib.loads(text)))
        policy = settings.get("downlink.policy")
        if isinstance(policy, str):  # a run of an earlier release may have an earlier name of the policy
            settings["downlink.policy"] = POLICY_ALIASES.get(policy, policy)
    except (OSError, ValueError) as error:  # ValueError includes errors of JSON and of UTF-8
        raise ReportError(f"{folder}: cannot be read: {error}") from None
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
