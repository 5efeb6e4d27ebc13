"""Methods: groups of finished runs that differ only in their seeds and in tuned settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsgd.analysis.method_labels import MethodSettings, assign_labels
from fedsgd.analysis.runs import Run, check_target, choose_criterion, find_runs, load_run
from fedsgd.analysis.tuning import find_grid_edge_keys, select_tuning_figures
from fedsgd.config.python_objects import PYTHON_OBJECT_NAME
from fedsgd.config.user_classes import name_source
from fedsgd.errors import OutputError, ReportError, suggest_name
from fedsgd.experiment.time_to_target import SeedSummary, summarize_seeds
from fedsgd.scenario.target import Criterion, Target, TargetLike, resolve_target
from fedsgd.sweeps import SWEEP_FILE, Sweep
from fedsgd.system.user_files import expand_user_path

IGNORED_KEYS = ("seed", "name")
"""Settings that do not distinguish methods."""
IGNORED_SECTIONS = ("checkpoint", "engine", "report", "state", "stop")
"""Sections that do not distinguish methods."""
INITIAL_PARAMETERS_KEY = "model.initial_sha256"
"""Setting with the digest of a Python module's initial parameters. Runs that differ only in this digest may be repetitions, or
a trained and an untrained module; the runs are one method if they have the same label."""
RunSpec = Path | str | tuple[str, Path | str]
"""Path of runs, or label of a method and path."""


@dataclass(frozen=True, eq=False)
class TunedVariant:
    """Finished runs of a method, ascending by seed, at one value of its tuned settings.

    `n_failed` seeds, with the numbers `failed_seeds`, ended in an error.
    """

    tuned: Mapping[str, Any]
    runs: tuple[Run, ...]
    n_failed: int = 0
    failed_seeds: tuple[int, ...] = ()

    def __repr__(self) -> str:
        seeds = ", ".join(str(run.seed) for run in self.runs)
        return f"TunedVariant({dict(self.tuned)}: seeds {seeds}; {self.n_failed} failed)"

    def summarize_over_seeds(self, metric: Callable[[Run], float | None]) -> SeedSummary:
        """Summarize a metric over all seeds; failed seeds count as not reached."""
        return summarize_seeds([*(metric(run) for run in self.runs), *[None] * self.n_failed])

    def summarize_best(self, criterion: Criterion) -> SeedSummary | None:
        """Summarize the best value of each finished run; None if the metric was not measured."""
        values = [best for run in self.runs if (best := run.find_best(criterion)) is not None]
        return summarize_seeds(values) if values else None

    def summarize_final(self, metric: str) -> SeedSummary | None:
        """Summarize the value of a metric in the last evaluation of each finished run; None if it was not measured."""
        values = [measurements[-1][1] for run in self.runs if (measurements := run.get_measurements(metric))]
        return summarize_seeds(values) if values else None

    def summarize_rounds_to_target(self, target: Target) -> SeedSummary:
        """Summarize the rounds to a target, by the rule of McMahan et al."""
        return self.summarize_over_seeds(lambda run: reached.rounds if (reached := run.find_reached(target)) else None)


@dataclass(frozen=True, eq=False)
class Method:
    """Runs that differ only in their seeds and in tuned settings.

    Attributes:
        best_variant: variant with the best values of the tuned settings.
        variants: variants for all values that were tried.
        grid_edge_keys: tuned settings whose best value is the smallest or largest value tried; a better value may exist beyond.
        tuned_on: metric by which the best values were selected, such as "validation_accuracy"; None without tuned settings.
    """

    label: str
    best_variant: TunedVariant
    variants: tuple[TunedVariant, ...]
    grid_edge_keys: tuple[str, ...]
    tuned_on: str | None = None

    def __repr__(self) -> str:
        return f'Method("{self.label}": best of {len(self.variants)}: {self.best_variant})'

    @property
    def runs(self) -> tuple[Run, ...]:
        """Finished runs of the best variant."""
        return self.best_variant.runs

    @property
    def uncompressed(self) -> bool:
        """True if updates are sent uncompressed, in float32."""
        settings = self.runs[0].settings
        name, values = (settings.get(f"uplink.compressor.{key}") for key in ("name", "values"))
        return name == "dense" and values in (None, "float32")

    @property
    def divergence_by_seed(self) -> dict[int, str]:
        """Evidence of divergence by seed, from the summaries of the runs that diverged."""
        return {run.seed: str(run.summary["diverged"]) for run in self.runs if run.summary.get("diverged")}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about settings that a component does not suit, from the summaries of the best variant's runs, each once."""
        return tuple(dict.fromkeys(text for run in self.runs for text in run.summary.get("warnings", ())))


@dataclass(frozen=True)
class _RunEntry:
    """Run of a method; `run` is None if the run ended in an error."""

    label: str | None
    tuned: tuple[tuple[str, Any], ...]
    seed: int
    run: Run | None


