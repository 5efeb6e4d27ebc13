"""Test vectors of prices, for which the report's Python and the script of its page must agree.

`python -m tests.golden.pricing` writes the vectors: inputs, and the results of Python. null means not measured (NaN) among
accuracies, and not reached (infinity) among times.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.analysis.pricing import SPEEDS, MethodTiming, TimeToTarget, break_evens, make_link_scaler
from fedsgd.analysis.utilization import UTILIZATION_LEVELS, find_utilization_speed
from fedsgd.config.quantities import format_bytes, format_rate, format_seconds, format_significant
from fedsgd.experiment.time_to_target import find_first_reached, list_best_so_far, summarize_seeds
from fedsgd.network import Link, Network, RoundTimeModel
from fedsgd.network.round_times import CANDIDATE_COLUMNS
from fedsgd.scenario.target import Target

SHARED = {
    "shared_down": "shared_down",
    "shared_up": "shared_up",
    "serving": "server_seconds",
    "waiting": "lost_reply_wait",
    "due": "deadline",
}
"""Fields of `RoundTimeModel` and of `RoundTimeBreakdown` by their keys in the vectors."""
FILE = Path(__file__).parent / "pricing.json"
PLACES = [(1e3, 4e3, 0.0), (7.6e6, 29.5e6, 0.0105), (1.23e9, 1e9, 0.3), (1e12, 1e12, 2.0)]
Columns = Mapping[str, Any]


def timeline(columns: Columns) -> RoundTimeModel:
    """Build the round times of columns as in the page's payload, where a constant column is one number."""
    offsets = np.array(columns["offsets"], dtype=np.int64)
    sizes = {**dict.fromkeys(CANDIDATE_COLUMNS, int(offsets[-1])), **dict.fromkeys(SHARED, len(offsets) - 1)}
    whole = {name: np.broadcast_to(np.array(columns[name], dtype=np.float64), size).copy() for name, size in sizes.items()}
    return RoundTimeModel(offsets, **{SHARED.get(name, name): values for name, values in whole.items()})


def plain(**columns: Any) -> Columns:
    """Return the columns of rounds with one candidate; columns that are not given are 0."""
    offsets = columns.pop("offsets", list(range(1 + max(len(v) for v in columns.values() if isinstance(v, list)))))
    return {"offsets": offsets, **dict.fromkeys((*CANDIDATE_COLUMNS, *SHARED), 0.0), **columns}


def drawn(rng: random.Random, rounds: int, bits: float) -> Columns:
    """Draw the columns of rounds with one to six candidates."""
    counts = [rng.randint(1, 6) for _ in range(rounds)]
    offsets = [sum(counts[:r]) for r in range(rounds + 1)]
    n = offsets[-1]
    scales = {"messages": 4.0, "delay": 0.02, "down": bits, "compute": 3.0, "coding": 0.2, "up": bits / 3}
    columns: dict[str, Any] = {name: [rng.random() * scale for _ in range(n)] for name, scale in scales.items()}
    columns["messages"] = [float(rng.randint(2, 4)) for _ in range(n)]
    return {"offsets": offsets, **columns, **{name: [rng.random() for _ in range(rounds)] for name in SHARED}, "due": 0.0}


def timelines() -> dict[str, Columns]:
    """Return the columns of several runs by name."""
    rng = random.Random(29)
    empty_round = {"offsets": [0, 2, 3, 5], "messages": [2.0, 2.0, 0.0, 2.0, 2.0], "down": [8e6, 9e6, 0.0, 9e6, 7e6]}
    early = {"messages": [2.0, 2.0, 4.0], "delay": [-0.5, -0.01, 0.25], "down": [1e4, 0.0, 3e3], "up": [0.0, 0.0, 1e3]}
    return {
        "one candidate, alike but for its work": plain(messages=2.0, down=154432.0, up=154192.0, compute=[0.1, 0.25, 0.1, 0.4]),
        "a round of nobody": plain(**empty_round, up=[1e6, 2e5, 0.0, 3e6, 3e6], compute=[1.0, 3.0, 0.0, 2.0, 2.0]),
        "the server's link is the narrow one": plain(down=[1e6] * 3, up=1e5, shared_down=[9.0, 0.1, 4.5], shared_up=3.0),
        "replies that never come": plain(messages=2.0, up=[1e6, 5e6, 1e4], serving=0.125, waiting=[60.0, 0.0, 60.0]),
        "a reply that comes after it is due": plain(
            messages=2.0, up=[1e6, 5e6, 1e4], waiting=[9.0, 0.0, 9.0], due=[9.0, 9.0, 0.0]
        ),
        "latency below the network's": plain(**early),
        "two that are last together": plain(offsets=[0, 3], down=[0.0, 8e3, 0.0], up=[8e3, 0.0, 8e3], compute=[0.5, 0.5, 0.5]),
        **{f"drawn, {rounds} rounds": drawn(rng, rounds, 10.0 ** (4 + i)) for i, rounds in enumerate((1, 7, 30))},
    }


