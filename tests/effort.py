"""Effort of the tests: the number of random examples, and the cases that the inner loop and the run by day leave out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zlib import crc32

import pytest
from _pytest.mark import ParameterSet
from hypothesis import settings

EFFORT = int(os.environ.get("FEDSGD_TEST_EFFORT", "1"))
"""Factor of the numbers of examples; the nightly workflow sets the environment variable FEDSGD_TEST_EFFORT to 8.

With 1, tests with the marker `nightly` are left out, and three quarters of the cases of a test with the marker `sampled`.
"""


def examples(n: int, nightly: int | None = None) -> settings:
    """Return settings for half of `n` examples; with a factor of the environment, `nightly` or else `n` examples times the factor.

    Examples do not differ between runs, so a run by day repeats those of the day before. The first example is the simplest one,
    such as no clients or a zero vector, so small numbers are not halved.
    """
    return settings(max_examples=max(min(n, 3), n // 2) if EFFORT == 1 else (nightly or n) * EFFORT)


def slow_unless(is_fast: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return parameters of a test, of which those that are not fast have the marker `slow`."""
    return _mark_unless(is_fast, values, pytest.mark.slow)


def nightly_unless(is_routine: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """Return parameters of a test, of which those that are not routine have the marker `nightly`."""
    return _mark_unless(is_routine, values, pytest.mark.nightly)


def find_nightly_items(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the items that are left out by day.

    Of a sampled test, the quarter of the cases with the smallest checksums of their names runs, and further cases until each
    component of a test of components and laws has one.
    """
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("nightly"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        nightly += _find_cases_to_leave_out(sorted(group, key=lambda item: crc32(item.nodeid.encode())))
    return nightly


def _find_cases_to_leave_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the last three quarters of a test's cases, without the first case with each value of one of several parameters."""
    values = [{*item.callspec.indices.items()} for item in items]
    counts = Counter(value for case in values for value in case)
    n_daily = -(-len(items) // 4)
    covered = {value for case in values[:n_daily] for value in case}
    left_out = []
    for item, case in zip(items[n_daily:], values[n_daily:], strict=True):
        if any(counts[value] > 1 for value in case - covered):
            covered |= case
        else:
            left_out.append(item)
    return left_out


def _mark_unless(is_plain: Callable[[Any], bool], values: Iterable[Any], mark: pytest.MarkDecorator) -> list[Any]:
    return [value if is_plain(_value_of(value)) else _with_mark(value, mark) for value in values]


def _value_of(value: Any) -> Any:
    """Return the value of a parameter that may have marks."""
    return value.values[0] if isinstance(value, ParameterSet) else value


def _with_mark(value: Any, mark: pytest.MarkDecorator) -> Any:
    if isinstance(value, ParameterSet):
        return pytest.param(*value.values, marks=[*value.marks, mark])
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=mark)
