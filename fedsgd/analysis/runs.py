"""A finished run, as its folder has it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.errors import ReportError
from fedsgd.federation.downlink import POLICY_ALIASES
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.parsing import flatten_settings
from fedsgd.storage.parquet import read_column_names, read_columns
from fedsgd.storage.run_directory import ROUND_COLUMNS, RUN_FILES
from fedsgd.system.user_files import read_text

REQUIRED_KEYS = {
    "clients": int,
    "parameters": int,
    "params_sha256": str,
    "ledger_sha256": str,
    "uplink": dict,
    "downlink": dict,
    "versions": dict,
}
REQUIRED_TRAFFIC_KEYS = ("header", "index", "value", "side", "kept")
REQUIRED_FILES = ("scenario.toml", "rounds.parquet", "ledger.parquet", "summary.json")


@dataclass(frozen=True, eq=False)
class Run:
    """folder: where it is; settings: the resolved scenario, by dotted keys; text: the same as TOML; summary: as in its file;
    rounds: the columns of rounds.parquet by name, NaN where there is nothing [R]."""

    folder: Path
    settings: Mapping[str, Any]
    scenario_text: str
    summary: Mapping[str, Any]
    rounds: Mapping[str, F64]

    @property
    def name(self) -> str:
        """The scenario's."""
        return str(self.settings["name"])

    @property
    def seed(self) -> int:
        """Of all its randomness."""
        return int(self.settings["seed"])

    @property
    def n_rounds(self) -> int:
        """R."""
        return len(self.rounds["round"])

    @cached_property
    def measured_accuracies(self) -> list[tuple[int, float]]:
        """(round, accuracy) where it was measured."""
        known = np.flatnonzero(np.isfinite(self.accuracy))
        return [(int(at) + 1, float(self.accuracy[at])) for at in known]

    @property
    def accuracy(self) -> F64:
        """After each round, NaN where it was not measured [R]."""
        return self.rounds.get("accuracy", np.full(self.n_rounds, np.nan))

    def get_cumulative(self, column: str) -> F64:
        """A column of cumulative figures with a 0 in front, for before the first round [R + 1]."""
        return np.concatenate([[0.0], self.rounds[column]])

    @property
    def why_not_repriceable(self) -> str | None:
        """Why this run cannot be priced on another network: who took part depended on time; None if it can."""
        deadline, over = (self.settings.get(f"participation.{key}") for key in ("deadline", "over_selection"))
        timeouts = self.summary.get("timeouts") or 0
        if deadline is not None:
            how = f"[participation] deadline = {deadline:g} s decided whose reply was taken"
        elif over is not None and over > 1:
            how = f"[participation] over_selection = {over:g} took the first replies that came"
        elif timeouts:
            return f"{timeouts} replies did not come within the time that was waited for them, by the clock of the machine"
        else:
            return None
        return f"{how}, by simulated durations: on another network others would have taken part, and the run another one"


def load_run(folder: Path) -> Run:
    """The run in a folder. ReportError if it is not one, did not finish, or cannot be read."""
    missing = [name for name in REQUIRED_FILES if not (folder / name).exists()]
    if missing == ["summary.json"]:
        raise ReportError(f"{folder}: has no summary.json: this run did not finish")
    if missing:
        raise ReportError(f"{folder}: is not a run folder (there is no {missing[0]})")
    try:
        summary = json.loads(read_text(folder / "summary.json"))
        text = read_text(folder / "scenario.toml")
        settings = dict(flatten_settings(tomllib.loads(text)))
        policy = settings.get("downlink.policy")
        if isinstance(policy, str):  # a run of an earlier release may have an earlier name
            settings["downlink.policy"] = POLICY_ALIASES.get(policy, policy)
    except (OSError, ValueError) as error:  # both kinds of decoding errors among them
        raise ReportError(f"{folder}: cannot be read: {error}") from None
    for file, known, kinds in (
        ("summary.json", summary, REQUIRED_KEYS),
        ("scenario.toml", settings, {"name": str, "seed": int}),
    ):
        missing = [key for key, kind in kinds.items() if not isinstance(known, dict) or not isinstance(known.get(key), kind)]
        if missing:
            raise ReportError(f"{folder / file}: does not say {missing[0]}; was it written by an older version?")
    for link in ("uplink", "downlink"):
        if not set(REQUIRED_TRAFFIC_KEYS) <= summary[link].keys():
            raise ReportError(
                f"{folder}/summary.json: does not say what {link} is made of; was it written by an older version?"
            )
    path = folder / "rounds.parquet"
    metrics = [name for name in read_column_names(path) if name not in ROUND_COLUMNS]
    columns = read_columns(path, [*ROUND_COLUMNS, *metrics])
    rounds = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    if not np.array_equal(rounds["round"], np.arange(1, len(rounds["round"]) + 1)):
        raise ReportError(f"{path}: expected the rounds 1 to {len(rounds['round'])}, one row each")
    if summary.get("rounds", len(rounds["round"])) != len(rounds["round"]):
        problem = f"has {len(rounds['round'])} rounds, expected {summary['rounds']}, as summary.json says"
        raise ReportError(f"{path}: {problem}: it could not be written to its end; run it again")
    return Run(folder, settings, text, summary, rounds)


def is_run(folder: Path) -> bool:
    """Whether a run was written there, finished or not."""
    return (folder / RUN_FILES[0]).is_file()


def find_runs(location: Path) -> list[Path]:
    """The run folders that a path means: itself, or all below it that are finished. ReportError if there are none."""
    if is_run(location):
        return [location]
    if location.is_file():
        raise ReportError(f"{location}: is a file, expected the run folder that it is in")
    if not location.is_dir():
        near = sorted(str(path.parent) for path in location.parent.glob("*/summary.json")) if location.parent.is_dir() else []
        hint = f"; runs there: {', '.join(near[:5])}" if near else ""
        raise ReportError(f"{location}: there is no such folder{hint}")
    found = sorted(path.parent for path in location.rglob("summary.json") if is_run(path.parent))
    if not found:
        raise ReportError(f"{location}: holds no finished run (no summary.json beside a scenario.toml)")
    return found
