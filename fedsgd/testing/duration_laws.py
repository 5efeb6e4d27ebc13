"""Laws of duration models."""

from __future__ import annotations

import math

import numpy as np

from fedsgd.certification.law import Law, make_law
from fedsgd.certification.operator_laws import require
from fedsgd.certification.simulate_rounds import rebuild
from fedsgd.sampling import DurationModel
from fedsgd.testing.component_laws import arrange_laws

SEEDS, ROUNDS, CLIENTS, STEPS = (0, 1), (1, 7), (0, 1, 2, 10**6), (0, 1, 5, 100, 10**6)


def _list_durations(model: DurationModel, order: int = 1) -> list[tuple[tuple[int, int, int, int], float]]:
    """Return arguments and durations; order −1 makes the calls in the reverse order."""
    arguments = [(seed, round, client, steps) for seed in SEEDS for round in ROUNDS for client in CLIENTS for steps in STEPS]
    return [(call, model.reply_seconds(*call)) for call in arguments[::order]][::order]


def valid_durations(model: DurationModel) -> None:
    """A duration is a finite number of seconds, at least 0."""
    for (seed, round, client, steps), seconds in _list_durations(model):
        is_number = isinstance(seconds, float | int | np.floating) and math.isfinite(seconds) and seconds >= 0
        figures = f"client {client} takes {seconds!r} seconds for {steps} steps in round {round} with seed {seed}"
        require(is_number, "valid_durations", model, f"{figures}, expected a finite number of at least 0")


def ascending_durations(model: DurationModel) -> None:
    """A duration does not decrease with the number of steps."""
    durations = dict(_list_durations(model))
    for (seed, round, client, steps), seconds in durations.items():
        shorter = [durations[seed, round, client, fewer] for fewer in STEPS if fewer < steps]
        figures = f"client {client} takes {seconds:.6g} seconds for {steps} steps, but {max(shorter, default=0):.6g} for fewer"
        require(seconds >= max(shorter, default=seconds), "ascending_durations", model, figures)


def equal_durations(model: DurationModel) -> None:
    """A duration depends on the settings and the arguments alone, in any order of calls."""
    for (call, seconds), (_, repeated) in zip(_list_durations(model), _list_durations(rebuild(model), -1), strict=True):
        figures = f"(seed, round, client, steps) = {call}: {seconds!r} seconds, then {repeated!r}"
        require(seconds == repeated, "equal_durations", model, figures)


def list_duration_laws(model: DurationModel) -> list[Law]:
    """Return the laws of a duration model."""
    laws = [make_law(law, model) for law in (valid_durations, ascending_durations, equal_durations)]
    return arrange_laws(model, laws, lambda: _list_durations(rebuild(model)))
