"""Differences between the settings of compared methods."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedsgd.analysis.methods import Method, collect_method_settings
from fedsgd.analysis.runs import Run
from fedsgd.config.user_classes import name_source
from fedsgd.sweeps.labels import format_value, name_objects

MAX_LISTED_VALUES = 3
"""Maximum number of values per difference in a sentence."""

PAIRED_TOPICS = ("dataset", "partition", "model", "clients")
"""Topics that determine, with the seed, the splits and the initial model."""
COHORT_PREFIXES = ("server.cohort", "server.fraction", "server.sampler", "participation.")
"""First characters of the settings that determine the cohorts, with the seed."""


def find_differing_settings(methods: Sequence[Method]) -> list[str]:
    """Return the settings in which methods differ, as dotted keys."""
    all_settings = [dict(collect_method_settings(method.runs[0], ())) for method in methods]
    keys = sorted({key for settings in all_settings for key in settings})
    return [key for key in keys if len({settings.get(key) for settings in all_settings}) > 1]


def describe_other_differences(methods: Sequence[Method]) -> str | None:
    """Return a sentence about differences in data, model, rounds, clients, evaluation and code, or None without any."""
    tables = name_objects([_serialize_settings(method.runs[0]) for method in methods])
    topics = [_group_settings_by_topic(settings, method.runs[0]) for settings, method in zip(tables, methods, strict=True)]
    differences = []
    for topic in topics[0]:
        topic_settings = [settings[topic] for settings in topics]
        keys = sorted({key for settings in topic_settings for key in settings}, key=lambda key: (not key.endswith("name"), key))
        keys = [key for key in keys if len({settings.get(key) for settings in topic_settings}) > 1]
        values = [
            ", ".join(_format_value(key, settings[key]) for key in keys if key in settings) or "default"
            for settings in topic_settings
        ]
        distinct_values = list(dict.fromkeys(values))
        remainder = [f"{len(distinct_values) - MAX_LISTED_VALUES} more"] * (len(distinct_values) > MAX_LISTED_VALUES)
        if keys:
            differences.append(f"{topic} ({'; '.join([*distinct_values[:MAX_LISTED_VALUES], *remainder])})")
    for name in sorted({name for method in methods for name in method.runs[0].user_code}):
        digests = dict.fromkeys(code[name] for method in methods if name in (code := method.runs[0].user_code))
        if len(digests) > 1:
            differences.append(f"source of {name_source(name)} (sha256 {'; '.join([*digests][:MAX_LISTED_VALUES])})")
    return f"the runs differ in more than their method: {', '.join(differences)}" if differences else None


def find_unpaired_topics(first: Run, second: Run) -> list[str]:
    """Return the topics, such as "model", in which two runs of one seed differ, so that splits or initial models may differ."""
    tables = name_objects([_serialize_settings(run) for run in (first, second)])
    topics = [_group_settings_by_topic(settings, run) for settings, run in zip(tables, (first, second), strict=True)]
    return [topic for topic in PAIRED_TOPICS if topics[0][topic] != topics[1][topic]]


def have_equal_cohorts(first: Run, second: Run) -> bool:
    """Return True if the settings that determine the cohorts of a seed are equal in two runs."""
    cohorts = [
        {key: value for key, value in run.settings.items() if key.startswith(COHORT_PREFIXES)} for run in (first, second)
    ]
    return cohorts[0] == cohorts[1]


def _serialize_settings(run: Run) -> dict[str, str]:
    return {key: json.dumps(value, sort_keys=True) for key, value in run.settings.items()}


def _group_settings_by_topic(settings: dict[str, str], run: Run) -> dict[str, dict[str, str]]:
    """Return by topic the settings, as JSON, that must be equal for a fair comparison."""
    tables = {
        name: {k: v for k, v in settings.items() if k.startswith(f"{name}.")} for name in ("data", "data.partition", "model")
    }
    data, partition, model = tables.values()
    examples = {key: value for key, value in settings.items() if key in ("evaluation.test", "evaluation.validation")}
    clients, parameters = (json.dumps(run.summary[key]) for key in ("clients", "parameters"))
    return {
        "dataset": {**{key: value for key, value in data.items() if key not in partition}, **examples},
        "partition": {key: value for key, value in partition.items() if key != "data.partition.clients"},
        "model": {**model, "parameters": parameters},
        "rounds": {"name": settings.get("rounds", "null")},
        "clients": {"name": clients},
        "evaluation": {key: settings[key] for key in ("evaluation.every",) if key in settings},
    }


def _format_value(key: str, value: str) -> str:
    """Return "key value"; for the name of a component, the value alone."""
    text = format_value(json.loads(value))
    return text if key.endswith("name") else f"{key.rpartition('.')[2].replace('_', ' ')} {text}"
