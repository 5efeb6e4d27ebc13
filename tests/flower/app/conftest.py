"""Fixtures of the tests of compression in Flower apps."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _use_state_root(state_root: Path) -> None:
    """Store the client state of every test in this folder in a temporary folder."""
