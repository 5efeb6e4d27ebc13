"""Fixtures of the tests of the Flower integration."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flower.grid import identity


@pytest.fixture
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of all nodes' client state. Messages come from the SuperLink, and cohorts are reproducible."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FEDSGD_STATE_BUDGET", raising=False)
    random.seed(0)  # Flower draws its cohorts from Python's global generator
    with identity(1):
        yield tmp_path / "state"