def runs() -> dict[str, tuple[list[int], list[float | None], float]]:
    """Return rounds, accuracies and target of several runs by name."""
    accuracies: list[float | None] = [0.3, 0.5, 0.45, None, 0.7]
    return {
        "not reached": ([1, 2, 3, 4, 5], accuracies, 0.9),
        "met by the first measurement": ([2, 4], [0.8, 0.9], 0.75),
        "met exactly by the first": ([1, 2], [0.5, 0.6], 0.5),
        "met exactly later": ([1, 2], [0.5, 0.6], 0.6),
        "a dip before it": ([1, 2, 3, 4, 5], accuracies, 0.6),
        "nothing measured in between": ([1, 2, 3, 4, 5], [0.1, None, None, None, 0.9], 0.4),
        "equal values": ([1, 2, 3, 4, 5], [0.5, 0.5, 0.5, 0.5, 0.51], 0.505),
        "nothing measured": ([1, 2, 3], [None, None, None], 0.5),
        "nothing measured at first": ([1, 2, 3], [None, 0.2, 0.6], 0.2),
        "no measurements": ([], [], 0.5),
        "measured now and then": ([10, 20, 25], [0.2, 0.35, 0.8], 0.61),
    }


def measured(rounds: Sequence[int], accuracies: Sequence[float | None]) -> list[tuple[int, float]]:
    """Return pairs of round and accuracy, as in a run."""
    return [(r, math.nan if a is None else a) for r, a in zip(rounds, accuracies, strict=True)]


def races() -> dict[str, tuple[list[Columns | None], list[Columns | None]]]:
    """Return the columns of two methods, one for each seed; None if the seed does not reach the target."""
    rng = random.Random(31)
    dense = [drawn(rng, 12, 4e6) for _ in range(3)]
    sparse = [{**drawn(rng, 15, 4e4), "compute": 4.0} for _ in range(3)]
    bent = plain(
        offsets=[0, 2], up=[0.0, 1e6], compute=[10.0, 0.0]
    )  # faster than the other method at middle speeds, slower at both ends
    return {
        "never": ([plain(up=[1e6])], [plain(up=[2e6], compute=1.0)]),
        "alike": ([plain(up=[1e6])], [plain(up=[1e6])]),
        "once": ([*dense], [*sparse]),
        "once, a seed does not get there": ([*dense[:2], None], [*sparse]),
        "not reached by half of them": ([dense[0], None], [*sparse]),
        "twice": ([bent], [plain(up=[5e5], compute=6.0)]),
        "only where replies come in time": ([plain(up=[1e6], due=20.0)], [plain(up=[1e5], compute=2.0)]),
    }


def racer(label: str, lines: Sequence[Columns | None]) -> MethodTiming:
    """Return a method whose runs reach the target in the middle of their last round."""
    return MethodTiming(label, [line and reach(line) for line in lines])


def reach(line: Columns) -> TimeToTarget:
    """Return the time to a target that is reached in the middle of the last round."""
    round_times = timeline(line)
    end = len(round_times.lost_reply_wait)
    crossing = find_first_reached([(end - 1, 0.25), (end, 0.75)] if end > 1 else [(end, 0.5)], 0.5)
    assert crossing is not None
    return TimeToTarget(round_times, crossing)


def numbers() -> list[float]:
    """Return numbers at the limits of units and digits, at halves, and random numbers."""
    rng = random.Random(37)
    bounds = [0.0, 1e-9, 9.994e-4, 1e-3, 0.00999, 0.01, 0.09996, 0.1, 0.9994, 0.9995, 1.0, 1.005, 1.125, 1.375, 9.994, 9.995]
    bounds += [9.996]
    bounds += [10.25, 10.75, 12.35, 59.94, 59.95, 59.949999, 60.0, 61.5, 99.94, 99.95, 99.96, 100.5, 101.5, 119.5, 999.4, 999.5]
    bounds += [1000.5, 1125.0, 1375.0, 3569.6, 3599.4, 3599.5, 3600.0, 7230.0, 86369.0, 86399.0, 86400.0, 90000.0, 12345678.9]
    bounds += [999499.0, 999500.0, 1.125e6, 2.5e7, 9.995e8, 1e12, 1.5e15, 7.25e15]
    return bounds + [10.0 ** rng.uniform(-5, 15) for _ in range(150)]