def load_methods(
    run_specs: Sequence[RunSpec],
    target: TargetLike | None = None,
    tuned: Sequence[str] = (),
    on_notice: Callable[[str], None] = lambda text: None,
) -> list[Method]:
    """Read finished runs and group them into methods, in the order of their first runs.

    Runs that differ only in `IGNORED_KEYS`, `IGNORED_SECTIONS` and tuned settings are one method. Runs with equal labels, and
    cells of a sweep with equal labels, are also one method.

    Args:
        run_specs: run folders, folders of run folders, and sweeps.
        target: target that the best tuned value reaches in the fewest rounds (median over seeds): a number for an accuracy, a
            text such as "loss<0.3", or a `Target`. For equal rounds, and without a target, the fewest failed seeds decide, then
            the best value of the target's metric; without a target, the highest accuracy or, without accuracy, the lowest loss.
            These are figures on validation examples if all runs of the method have them (`select_tuning_figures`).
        tuned: settings to treat as tuned, as dotted keys, in addition to those of sweeps.
        on_notice: called with a line for each run or method that is ignored.

    Raises:
        ReportError: a path has no run, runs of one label have different settings, runs of one method have different sources of
            a user's class, no run is finished, or a run does not measure the target's metric.
        ScenarioError: the target has no such form.
    """
    target = resolve_target(target)
    groups: dict[Any, dict[Any, dict[int, Run | None]]] = {}
    labels: dict[Any, str | None] = {}
    first_runs: dict[Any, Run] = {}
    first_sources: dict[Any, dict[str, Run]] = {}
    for entry in _read_entries(run_specs, tuned, on_notice):
        keys = [name for name, _ in entry.tuned]
        key = entry.label or collect_method_settings(entry.run, keys)
        labels[key] = entry.label
        if entry.run is not None:
            _require_same_code(first_sources.setdefault(key, {}), entry.run)
            _require_same_settings(str(entry.label), first_runs.setdefault(key, entry.run), entry.run, keys)
        seeds = groups.setdefault(key, {}).setdefault(entry.tuned, {})
        if seeds.get(entry.seed) is None:
            seeds[entry.seed] = entry.run
        elif entry.run is not None:
            _require_same_digests(seeds[entry.seed], entry.run)
    unlabeled_keys = [key for key, label in labels.items() if label is None]
    other_settings = {tuple(setting for setting in key if setting[0] != INITIAL_PARAMETERS_KEY) for key in unlabeled_keys}
    if len(other_settings) < len(unlabeled_keys):
        on_notice(
            "runs that differ only in the initial parameters of their module are separate methods; to join them, use LABEL=RUN"
        )
    method_labels = assign_labels(unlabeled_keys, labels)
    if target is not None:
        check_target(target, [*first_runs.values()])
    criterion, methods = choose_criterion(first_runs.values(), target), []
    for key, variants in groups.items():
        method = _build_method(method_labels[key], variants, target, criterion)
        if method is None:
            on_notice(f"{method_labels[key]} is ignored: all of its runs ended in an error")
        else:
            methods.append(method)
    if not methods:
        raise ReportError("there is no finished run to compare")
    return methods


def _require_same_settings(label: str, first: Run, second: Run, tuned: Sequence[str]) -> None:
    """Raise ReportError if two runs of a label differ in more than seed, tuned settings and initial parameters."""
    a, b = (dict(collect_method_settings(run, tuned)) for run in (first, second))
    key = next((key for key in sorted({*a, *b} - {INITIAL_PARAMETERS_KEY}) if a.get(key) != b.get(key)), None)
    if key is not None:
        differ = f"{first.folder} has {key} = {a.get(key, 'none')}, {second.folder} has {b.get(key, 'none')}"
        raise ReportError(
            f"{label}: the label has runs that differ in more than their seed: {differ}; give them different labels"
        )


def _require_same_code(first_sources: dict[str, Run], run: Run) -> None:
    """Raise ReportError if a class or function of a run has another source than in the method's first run that has its digest.

    `first_sources` has these first runs by import path, and receives the run. Runs of earlier releases have no digests.
    """
    for name, digest in run.user_code.items():
        first = first_sources.setdefault(name, run)
        if first.user_code[name] != digest:
            runs = f"{first.folder} and {run.folder} have the same method"
            sources = f"sha256 {first.user_code[name]} and {digest}"
            remedy = "compare them as LABEL=RUN, or run the older one again"
            raise ReportError(f"{runs}, but different sources of {name_source(name)} ({sources}): {remedy}")


def _require_same_digests(first: Run | None, second: Run) -> None:
    """Raise ReportError if two runs of equal settings and seed have different digests."""
    assert first is not None
    for digest in ("ledger_sha256", "params_sha256"):
        if first.summary[digest] != second.summary[digest]:
            runs = f"{first.folder} and {second.folder} have the same settings and seed"
            raise ReportError(f"{runs}, but different {digest}: compare them as LABEL=RUN, or omit one of them")


