"""Effort of the tests: the number of random examples, and the parameters that the inner loop leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings

EFFORT = int(os.environ.get("FEDSGD_TEST_EFFORT", "1"))
"""Factor of the numbers of examples; the nightly workflow sets the environment variable FEDSGD_TEST_EFFORT to 8."""


def examples(n: int) -> settings:
    """Return settings for `n` examples, times the factor of the environment."""
    return settings(max_examples=n * EFFORT)


def slow_unless(is_fast: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return parameters of a test, of which those that are not fast have the marker `slow`."""
    return [
        value if is_fast(value) else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
