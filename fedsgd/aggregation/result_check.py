"""Check of the results of a user's aggregators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsgd.aggregation.base import AggregationResult, Aggregator
from fedsgd.config.user_errors import describe_result, find_user_class, make_component_error


def check_result(aggregator: Aggregator, result: Any, size: int, round: int) -> AggregationResult:
    """Return the result of `aggregate`, after a check if the aggregator is a user's.

    Args:
        aggregator: aggregator of the run.
        result: value that its `aggregate` returned.
        size: P.
        round: number of the round, from 1.

    Raises:
        RunError: the result is not a vector [P] and a mapping of arrays; the message names the aggregator's class.
    """
    if find_user_class(aggregator) is not None and (problem := _find_problem(result, size)):
        raise make_component_error("server.aggregator", aggregator, f"aggregate returned {problem}", round)
    checked_result: AggregationResult = result
    return checked_result


def _find_problem(result: Any, size: int) -> str | None:
    if not isinstance(result, tuple) or len(result) != 2:
        return f"{describe_result(result)}, expected (array of shape [{size}], dict of arrays)"
    update, state = result
    if not isinstance(update, np.ndarray) or update.shape != (size,) or update.dtype.kind != "f":
        return f"({describe_result(update)}, state), expected an array of float32 and shape [{size}]"
    if not isinstance(state, Mapping):
        return f"(aggregate, {describe_result(state)}), expected a dict of arrays as the next state"
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            return f"a state whose entry {name!r} is {describe_result(value)}, expected an array"
    return None
