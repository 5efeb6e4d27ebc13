"""Differences between methods that are shown side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedsgd.analysis.methods import Method, collect_method_settings
from fedsgd.analysis.runs import Run
from fedsgd.sweeps.labels import format_value, name_objects

MAX_LISTED_VALUES = 3
"""Most values of a difference that are written out."""


def find_differing_settings(methods: Sequence[Method]) -> list[str]:
    """The dotted keys in which they differ."""
    every = [dict(collect_method_settings(method.runs[0], ())) for method in methods]
    keys = sorted({key for settings in every for key in settings})
    return [key for key in keys if len({settings.get(key) for settings in every}) > 1]


def describe_other_differences(methods: Sequence[Method]) -> str | None:
    """Return a sentence that names in which of dataset, partition, model, rounds and clients the methods differ, None if in
    nothing of these: then their figures can be compared."""
    shortened = name_objects([_serialize_settings(method.runs[0]) for method in methods])
    topics = [_group_settings_by_topic(settings, method.runs[0]) for settings, method in zip(shortened, methods, strict=True)]
    differences = []
    for topic in topics[0]:
        every = [each[topic] for each in topics]
        keys = sorted({key for settings in every for key in settings}, key=lambda key: (not key.endswith("name"), key))
        keys = [key for key in keys if len({settings.get(key) for settings in every}) > 1]
        values = [
            ", ".join(_format_value(key, settings[key]) for key in keys if key in settings) or "default" for settings in every
        ]
        distinct = list(dict.fromkeys(values))
        more = [f"{len(distinct) - MAX_LISTED_VALUES} more"] * (len(distinct) > MAX_LISTED_VALUES)
        if keys:
            differences.append(f"{topic} ({'; '.join([*distinct[:MAX_LISTED_VALUES], *more])})")
    return f"the runs differ in more than their method: {', '.join(differences)}" if differences else None


def _serialize_settings(run: Run) -> dict[str, str]:
    return {key: json.dumps(value, sort_keys=True) for key, value in run.settings.items()}


def _group_settings_by_topic(settings: dict[str, str], run: Run) -> dict[str, dict[str, str]]:
    """Return by topic the settings, as JSON, on which every figure of a run depends, whatever its method."""
    tables = {
        name: {k: v for k, v in settings.items() if k.startswith(f"{name}.")} for name in ("data", "data.partition", "model")
    }
    data, partition, model = tables.values()
    clients, parameters = (json.dumps(run.summary[key]) for key in ("clients", "parameters"))
    return {
        "dataset": {key: value for key, value in data.items() if key not in partition},
        "partition": {key: value for key, value in partition.items() if key != "data.partition.clients"},
        "model": {**model, "parameters": parameters},
        "rounds": {"name": settings.get("rounds", "null")},
        "clients": {"name": clients},
    }


def _format_value(key: str, value: str) -> str:
    """Return a setting in words; a component's name speaks for itself."""
    text = format_value(json.loads(value))
    return text if key.endswith("name") else f"{key.rpartition('.')[2].replace('_', ' ')} {text}"
