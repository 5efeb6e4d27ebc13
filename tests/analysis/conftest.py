"""Finished runs for the tests of the analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsgd
from tests.analysis.helpers import TINY

METHODS: dict[str, dict[str, Any]] = {
    "dense": {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none", "downlink.policy": "model"},
    "topk": {},
    "stc": {
        "uplink.compressor": {"name": "stc", "density": 0.05},
        "uplink.error_feedback": "none",
        "downlink": {"policy": "error-feedback", "compressor": {"name": "top-k", "density": 0.1}},
    },
}


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of three methods with two seeds each, six rounds of the quickstart."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in METHODS.items():
        for seed in (0, 1):
            scenario = fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, **settings, "seed": seed})
            fedsgd.run(scenario, out=folder / f"{name}-{seed}")
    return folder


@pytest.fixture(scope="session")
def stragglers(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a scenario with a deadline."""
    folder = tmp_path_factory.mktemp("stragglers") / "run"
    fedsgd.run(
        fedsgd.load(root / "scenarios" / "participation" / "stragglers.toml", {"rounds": 3, "client.epochs": 1}), out=folder
    )
    return folder