def _finite(values: Sequence[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _timelines() -> dict[str, Any]:
    keys = {field: key for key, field in SHARED.items()}
    made = {}
    for name, columns in timelines().items():
        line = timeline(columns)
        prices = [
            {
                "at": at,
                "seconds": _finite(line.round_seconds(*at).tolist()),
                "cumulative": _finite(line.cumulative_seconds(*at).tolist()),
                "stack": {keys.get(part, part): values.tolist() for part, values in line.breakdown(*at)._asdict().items()},
            }
            for at in PLACES
        ]
        made[name] = {"columns": columns, "prices": prices}
    return made


def _crossings() -> dict[str, Any]:
    made = {}
    for name, (rounds, accuracies, target) in runs().items():
        found = find_first_reached(measured(rounds, accuracies), target)
        axis = [1.5 * r * r for r in range(max(rounds, default=0) + 1)]
        given = {"rounds": rounds, "accuracies": accuracies, "target": target, "axis": axis}
        made[name] = {
            **given,
            "crossing": found and {**asdict(found), "rounds": found.rounds},
            "on": found and found.interpolate_on(axis),
        }
    return made


def _falling_crossings() -> dict[str, Any]:
    """Return the crossings of the same runs as losses: each value v is 1 - v, and the target is to be reached from above."""
    made = {}
    for name, (rounds, accuracies, threshold) in runs().items():
        losses = [None if accuracy is None else 1 - accuracy for accuracy in accuracies]
        target = Target("loss", below=1 - threshold)
        found = find_first_reached(measured(rounds, losses), target)
        best = _finite(list_best_so_far([value for _, value in measured(rounds, losses)], target.criterion))
        crossing = found and {**asdict(found), "rounds": found.rounds}
        made[name] = {"rounds": rounds, "losses": losses, "target": target.threshold, "crossing": crossing, "best": best}
    return made


def _medians() -> list[dict[str, Any]]:
    cases: list[list[float | None]] = [[3.0], [3.0, 1.0, 2.0], [4.0, 1.0, None], [4.0, None], [None, None, 1.5], [None]]
    cases.append([1.0, 2.5, 9.0, 10.0])
    made = []
    for figures in cases:
        seeds = summarize_seeds(figures)
        median, low, high = _finite([seeds.median, seeds.low, seeds.high])
        made.append({"figures": figures, "median": median, "low": low, "high": high, "reached": seeds.reached, "n": seeds.n})
    return made


def _races() -> dict[str, Any]:
    network = Network(Link(2e6, 5e6, 0.02))
    made = {}
    for name, lines in races().items():
        first, second = racer("first", lines[0]), racer("second", lines[1])
        evens = break_evens(first, second, network)
        found = [
            {"below": one.faster_below, "above": one.faster_above, "up_bits_per_second": one.up_bits_per_second}
            for one in evens
        ]
        curves = [_finite(each.compute_curve(network)) for each in (first, second)]
        crossings = [[one and asdict(one.target_reached) for one in each.times_to_target] for each in (first, second)]
        made[name] = {"timelines": lines, "crossings": crossings, "curves": curves, "break_evens": found}
    return {"link": {"up": 2e6, "down": 5e6, "latency": 0.02}, "speeds": list(SPEEDS), "races": made}


def _utilizations() -> dict[str, Any]:
    """Return utilization at each of SPEEDS, and the speeds of the levels, of the first rounds of methods."""
    network = Network(Link(2e6, 5e6, 0.02))
    scale_link = make_link_scaler(network)
    lines = {**timelines(), "long training": plain(up=[1e6, 3e5], compute=[40.0, 30.0], messages=2.0, serving=0.125)}
    made = {}
    for name, columns in lines.items():
        line = timeline(columns)
        found = [find_utilization_speed(line, network, level) for level in UTILIZATION_LEVELS]
        shares = [line.utilization(*scale_link(speed)) for speed in SPEEDS]
        made[name] = {"columns": columns, "levels": list(UTILIZATION_LEVELS), "shares": shares, "found": found}
    return made


def vectors() -> dict[str, Any]:
    """Return all test vectors, as in the file."""
    texts = {"three_figures": format_significant, "seconds_text": format_seconds, "rate_text": format_rate}
    table = {name: [[value, write(value)] for value in numbers()] for name, write in texts.items()}
    sizes = [[n, format_bytes(n)] for n in sorted({int(value) for value in numbers()})]
    return {
        "timelines": _timelines(),
        "crossings": _crossings(),
        "falling_crossings": _falling_crossings(),
        "medians": _medians(),
        **_races(),
        "utilizations": _utilizations(),
        "texts": {**table, "size_text": sizes},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), allow_nan=False, separators=(",", ":")) + "\n")
