"""Fixtures of the tests of the Flower integration."""

from __future__ import annotations

import random
import sys
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


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a user's modules, on the path of this process only. The modules that a test imports are removed at the end."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    modules = set(sys.modules)
    yield folder
    for name in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", None) or getattr(sys.modules[name], "__path__", "")):
            del sys.modules[name]
