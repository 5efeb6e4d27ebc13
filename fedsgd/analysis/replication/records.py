"""Results of a study: a record for each run, in results.json, with which a study continues where it stopped.

A record has the figures of a run that a table needs, so that run folders may be removed. It counts as long as the settings of
its run are those of the study; that of a tuning run with a limit of rounds, as long as the value that limits it has a record.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsgd import _version
from fedsgd.analysis.replication.study import STUDY_FILE, Study, build_network
from fedsgd.analysis.run_prices import price
from fedsgd.analysis.runs import Run, choose_criterion, load_run
from fedsgd.config.component import FieldError, ValidatedConfig, field_defaults, field_types
from fedsgd.errors import ReportError
from fedsgd.models.set_metrics import name_validation_metric
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.target import Criterion, Target, parse_target
from fedsgd.storage.run_directory import write_atomically
from fedsgd.system.user_files import read_text

FORMAT_VERSION = 1
UNRECORDED_SECTIONS = ("checkpoint", "engine", "state")
"""Sections of a scenario on which the figures of a run do not depend."""
Phase = Literal["tuning", "final"]


@dataclass(frozen=True)
class RunRecord(ValidatedConfig):
    """Figures of one run of a study.

    Attributes:
        cell, phase, seed: label of the cell, "tuning" or "final", and the seed of the run.
        settings_sha256: digest of the settings of the run.
        tuned: tuned settings by dotted key.
        error: message of the error that the run ended with; None for a finished run.
        rounds: rounds that were run.
        round_limit: rounds after which a tuning run was ended because a better value needs fewer; None without such a limit.
        target: rounds, `uplink_bytes` and `downlink_bytes` to the target, interpolated; None if it was not reached.
        selection: the same rounds and uplink bytes, and the best value, by the metric that tuning uses.
        diverged: True if the run ended with numbers that count as diverged.
        best, final: best and last value of the target's metric, or of the accuracy without a target.
        uplink_bytes, downlink_bytes: bytes of the whole run.
        traffic: parameters of the model, and the frames and the kept coordinates of the uplink, for counting rules.
        network_seconds: seconds to the target, or to the end without a target, by network; None if it was not reached.
        device: device of the clients for these seconds.
        curve: [round, value] of each evaluation that is better than all before.
        digests: SHA-256 of the final parameters and of the ledger.
        seconds: wall-clock seconds of the run.
        made: date, commit, release of fedsgd and machine.
    """

    cell: str
    phase: Phase
    seed: int
    settings_sha256: str
    tuned: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    rounds: int = 0
    target: dict[str, float] | None = None
    selection: dict[str, float | None] = field(default_factory=dict)
    diverged: bool = False
    best: float | None = None
    final: float | None = None
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    traffic: dict[str, int] = field(default_factory=dict)
    network_seconds: dict[str, float | None] = field(default_factory=dict)
    device: str = ""
    curve: tuple[tuple[float, ...], ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    made: dict[str, str] = field(default_factory=dict)
    round_limit: int | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Cell, phase, seed and digest of the settings, which identify a run of a study."""
        return self.cell, self.phase, self.seed, self.settings_sha256


@dataclass(frozen=True)
class ComputedCell(ValidatedConfig):
    """Figures of a cell that a script computes.

    Attributes:
        value: the figure that the paper has, by the paper's rule.
        own_value: the same figure with the bytes of fedsgd's frames; None if there is none.
        rule_bytes, n_bytes: bytes by the paper's rule, and of fedsgd's frame.
        made: date, commit, release of fedsgd and machine.
    """

    value: float
    own_value: float | None = None
    rule_bytes: int | None = None
    n_bytes: int | None = None
    made: dict[str, str] = field(default_factory=dict)


@dataclass
class Results:
    """Contents of results.json.

    Attributes:
        study: name of the study.
        runs: records by cell, phase, seed and digest of the settings.
        computed: figures of cells that a script computes, by label.
    """

    study: str
    runs: dict[tuple[str, str, int, str], RunRecord] = field(default_factory=dict)
    computed: dict[str, ComputedCell] = field(default_factory=dict)

    def add(self, record: RunRecord) -> None:
        """Add a record in place of all records of other settings for the same run."""
        stale = [key for key, old in self.runs.items() if key[:3] == record.key[:3] and old.tuned == record.tuned]
        for key in stale:
            del self.runs[key]
        self.runs[record.key] = record

    def prune(self, labels: Collection[str]) -> None:
        """Remove the results of cells with other labels.

        Args:
            labels: labels of the cells of the study.
        """
        self.runs = {key: record for key, record in self.runs.items() if record.cell in labels}
        self.computed = {label: cell for label, cell in self.computed.items() if label in labels}

    def save(self, path: Path) -> None:
        """Write results.json: a cell or a run in each line, sorted."""
        rows = [json.dumps(_drop_defaults(record), ensure_ascii=False) for _, record in sorted(self.runs.items())]
        computed = [
            f"{json.dumps(label, ensure_ascii=False)}: {json.dumps(_drop_defaults(cell), ensure_ascii=False)}"
            for label, cell in self.computed.items()
        ]
        head = f'"format": {FORMAT_VERSION}, "study": {json.dumps(self.study)}'
        parts = [f"{{{head}", f'"computed": {{{_join_rows(computed)}}}', f'"runs": [{_join_rows(rows)}]}}']
        text = ",\n".join(parts) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path, study: str) -> Results:
        """Read results.json; without the file, there are no results. ReportError if it cannot be read."""
        if not path.exists():
            return cls(study)
        try:
            table = json.loads(read_text(path))
            if table["format"] != FORMAT_VERSION or table["study"] != study:
                found = f"format {table['format']!r} of study {table['study']!r}"
                raise ReportError(f"{path}: got {found}, expected format {FORMAT_VERSION} of {study!r}")
            records = [RunRecord(**row) for row in table["runs"]]
            computed = {label: ComputedCell(**cell) for label, cell in table["computed"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, FieldError) as error:
            raise ReportError(f"{path}: not the results of a study ({type(error).__name__}: {error})") from None
        return cls(study, {record.key: record for record in records}, computed)


def _join_rows(rows: list[str]) -> str:
    return "\n" + ",\n".join(rows) + "\n" if rows else ""


def _drop_defaults(record: RunRecord | ComputedCell) -> dict[str, Any]:
    return {key: value for key, value in asdict(record).items() if value not in (None, {}, [], ()) and value is not False}


def digest_settings(scenario: Scenario) -> str:
    """Return the first 16 digits of the SHA-256 of the settings on which the figures of a run depend.

    Settings with their defaults do not count, so that a later release with further keys has equal digests.
    """
    table = {key: value for key, value in _list_changes(scenario).items() if key not in UNRECORDED_SECTIONS}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]


