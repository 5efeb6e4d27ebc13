"""Labels of methods: the compression, and the settings that distinguish the method from others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsgd.sweeps.labels import format_value, name_objects, shorten_keys

MethodSettings = tuple[tuple[str, str], ...]
"""Settings of a method, sorted, as pairs of a dotted key and JSON."""


def assign_labels(unlabeled_settings: Sequence[MethodSettings], labels: Mapping[Any, str | None]) -> dict[Any, str]:
    """Return a label for each method: the user's label, or the compression and the settings that distinguish the method."""
    method_labels = {key: label for key, label in labels.items() if label is not None}
    used_labels = set(method_labels.values())
    short_settings = name_objects([dict(settings) for settings in unlabeled_settings])
    keys = {id(short): settings for short, settings in zip(short_settings, unlabeled_settings, strict=True)}
    for settings, words in _distinguishing_labels(short_settings):
        label = base = ", ".join(words)
        n = 2
        while label in used_labels:
            label, n = f"{base} ({n})", n + 1
        used_labels.add(label)
        method_labels[keys[id(settings)]] = label
    return method_labels


def _distinguishing_labels(all_settings: Sequence[dict[str, str]]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield settings with words for a label: compression, and for methods of equal compression the settings that differ."""
    uplink = [key for key in _find_differing_keys(all_settings) if key.startswith("uplink")]
    names = shorten_keys(uplink)
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for settings in all_settings:
        name = json.loads(settings.get("uplink.compressor.name", '"run"'))
        feedback = json.loads(settings.get("uplink.error_feedback", '"none"'))
        feedback_words = {"none": [], "persist": ["error feedback"]}.get(feedback, [f"error feedback {feedback}"])
        special = ("uplink.compressor.name", "uplink.error_feedback")
        options = [_format_setting(key, settings[key], names) for key in uplink if key in settings and key not in special]
        groups.setdefault((name, *options, *feedback_words), []).append(settings)
    for words, group in groups.items():
        others = [{key: value for key, value in settings.items() if not key.startswith("uplink")} for settings in group]
        for settings, other_words in zip(group, describe_distinct_settings(others), strict=True):
            yield settings, [*words, *other_words]


def describe_distinct_settings(all_settings: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return words for the settings that differ, for each method or group of methods.

    >>> describe_distinct_settings([{"client.epochs": "1", "rounds": "5"}, {"client.epochs": "2", "rounds": "5"}])
    [['epochs 1'], ['epochs 2']]

    Args:
        all_settings: settings of each method, JSON texts by dotted key.
    """
    keys = _find_differing_keys(all_settings)
    names = shorten_keys(keys)
    return [[_format_setting(key, settings[key], names) for key in keys if key in settings] for settings in all_settings]


def _find_differing_keys(all_settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that have several values, or that only some settings have; names of components before all other settings.

    A key that only some settings have is left out if the name of its component decides which settings have it.
    """
    values = {key: {settings.get(key) for settings in all_settings} for settings in all_settings for key in settings}

    def is_decided_by_name(key: str) -> bool:
        parts = key.removesuffix(".name").split(".")
        ancestors = (f"{'.'.join(parts[:i])}.name" for i in range(len(parts) - 1, 0, -1))
        name = next((ancestor for ancestor in ancestors if ancestor in values), None)
        if name is None:
            return False
        pairs = {(settings.get(name), key in settings) for settings in all_settings}
        return len(pairs) == len(values[name])

    keys = (
        key
        for key, distinct in values.items()
        if len(distinct - {None}) > 1 or (len(distinct) > 1 and not is_decided_by_name(key))
    )
    return sorted(keys, key=lambda key: (not key.endswith(".name"), key))


def _format_setting(key: str, value: str, names: Mapping[str, str]) -> str:
    """Return a setting with its shortened key."""
    name = key.removesuffix(".name") if key.endswith(".name") else names[key]
    return f"{name.replace('_', ' ')} {format_value(json.loads(value))}"
