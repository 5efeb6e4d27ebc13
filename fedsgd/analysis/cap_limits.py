"""Limits of compressor settings: the value of a setting at which a client's bytes a month reach a cap.

The runs of a sweep give the bytes at the values that were tried. Between two of these values, the bytes are interpolated.
Beyond the values, nothing is extrapolated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fedsgd.analysis.method_labels import MethodSettings, describe_distinct_settings
from fedsgd.analysis.methods import Method, TunedVariant, collect_method_settings
from fedsgd.analysis.runs import Run
from fedsgd.sweeps.labels import name_objects

Scale = Literal["linear", "logarithmic"]
RunsByValue = dict[float, tuple[str, tuple[Run, ...]]]
"""Label of the method and runs, by the value of a setting."""


@dataclass(frozen=True)
class SettingValues:
    """Runs that differ only in one numeric setting of a compressor and in their seeds.

    Attributes:
        label: method, or compressor of several methods and the settings that distinguish it from the same compressor.
        setting: dotted key of the setting.
        values: at least two values that were tried, ascending.
        runs: runs of each value, one for each seed.
    """

    label: str
    setting: str
    values: tuple[float, ...]
    runs: tuple[tuple[Run, ...], ...]


@dataclass(frozen=True)
class CapLimit:
    """Value of a compressor's setting up to which, or from which, a client stays within a cap.

    Attributes:
        label: as in `SettingValues`.
        setting: dotted key of the setting.
        outcome: "within": `value` is the limit. "all": all tried values stay within the cap. "none": no tried value does.
            "unordered": the bytes do not change in one direction with the setting, so there is no limit.
        value: limit within the range that was tried; for "all" and "none", the value at the edge of the range; None for
            "unordered".
        is_largest: True if `value` is a maximum, because the bytes rise with the setting; False if it is a minimum.
        scale: scale of the interpolation; None if `value` was tried.
        tried_values: values that were tried, ascending.
        client_bytes_per_month: bytes at each of these values of the client at the fleet's share.
    """

    label: str
    setting: str
    outcome: Literal["within", "all", "none", "unordered"]
    value: float | None
    is_largest: bool
    scale: Scale | None
    tried_values: tuple[float, ...]
    client_bytes_per_month: tuple[float, ...]


def find_cap_limit(setting_values: SettingValues, client_bytes: Sequence[float], cap: float) -> CapLimit:
    """Return the limit of a setting.

    Args:
        setting_values: values that were tried.
        client_bytes: bytes of a client in a month at each value.
        cap: maximum bytes of a client in a month.
    """
    values = setting_values.values
    head, tried = (setting_values.label, setting_values.setting), (tuple(values), tuple(client_bytes))
    is_largest = client_bytes[0] <= client_bytes[-1]
    points = list(zip(values, client_bytes, strict=True))
    if not is_largest:
        points.reverse()
    if any(low > high for (_, low), (_, high) in pairwise(points)):
        return CapLimit(*head, "unordered", None, is_largest, None, *tried)
    if points[-1][1] <= cap:
        return CapLimit(*head, "all", points[-1][0], is_largest, None, *tried)
    if points[0][1] > cap:
        return CapLimit(*head, "none", points[0][0], is_largest, None, *tried)
    below, above = next(pair for pair in pairwise(points) if pair[1][1] > cap)
    if below[1] == cap:
        return CapLimit(*head, "within", below[0], is_largest, None, *tried)
    scale = choose_scale(values, client_bytes)
    value = interpolate(below[::-1], above[::-1], cap, scale)
    if all(isinstance(tried_value, int) for tried_value in values):
        value = math.floor(value) if is_largest else math.ceil(value)
        if value == below[0]:
            return CapLimit(*head, "within", value, is_largest, None, *tried)
    return CapLimit(*head, "within", value, is_largest, scale, *tried)


def choose_scale(values: Sequence[float], client_bytes: Sequence[float]) -> Scale:
    """Return the scale that interpolates the inner points better from their neighbors; "linear" with fewer than three points.

    The bytes of a sparse update are almost proportional to its density, plus the bytes of frames without density: linear. The
    bytes of a quantized update grow with the logarithm of its levels: logarithmic.

    >>> choose_scale([0.1, 0.2, 0.4], [11.0, 21.0, 41.0]), choose_scale([0.1, 1.0, 10.0], [5.0, 50.0, 500.0])
    ('linear', 'linear')
    >>> choose_scale([4, 16, 64], [2.0, 4.0, 6.0])
    'logarithmic'

    Args:
        values: values of a setting, ascending.
        client_bytes: bytes of a client at each value.
    """
    points = list(zip(values, client_bytes, strict=True))
    if min(values) <= 0 or min(client_bytes) <= 0:
        return "linear"
    scales: tuple[Scale, ...] = ("linear", "logarithmic")
    errors = {
        scale: sum(
            abs(math.log(interpolate(before, after, point[0], scale) / point[1]))
            for before, point, after in zip(points, points[1:], points[2:], strict=False)
        )
        for scale in scales
    }
    return "logarithmic" if errors["logarithmic"] < errors["linear"] - 1e-9 else "linear"


def interpolate(before: tuple[float, float], after: tuple[float, float], x: float, scale: Scale) -> float:
    """Return y at x on the line through two points (x, y), on linear scales or on two logarithmic scales."""
    (x0, y0), (x1, y1) = before, after
    if scale == "linear":
        return y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    share = (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
    return math.exp(math.log(y0) + share * (math.log(y1) - math.log(y0)))


def collect_setting_values(methods: Sequence[Method]) -> Iterator[SettingValues]:
    """Yield the numeric settings of compressors for which the methods have runs at several values.

    Values may be those of a method's tuned settings, or those of methods that differ in one setting. All other tuned settings
    have the best values of each method.
    """
    keys = sorted({key for method in methods for run in method.runs for key in run.settings if _is_compressor_key(key)})
    for key in keys:
        groups: dict[MethodSettings, RunsByValue] = {}
        for method in methods:
            for variant in _select_variants(method, key):
                value = variant.runs[0].settings.get(key)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    group = collect_method_settings(variant.runs[0], [key, *variant.tuned])
                    groups.setdefault(group, {}).setdefault(value, (method.label, variant.runs))
        groups = {settings: runs_by_value for settings, runs_by_value in groups.items() if len(runs_by_value) > 1}
        for label, runs_by_value in zip(_label_groups(key, groups), groups.values(), strict=True):
            values = sorted(runs_by_value)
            yield SettingValues(label, key, tuple(values), tuple(runs_by_value[value][1] for value in values))


def _label_groups(key: str, groups: Mapping[MethodSettings, RunsByValue]) -> list[str]:
    """Return the label of each group: its method or its compressor, and for equal labels the settings that differ."""
    compressor_key = f"{key.rpartition('.')[0]}.name"
    all_settings = name_objects([dict(settings) for settings in groups])
    labels = []
    for settings, runs_by_value in zip(all_settings, groups.values(), strict=True):
        method_labels = {label for label, _ in runs_by_value.values()}
        compressor = str(json.loads(settings.get(compressor_key, '"compressor"')))
        labels.append(method_labels.pop() if len(method_labels) == 1 else compressor)
    for label in set(labels):
        indices = [i for i, other in enumerate(labels) if other == label]
        for i, words in zip(indices, describe_distinct_settings([all_settings[i] for i in indices]), strict=True):
            labels[i] = ", ".join([label, *words])
    return labels


def _is_compressor_key(key: str) -> bool:
    """Return True for a setting of the uplink's or of the downlink's compressor."""
    return key.startswith(("uplink.compressor.", "downlink.compressor."))


def _select_variants(method: Method, key: str) -> Iterator[TunedVariant]:
    """Yield the finished variants of a method that differ from its best variant in one setting alone."""
    best = method.best_variant.tuned
    for variant in method.variants:
        if variant.runs and all(variant.tuned[name] == value for name, value in best.items() if name != key):
            yield variant
