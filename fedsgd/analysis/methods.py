"""Which runs are one method, seen with several seeds: what a comparison compares."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsgd.analysis.runs import Run, find_runs, load_run
from fedsgd.config.python_objects import PYTHON_OBJECT_NAME
from fedsgd.errors import ReportError, suggest_name
from fedsgd.experiment.time_to_target import SeedSummary, find_first_reached, summarize_seeds
from fedsgd.sweeps.labels import format_value, name_objects, shorten_keys
from fedsgd.system.user_files import expand_user_path, read_text

IGNORED_KEYS = ("seed", "name")
"""Settings that do not make another method; nor does anything of [engine] and [state], on which no bytes depend, [report] and
[stop]."""
IGNORED_SECTIONS = ("engine", "report", "state", "stop")
INITIAL_PARAMETERS_KEY = "model.initial_sha256"
"""The fingerprint of the initial parameters of a module that was given in Python. Runs that differ in it alone may be repeats,
or a trained and an untrained module: they are one method where a label says so."""
MethodSettings = tuple[tuple[str, str], ...]
RunSpec = Path | str | tuple[str, Path | str]
"""A path, or what to call the method in it and the path."""


@dataclass(frozen=True, eq=False)
class TunedVariant:
    """A method at one value of what was tuned. runs: ascending by seed; failed: how many seeds ended in an error (diverged)."""

    tuned: Mapping[str, Any]
    runs: tuple[Run, ...]
    n_failed: int = 0

    def summarize_over_seeds(self, metric: Callable[[Run], float | None]) -> SeedSummary:
        """Over all seeds; a failed one does not have it."""
        return summarize_seeds([*(metric(run) for run in self.runs), *[None] * self.n_failed])

    def summarize_best_accuracy(self) -> SeedSummary | None:
        """The largest of each run that finished, over the seeds; None if none was measured."""
        known = [best for run in self.runs if (best := find_best_accuracy(run)) is not None]
        return summarize_seeds(known) if known else None

    @property
    def has_accuracy(self) -> bool:
        """Runs that have a metric named accuracy, even if it was never finite."""
        return any("accuracy" in run.rounds for run in self.runs)

    def summarize_rounds_to_target(self, target: float) -> SeedSummary:
        """By the one rule for it."""
        return self.summarize_over_seeds(
            lambda run: found.rounds if (found := find_first_reached(run.measured_accuracies, target)) else None
        )


@dataclass(frozen=True, eq=False)
class Method:
    """label: what it is called; chosen: the variant that it is shown at; variants: all that were tried; at_edge: tuned keys
    whose chosen value is the least or largest that was tried, so that a better one may lie beyond."""

    label: str
    best_variant: TunedVariant
    variants: tuple[TunedVariant, ...]
    grid_edge_keys: tuple[str, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Of the chosen variant."""
        return self.best_variant.runs

    @property
    def uncompressed(self) -> bool:
        """Whether updates are sent as they are, in float32."""
        settings = self.runs[0].settings
        name, values = (settings.get(f"uplink.compressor.{key}") for key in ("name", "values"))
        return name == "dense" and values in (None, "float32")

    @property
    def divergence_by_seed(self) -> dict[int, str]:
        """Evidence of divergence by seed, from the summaries of the runs that diverged."""
        return {run.seed: str(run.summary["diverged"]) for run in self.runs if run.summary.get("diverged")}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about settings that a component is not made for, from the summaries of all runs, each once."""
        return tuple(dict.fromkeys(text for run in self.runs for text in run.summary.get("warnings", ())))


@dataclass(frozen=True)
class _RunEntry:
    label: str | None
    tuned: tuple[tuple[str, Any], ...]
    seed: int
    run: Run | None


def find_best_accuracy(run: Run) -> float | None:
    """The largest that was measured; None if none was."""
    return max((accuracy for _, accuracy in run.measured_accuracies), default=None)


def load_methods(
    run_specs: Sequence[RunSpec],
    target: float | None = None,
    tuned: Sequence[str] = (),
    on_notice: Callable[[str], None] = lambda text: None,
) -> list[Method]:
    """The methods that these run folders, folders of them, and sweeps hold, in the order given. Runs that differ in nothing but
    the seed (and what has no bearing on it) are one method; in a sweep a cell's label says so, and so does the label of a
    (label, path).

    target: by it the best of tuned values is chosen: the one with the fewest rounds to it, or by default with the best
    accuracy, in the median over seeds. tuned: keys to treat as tuned where no sweep says so. say: is told of what is left out.
    ReportError if a folder is no run, if what is to be one method is several, or if nothing is left.
    """
    groups: dict[Any, dict[Any, dict[int, Run | None]]] = {}
    labels: dict[Any, str | None] = {}
    first: dict[Any, Run] = {}
    for entry in _read_entries(run_specs, tuned, on_notice):
        keys = [name for name, _ in entry.tuned]
        key = entry.label or collect_method_settings(entry.run, keys)
        labels[key] = entry.label
        if entry.run is not None:
            _require_same_settings(str(entry.label), first.setdefault(key, entry.run), entry.run, keys)
        seeds = groups.setdefault(key, {}).setdefault(entry.tuned, {})
        if seeds.get(entry.seed) is None:
            seeds[entry.seed] = entry.run
        elif entry.run is not None:
            _require_same_digests(seeds[entry.seed], entry.run)
    unnamed = [key for key, label in labels.items() if label is None]
    if len({tuple(one for one in key if one[0] != INITIAL_PARAMETERS_KEY) for key in unnamed}) < len(unnamed):
        on_notice(
            "runs that differ only in the initial parameters of their module are shown apart: give them one label, LABEL=RUN"
        )
    named = _assign_labels(unnamed, labels)
    methods = []
    for key, variants in groups.items():
        made = _build_method(named[key], variants, target)
        if made is None:
            on_notice(f"{named[key]} is left out: all of its runs ended in an error")
        else:
            methods.append(made)
    if not methods:
        raise ReportError("no run that finished is left to be compared")
    return methods


def _require_same_settings(label: str, first: Run, second: Run, tuned: Sequence[str]) -> None:
    """ReportError unless two runs of a label are one experiment but for the seed, what was tuned, and initial parameters."""
    a, b = (dict(collect_method_settings(run, tuned)) for run in (first, second))
    key = next((key for key in sorted({*a, *b} - {INITIAL_PARAMETERS_KEY}) if a.get(key) != b.get(key)), None)
    if key is not None:
        differ = f"{first.folder} has {key} = {a.get(key, 'none')}, {second.folder} has {b.get(key, 'none')}"
        raise ReportError(f"{label}: holds runs that differ by more than their seed: {differ}")


def _require_same_digests(first: Run | None, second: Run) -> None:
    """ReportError unless a run that is given twice is the same: equal settings and seed give equal bytes."""
    assert first is not None
    for digest in ("ledger_sha256", "params_sha256"):
        if first.summary[digest] != second.summary[digest]:
            alike = f"{first.folder} and {second.folder} have the same settings and seed"
            raise ReportError(f"{alike}, and another {digest}: compare them as LABEL=RUN, or leave one out")


def _read_entries(run_specs: Sequence[RunSpec], tuned: Sequence[str], on_notice: Callable[[str], None]) -> Iterator[_RunEntry]:
    for given in run_specs:
        label, path = (given[0], expand_user_path(given[1])) if isinstance(given, tuple) else (None, expand_user_path(given))
        if label is not None and not label.isprintable():
            raise ReportError(f"{label!r}: expected a label that can be printed in a line")
        if (path / "sweep.json").is_file() and label is None:
            yield from _read_sweep_entries(path, on_notice)
            continue
        for folder in find_runs(path):
            run = load_run(folder)
            for key in tuned:
                if key not in run.settings:
                    raise ReportError(f"{folder}: there is no setting {key} to be tuned{suggest_name(key, run.settings)}")
            yield _RunEntry(label, tuple((key, run.settings[key]) for key in tuned), run.seed, run)


def _read_sweep_entries(folder: Path, on_notice: Callable[[str], None]) -> Iterator[_RunEntry]:
    path = folder / "sweep.json"
    try:
        cells = json.loads(read_text(path))["cells"]
        known = [(c["state"], c["label"], tuple(c["tuned"].items()), c["seed"], folder / c["folder"]) for c in cells]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path}: is not what a sweep writes ({type(error).__name__}: {error})") from None
    waiting = sum(state not in ("finished", "failed") for state, *_ in known)
    if waiting:
        on_notice(f"{folder}: {waiting} of {len(known)} cells have not been run yet")
    for state, label, tuned, seed, where in known:
        if state in ("finished", "failed"):
            plain = tuple((key, json.dumps(value) if isinstance(value, list | dict) else value) for key, value in tuned)
            yield _RunEntry(label, plain, seed, load_run(where) if state == "finished" else None)


def collect_method_settings(run: Run | None, tuned: Sequence[str]) -> MethodSettings:
    """What makes a run the method that it is."""
    assert run is not None
    kept = {
        key: value
        for key, value in run.settings.items()
        if key not in IGNORED_KEYS
        and key.split(".")[0] not in IGNORED_SECTIONS
        and not any(f"{key}.".startswith(f"{t}.") for t in tuned)
    }
    if not any(key.startswith("model") for key in tuned):
        kept["model.parameters"] = run.summary["parameters"]
    undescribed = _find_undescribed_arguments(run)
    if undescribed:
        kept["given in Python"] = undescribed
    return tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in kept.items()))


def _find_undescribed_arguments(run: Run) -> list[str]:
    """Return the arguments of `fedsgd.run` that the scenario does not describe; earlier releases described none."""
    described = {
        "dataset": run.settings.get("data.name") == PYTHON_OBJECT_NAME,
        "module": run.settings.get("model.name") == PYTHON_OBJECT_NAME,
        "loss": "model.loss" in run.settings,
        "metrics": any(key.startswith("model.metrics.") for key in run.settings),
    }
    return [name for name in run.summary.get("given_in_python") or () if not described.get(name, False)]


def _assign_labels(unlabeled_settings: Sequence[MethodSettings], labels: Mapping[Any, str | None]) -> dict[Any, str]:
    """A label for each method: a sweep's own, or how it compresses, with as many settings beside as tell it from the others."""
    named = {key: label for key, label in labels.items() if label is not None}
    taken = set(named.values())
    shortened = name_objects([dict(settings) for settings in unlabeled_settings])
    keys = {id(short): settings for short, settings in zip(shortened, unlabeled_settings, strict=True)}
    for settings, words in _distinguishing_labels(shortened):
        label = wanted = ", ".join(words)
        n = 2
        while label in taken:
            label, n = f"{wanted} ({n})", n + 1
        taken.add(label)
        named[keys[id(settings)]] = label
    return named