def _list_changes(component: ValidatedConfig) -> dict[str, Any]:
    """Return the fields of a component that differ from their defaults, and the name of its class."""
    cls: Any = type(component)
    defaults, changes = field_defaults(cls), {"class": cls.__name__}
    for name in field_types(cls):
        value = getattr(component, name)
        if name not in defaults or value != defaults[name]:
            changes[name] = _plain(value)
    return changes


def _plain(value: Any) -> Any:
    if isinstance(value, ValidatedConfig):
        return _list_changes(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def describe_origin(study: Study) -> dict[str, str]:
    """Return date, commit, release of fedsgd and machine of a result; the commit is absent outside of a checkout.

    Args:
        study: study, whose scenario and script count as changes if they are not committed.
    """
    folder, machine = Path(__file__).parents[2], f"{platform.system()} {platform.machine()}"
    origin = {"date": time.strftime("%Y-%m-%d"), "fedsgd": _version.__version__, "machine": machine}
    names = (STUDY_FILE, study.scenario, study.script)
    sources = [folder, *((Path(study.folder) / name).resolve() for name in names if name is not None)]
    try:
        commit = _run_git(folder, "rev-parse", "--short=10", "HEAD")
        root = Path(_run_git(folder, "rev-parse", "--show-toplevel"))
        sources = [path for path in sources if path.is_relative_to(root)]
        changes = _run_git(folder, "status", "--porcelain", "--", *map(str, sources))
    except (OSError, subprocess.SubprocessError):
        return origin
    return {**origin, "commit": commit + " with changes" * bool(changes)}


def _run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def record_run(folder: Path, cell: str, phase: Phase, tuned: Mapping[str, Any], scenario: Scenario, study: Study) -> RunRecord:
    """Return the record of a finished run folder."""
    run = load_run(folder)
    text = run.summary.get("target")
    target = None if text is None else parse_target(text)
    criterion = choose_criterion([run], target)
    uplink = run.summary["uplink"]
    return RunRecord(
        cell,
        phase,
        run.seed,
        digest_settings(scenario),
        dict(tuned),
        rounds=run.n_rounds,
        target=_measure_target(run, target),
        selection=_measure_selection(run, target, criterion),
        diverged=bool(run.summary.get("diverged")),
        best=run.find_best(criterion),
        final=next((value for _, value in reversed(run.get_measurements(criterion.metric))), None),
        uplink_bytes=run.summary["uplink_bytes"],
        downlink_bytes=run.summary["downlink_bytes"],
        traffic={"parameters": run.summary["parameters"], "frames": uplink["frames"], "kept": uplink["kept"]},
        network_seconds={name: _price(run, name, study.device, target) for name in study.networks},
        device=study.device,
        curve=tuple(_list_improvements(run, criterion)),
        digests={name: run.summary[f"{name}_sha256"][:16] for name in ("params", "ledger")},
        seconds=round(run.summary["seconds"], 1),
        made=describe_origin(study),
    )


def _measure_target(run: Run, target: Target | None) -> dict[str, float] | None:
    """Return rounds and bytes to the target; None without a target, or if it was not reached."""
    reached = None if target is None else run.find_reached(target)
    if reached is None:
        return None
    sizes = {name: reached.interpolate_on(run.get_cumulative(name)) for name in ("uplink_bytes", "downlink_bytes")}
    return {"rounds": reached.rounds, **sizes}


def _measure_selection(run: Run, target: Target | None, criterion: Criterion) -> dict[str, float | None]:
    """Return the figures that select a tuned value: by the validation examples if the run has any."""
    metric = name_validation_metric(criterion.metric)
    if metric not in run.metrics:
        metric = criterion.metric
    reached = None
    if target is not None:
        reached = run.find_reached(Target(metric, **{target.direction: target.threshold}))
    best = run.find_best(Criterion(metric, criterion.direction))
    rounds, n_bytes = None, None
    if reached is not None:
        rounds, n_bytes = reached.rounds, reached.interpolate_on(run.get_cumulative("uplink_bytes"))
    return {"rounds": rounds, "uplink_bytes": n_bytes, "best": best}


def _price(run: Run, network: str, device: str, target: Target | None) -> float | None:
    priced_run = price(run.folder, build_network(network), device=device)
    if target is None:
        return float(priced_run.cumulative_seconds[-1])
    reached = run.find_reached(target)
    return None if reached is None else reached.interpolate_on(priced_run.cumulative_seconds)


def _list_improvements(run: Run, criterion: Criterion) -> Iterator[tuple[int, float]]:
    best = -math.inf
    for round, value in run.get_measurements(criterion.metric):
        if criterion.sign * value > best:
            best = criterion.sign * value
            yield round, value
