"""Flower apps of many shapes on a SuperLink with four SuperNodes: plain, and with the two lines of fedsgd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster, local_cluster
from tests.flower.apps.shapes_app.server_app import OUTCOME
from tests.flower.apps.shapes_app.shapes import NODES, SHAPES
from tests.flower.shapes import write_app

ROOT = Path(__file__).parents[3]
RUN_SECONDS = 900.0
"""Time limit of a run."""


@dataclass(frozen=True)
class AppResult:
    """Result of one run of an app.

    Attributes:
        accuracy: mean accuracy of all nodes after the last round, None without one.
        up: bytes of the uplink by Flower's own counter.
        down: bytes of the downlink by Flower's own counter.
        failed: the failure, empty if there was none.
    """

    accuracy: float | None
    up: int
    down: int
    failed: str = ""


@dataclass(frozen=True)
class ShapeFigures:
    """Figures of a shape, plain and with compression.

    Bytes are by Flower's own counter. Ratios are plain bytes divided by compressed bytes, None without compressed bytes.

    Attributes:
        shape: name of the shape.
        accuracy_plain: accuracy of the plain app after the last round, None without one.
        accuracy_compressed: accuracy of the app with compression after the last round, None without one.
        up_plain: bytes of the plain uplink.
        up_compressed: bytes of the compressed uplink.
        up_ratio: ratio of the uplinks.
        down_plain: bytes of the plain downlink.
        down_compressed: bytes of the compressed downlink.
        down_ratio: ratio of the downlinks.
        failed: failures of the two runs, empty if there was none.
    """

    shape: str
    accuracy_plain: float | None
    accuracy_compressed: float | None
    up_plain: int
    up_compressed: int
    up_ratio: float | None
    down_plain: int
    down_compressed: int
    down_ratio: float | None
    failed: str

    @staticmethod
    def of(shape: str, plain: AppResult, compressed: AppResult) -> ShapeFigures:
        """Return the figures of two runs."""
        failures = {"plain": plain.failed, "compressed": compressed.failed}
        return ShapeFigures(
            shape,
            plain.accuracy,
            compressed.accuracy,
            plain.up,
            compressed.up,
            _ratio(plain.up, compressed.up),
            plain.down,
            compressed.down,
            _ratio(plain.down, compressed.down),
            "; ".join(f"{name}: {failure}" for name, failure in failures.items() if failure),
        )


def measure_shapes(rounds: int) -> list[ShapeFigures]:
    """Run every shape without and with compression, each time on a new SuperLink."""
    figures = []
    for shape in SHAPES:
        plain, compressed = (run_app(shape, compressed, rounds) for compressed in (False, True))
        figures.append(ShapeFigures.of(shape, plain, compressed))
        print(figures[-1], flush=True)
    return figures


def shape_lines(figures: list[ShapeFigures]) -> list[str]:
    """Return the lines of a table: plain and compressed accuracy, uplink and downlink bytes, and failures below a shape."""
    header = f"{'shape':16} {'accuracy':>17} {'uplink bytes':>35} {'downlink bytes':>35}"
    lines = [header, f"{'':16} {'plain compressed':>17} {'plain compressed     ratio':>35} {'plain compressed     ratio':>35}"]
    for f in figures:
        accuracies = [
            f"{accuracy:.3f}" if accuracy is not None else "none" for accuracy in (f.accuracy_plain, f.accuracy_compressed)
        ]
        up = _bytes(f.up_plain, f.up_compressed, f.up_ratio)
        down = _bytes(f.down_plain, f.down_compressed, f.down_ratio)
        lines.append(f"{f.shape:16} {accuracies[0]:>6} {accuracies[1]:>10} {up:>35} {down:>35}")
        lines += [f"    failed: {f.failed}"] if f.failed else []
    return lines


def run_app(shape: str, compressed: bool, rounds: int) -> AppResult:
    """Run an app on a SuperLink with four SuperNodes."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    with tempfile.TemporaryDirectory(prefix="fedsgd-") as name:
        folder = Path(name)
        with local_cluster(ClusterConfig(NODES), folder / "run", folder / "logs") as cluster:
            return _submit(cluster, shape, compressed, rounds)


def _submit(cluster: LocalCluster, shape: str, compressed: bool, rounds: int) -> AppResult:
    results = cluster.folder / "results"
    results.mkdir()
    submission = cluster.submit(write_app(cluster.folder / "app", shape, compressed, rounds, results), stream=True)
    try:
        submission.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        return AppResult(None, 0, 0, f"the run has not ended after {RUN_SECONDS:g} s")
    counters = cluster.read_flower_byte_counters() or {"up": 0, "down": 0}
    outcome = results / OUTCOME
    if not outcome.exists():
        return AppResult(None, counters["up"], counters["down"], _last_error(cluster))
    accuracies = json.loads(outcome.read_text())["accuracies"]
    failed = "" if len(accuracies) == rounds else f"{len(accuracies)} of {rounds} rounds have an accuracy"
    accuracy = round(accuracies[-1], 4) if accuracies else None
    return AppResult(accuracy, counters["up"], counters["down"], failed)


def _last_error(cluster: LocalCluster) -> str:
    """Return the last line with an error in the log of the ServerApp, or the last line of the submission's log."""
    logs = {name: cluster.get_log_path(name) for name in ("serverapp", "submission")}
    texts = {name: log.read_text(errors="replace") if log.exists() else "" for name, log in logs.items()}
    errors = re.findall(r"(?m)^.*\b\w+(?:Error|Exception)\b.*$", texts["serverapp"])
    lines = [line for line in re.split(r"[\n│╭╮╰╯─]+", texts["submission"]) if line.strip()]
    return str((errors or lines or ["no result, and no line in a log"])[-1]).strip()[:200]


def _bytes(plain: int, compressed: int, ratio: float | None) -> str:
    return f"{plain:,} {compressed:>10,} {'none' if ratio is None else f'{ratio:.1f}x':>9}"


def _ratio(plain: int, compressed: int) -> float | None:
    return round(plain / compressed, 1) if compressed else None