def _read_entries(run_specs: Sequence[RunSpec], tuned: Sequence[str], on_notice: Callable[[str], None]) -> Iterator[_RunEntry]:
    for spec in run_specs:
        label, path = (spec[0], expand_user_path(spec[1])) if isinstance(spec, tuple) else (None, expand_user_path(spec))
        if label is not None and not (isinstance(label, str) and label.isprintable()):
            raise ReportError(f"{label!r}: expected a label of printable characters")
        if (path / SWEEP_FILE).is_file() and label is None:
            yield from _read_sweep_entries(path, tuned, on_notice)
            continue
        for folder in find_runs(path):
            run = load_run(folder)
            _check_tuned_keys(folder, [run], tuned)
            yield _RunEntry(label, tuple((key, run.settings[key]) for key in tuned), run.seed, run)


def _check_tuned_keys(folder: Path, runs: Sequence[Run], tuned: Sequence[str]) -> None:
    """Raise ReportError for a setting to treat as tuned that no run has."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    for key in tuned:
        if runs and key not in names:
            raise ReportError(f"{folder}: there is no setting {key}{suggest_name(key, names)}")


def _read_sweep_entries(folder: Path, tuned_keys: Sequence[str], on_notice: Callable[[str], None]) -> Iterator[_RunEntry]:
    """Yield the finished and failed cells of a sweep. The sweep decides on its tuned settings; ReportError for others."""
    try:
        cells = Sweep.read(folder).cells
    except OutputError as error:
        raise ReportError(str(error)) from None
    n_waiting = sum(cell.state not in ("finished", "failed") for cell in cells)
    if n_waiting:
        on_notice(f"{folder}: {n_waiting} of {len(cells)} cells have not been run yet")
    grid_key = next((key for key in tuned_keys if any(key in cell.grid for cell in cells)), None)
    if grid_key is not None:
        problem = f"{grid_key} is a setting of its --grid, whose values are separate methods"
        raise ReportError(f"{folder}: {problem}; run the sweep with --tune, or name its run folders")
    runs = {cell.folder: load_run(folder / cell.folder) for cell in cells if cell.state == "finished"}
    _check_tuned_keys(folder, [*runs.values()], tuned_keys)
    for cell in cells:
        if cell.state in ("finished", "failed"):
            tuned = cell.tuned.items()
            values = tuple((key, json.dumps(value) if isinstance(value, list | dict) else value) for key, value in tuned)
            yield _RunEntry(cell.label, values, cell.seed, runs.get(cell.folder))


def collect_method_settings(run: Run | None, tuned: Sequence[str]) -> MethodSettings:
    """Return the settings that distinguish the method of a run, sorted, as JSON."""
    assert run is not None
    settings = {
        key: value
        for key, value in run.settings.items()
        if key not in IGNORED_KEYS
        and key.split(".")[0] not in IGNORED_SECTIONS
        and not any(f"{key}.".startswith(f"{name}.") for name in tuned)
    }
    if not any(key.startswith("model") for key in tuned):
        settings["model.parameters"] = run.summary["parameters"]
    undescribed_arguments = _find_undescribed_arguments(run)
    if undescribed_arguments:
        settings["given in Python"] = undescribed_arguments
    return tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in settings.items()))


def _find_undescribed_arguments(run: Run) -> list[str]:
    """Return the arguments of `fedsgd.run` that the scenario does not describe. Scenarios of earlier releases describe none."""
    is_described = {
        "dataset": run.settings.get("data.name") == PYTHON_OBJECT_NAME,
        "module": run.settings.get("model.name") == PYTHON_OBJECT_NAME,
        "loss": "model.loss" in run.settings,
        "metrics": any(key.startswith("model.metrics.") for key in run.settings),
    }
    return [name for name in run.summary.get("given_in_python") or () if not is_described.get(name, False)]


def _build_method(
    label: str, variants: Mapping[Any, Mapping[int, Run | None]], target: Target | None, criterion: Criterion
) -> Method | None:
    """Return a method with its best variant; None if the method has no finished run."""
    all_variants = []
    for tuned, seeds in variants.items():
        runs = tuple(run for _, run in sorted(seeds.items()) if run is not None)
        failed_seeds = tuple(seed for seed, run in sorted(seeds.items()) if run is None)
        all_variants.append(TunedVariant(dict(tuned), runs, len(failed_seeds), failed_seeds))
    finished_variants = [variant for variant in all_variants if variant.runs]
    if not finished_variants:
        return None

    all_runs = [run for variant in finished_variants for run in variant.runs]
    target, criterion = select_tuning_figures(all_runs, target, criterion)

    def sort_key(variant: TunedVariant) -> tuple[float, int, float]:
        rounds = math.inf if target is None else variant.summarize_rounds_to_target(target).median
        best = variant.summarize_best(criterion)
        return rounds, variant.n_failed, math.inf if best is None else -criterion.sign * best.median

    best_variant = min(finished_variants, key=sort_key)
    tuned_on = criterion.metric if best_variant.tuned else None
    edge_keys = find_grid_edge_keys(best_variant.tuned, [variant.tuned for variant in all_variants])
    return Method(label, best_variant, tuple(all_variants), edge_keys, tuned_on)