def _distinguishing_labels(all_settings: Sequence[dict[str, str]]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(settings, words for them): those of the compressor, and where these are the same for several, those in which the several
    differ."""
    uplink = [key for key in _find_differing_keys(all_settings) if key.startswith("uplink")]
    names = shorten_keys(uplink)
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for settings in all_settings:
        name = json.loads(settings.get("uplink.compressor.name", '"run"'))
        held = json.loads(settings.get("uplink.error_feedback", '"none"'))
        feedback = {"none": [], "persist": ["error feedback"]}.get(held, [f"error feedback {held}"])
        apart = ("uplink.compressor.name", "uplink.error_feedback")
        others = [_format_setting(key, settings[key], names) for key in uplink if key in settings and key not in apart]
        groups.setdefault((name, *others, *feedback), []).append(settings)
    for words, alike in groups.items():
        beside = [key for key in _find_differing_keys(alike) if not key.startswith("uplink")]
        names = shorten_keys(beside)
        for settings in alike:
            yield settings, [*words, *(_format_setting(key, settings[key], names) for key in beside if key in settings)]


def _find_differing_keys(all_settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ among those that have them, names before their settings."""
    values: dict[str, set[str]] = {}
    for settings in all_settings:
        for key, value in settings.items():
            values.setdefault(key, set()).add(value)
    return sorted((key for key, known in values.items() if len(known) > 1), key=lambda key: (not key.endswith(".name"), key))


def _format_setting(key: str, value: str, names: Mapping[str, str]) -> str:
    """A setting, shortly: a component's name speaks for itself."""
    plain = json.loads(value)
    name = key.removesuffix(".name") if key.endswith(".name") else names[key]
    return f"{name.replace('_', ' ')} {format_value(plain)}"


def _build_method(label: str, variants: Mapping[Any, Mapping[int, Run | None]], target: float | None) -> Method | None:
    """At its best value of what was tuned; None if no run of it finished."""
    made = []
    for tuned, seeds in variants.items():
        runs = tuple(run for _, run in sorted(seeds.items()) if run is not None)
        made.append(TunedVariant(dict(tuned), runs, len(seeds) - len(runs)))
    finished = [variant for variant in made if variant.runs]
    if not finished:
        return None

    def sort_key(variant: TunedVariant) -> tuple[float, int, float]:
        rounds, best = (
            math.inf if target is None else variant.summarize_rounds_to_target(target).median,
            variant.summarize_best_accuracy(),
        )
        return rounds, variant.n_failed, math.inf if best is None else -best.median

    if not any(variant.has_accuracy for variant in finished):
        if target is not None:
            raise ReportError(f"{label}: its runs have no metric named accuracy, which a target needs")
        if len(finished) > 1:
            keys = ", ".join(finished[0].tuned)
            raise ReportError(
                f"{label}: its runs have no metric named accuracy, by which the best value of {keys} is chosen; give each as "
                "LABEL=RUN"
            )
    chosen = min(finished, key=sort_key)
    return Method(label, chosen, tuple(made), _find_grid_edge_keys(chosen, made))


def _find_grid_edge_keys(best_variant: TunedVariant, variants: Sequence[TunedVariant]) -> tuple[str, ...]:
    edge = []
    for key, value in best_variant.tuned.items():
        tried = [variant.tuned[key] for variant in variants if key in variant.tuned]
        numbers = [one for one in tried if isinstance(one, int | float) and not isinstance(one, bool)]
        if len(numbers) == len(tried) and len(set(tried)) > 1 and value in (min(tried), max(tried)):
            edge.append(key)
    return tuple(edge)
