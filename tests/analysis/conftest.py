"""Finished runs for the tests of the analysis."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
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


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder that one worker of pytest fills, while the others wait for it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of three methods with two seeds each, six rounds of the quickstart."""

    def run_methods(folder: Path) -> None:
        for name, settings in METHODS.items():
            for seed in (0, 1):
                scenario = fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, **settings, "seed": seed})
                fedsgd.run(scenario, out=folder / f"{name}-{seed}")

    return build_once(tmp_path_factory, "runs", run_methods)


@pytest.fixture(scope="session")
def stragglers(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a scenario with a deadline."""
    scenario = fedsgd.load(root / "scenarios" / "participation" / "stragglers.toml", {"rounds": 3, "client.epochs": 1})
    return build_once(tmp_path_factory, "stragglers", lambda folder: fedsgd.run(scenario, out=folder / "run")) / "run"
