"""Limits of compressor settings under a cap, computed by hand and for a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.analysis import Run, load_methods
from fedsgd.analysis.cap_limits import CapLimit, choose_scale, collect_setting_values, find_cap_limit
from fedsgd.analysis.cap_limits import SettingValues as Values
from fedsgd.analysis.fleet import FleetConfig
from fedsgd.analysis.fleet_result import describe_cap_limit, price_fleet
from fedsgd.analysis.methods import Method, TunedVariant
from tests.analysis.helpers import TINY, invoke

KEY = "uplink.compressor.density"
FLEET = FleetConfig(30, cap="100 MB/month")


def find(values: Sequence[float], client_bytes: Sequence[float], cap: float = 1e8) -> CapLimit:
    return find_cap_limit(Values("top-k", KEY, tuple(values), ((),) * len(values)), client_bytes, cap)


@pytest.mark.parametrize(
    ("values", "megabytes", "expected", "text"),
    [
        # fixed bytes and bytes in proportion to the density: linear
        ([0.1, 0.2, 0.4], [60, 80, 120], 0.3, "with {key} up to 0.3, 95 % of the clients stay within 100 MB/month (linear"),
        # bytes in proportion to a power of the value: linear on logarithmic scales
        ([1.0, 4.0, 16.0], [20, 80, 320], 5.0, "up to 5, 95 %"),
        (
            [1.0, 4.0, 16.0, 64.0],
            [25, 50, 100, 200],
            16.0,
            "up to 16, 95 % of the clients stay within 100 MB/month (a value that",
        ),
        ([1.0, 4.0, 16.0, 64.0], [30, 60, 120, 240], 11.1111111, "log-log interpolation between 4 and 16"),
        ([0.1, 0.2], [20, 180], 0.15, "linear interpolation between 0.1 and 0.2"),
        ([2, 4, 8], [60, 80, 120], 6, "up to 6, 95 %"),
        ([2, 5, 8], [60, 90, 120], 6, "up to 6, 95 %"),
        ([4, 5, 6], [90, 99, 120], 5, "up to 5, 95 % of the clients stay within 100 MB/month (a value that was run)"),
        # a threshold, with which the bytes fall
        ([0.1, 0.2, 0.3], [160, 120, 80], 0.25, "from 0.25 up, 95 %"),
        ([0.1, 0.2], [20, 99], 0.2, "with every {key} that was run; 0.2, the largest value that was run, needs 99 MB"),
        ([0.1, 0.2], [99, 20], 0.1, "with every {key} that was run; 0.1, the smallest value that was run, needs 99 MB"),
        (
            [0.1, 0.2],
            [101, 180],
            0.1,
            "no {key} that was run keeps 95 % of the clients within 100 MB/month; 0.1, the smallest,",
        ),
        ([0.1, 0.2], [180, 101], 0.2, "0.2, the largest, needs 101 MB"),
        ([0.1, 0.2, 0.3], [20, 180, 90], None, "the bytes do not change in one direction with {key}"),
    ],
)
def test_limit_equals_hand_computed_value(
    values: Sequence[float], megabytes: Sequence[float], expected: float | None, text: str
) -> None:
    limit = find(values, [1e6 * n for n in megabytes])
    assert limit.value == (None if expected is None else pytest.approx(expected))
    assert text.format(key=KEY) in describe_cap_limit(limit, FLEET)
    assert limit.value is None or min(values) <= limit.value <= max(values), "nothing is extrapolated"


def test_scale_without_inner_points_is_linear() -> None:
    assert choose_scale([1.0, 10.0], [5.0, 50.0]) == "linear"
    assert choose_scale([0.0, 1.0, 2.0], [5.0, 10.0, 15.0]) == "linear"


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of top-k at three densities, and of a dense method."""
    folder = tmp_path_factory.mktemp("densities")
    settings: dict[str, dict[str, Any]] = {f"topk-{density}": {KEY: density} for density in (0.01, 0.1, 0.5)}
    settings["dense"] = {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none"}
    for name, changes in settings.items():
        scenario = fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, "rounds": 2, **changes})
        fedsgd.run(scenario, out=folder / name)
    return folder


@pytest.mark.slow
def test_settings_of_methods_and_tuned_settings_give_equal_limits(folder: Path) -> None:
    apart = list(collect_setting_values(load_methods([folder])))
    tuned = list(collect_setting_values(load_methods(sorted(folder.glob("topk-*")), None, [KEY])))
    assert [(one.label, one.setting, one.values) for one in apart] == [("top-k", KEY, (0.01, 0.1, 0.5))]
    assert [one.values for one in tuned] == [(0.01, 0.1, 0.5)]
    assert [[run.folder for run in runs] for runs in tuned[0].runs] == [[run.folder for run in runs] for runs in apart[0].runs]
    assert not list(collect_setting_values(load_methods([folder / "topk-0.1", folder / "dense"])))


def make_method(settings: dict[str, Any]) -> Method:
    """Return a method of one run, labeled by its settings."""
    variant = TunedVariant({}, (Run(Path(), settings, "", {"parameters": 10}, {}),))
    return Method(str(settings), variant, (variant,), ())


def test_lines_name_the_compressor_of_the_direction_and_settings_that_differ() -> None:
    down = {"uplink.compressor.name": "qsgd", "downlink.compressor.name": "top-k", "uplink.error_feedback": "none"}
    methods = [make_method({**down, "downlink.compressor.density": density}) for density in (0.1, 0.2)]
    assert [(one.label, one.setting) for one in collect_setting_values(methods)] == [("top-k", "downlink.compressor.density")]
    up = {"uplink.compressor.name": "top-k"}
    methods = [
        make_method({**up, KEY: density, "uplink.error_feedback": feedback, "client.epochs": 2})
        for feedback in ("none", "persist")
        for density in (0.1, 0.2)
    ]
    labels = [one.label for one in collect_setting_values(methods)]
    assert labels == ["top-k, error feedback none", "top-k, error feedback persist"]


@pytest.mark.slow
def test_command_gives_the_limit_between_two_runs(folder: Path) -> None:
    rows = price_fleet([folder], FleetConfig(30)).rows
    points = {row.label: row.client_95th_percentile_bytes_per_month.median for row in rows if row.label.startswith("top-k")}
    low, high = sorted(points.values())[1:]
    cap = f"{round((low + high) / 2)}B/month"
    content = json.loads(invoke("price", folder, "--rounds-per-month", "30", "--cap", cap, "--json").stdout)["fleet"]
    (limit,) = content["cap_limits"]
    assert limit["setting"] == KEY
    assert 0.1 < limit["value"] < 0.5
    text = invoke("price", folder, "--rounds-per-month", "30", "--cap", cap, "--share", "0.5").stdout
    assert f"top-k: 50 % of the clients stay within {cap} with every {KEY} that was run" in text
