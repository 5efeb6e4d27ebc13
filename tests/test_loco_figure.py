"""Figure of scenarios/loco, drawn from records of two cells that were written by hand."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedsgd.analysis.replication.plan import ReplicationConfig, StudyPlan
from fedsgd.analysis.replication.records import Results, RunRecord
from fedsgd.analysis.replication.replicate import open_study
from tests.scripts import load_script

pytestmark = pytest.mark.examples
DILOCO, DDP = "DiLoCo, K = 4, H = 30", "DDP, K = 4"


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    return load_script("loco/figure.py")


def make_record(cell: str, seed: int, rounds: int, curve: tuple[tuple[float, float], ...]) -> RunRecord:
    return RunRecord(
        cell, "final", seed, f"{cell}{seed}", rounds=rounds, uplink_bytes=300 * rounds, downlink_bytes=100 * rounds, curve=curve
    )


@pytest.fixture(scope="module")
def results() -> Results:
    records = [
        make_record(DILOCO, 1, 33, ((3, 2.5), (6, 2.0))),
        make_record(DILOCO, 2, 33, ((3, 2.7), (9, 1.8))),
        make_record(DDP, 1, 1000, ((100, 2.6), (1000, 1.9))),
    ]
    return Results("loco", {record.key: record for record in records})


def test_points_are_bytes_and_characters_of_all_workers(figure: ModuleType, results: Results) -> None:
    plan, _ = open_study(figure.HERE, ReplicationConfig(), None)
    drawn = figure.draw(StudyPlan(plan.study, plan.config, results), "final")
    lines = {ax: [line.get_xydata() for line in ax.lines if str(line.get_gid()).startswith("method")] for ax in drawn.axes}
    (by_bytes, by_characters) = lines.values()
    losses = [2.6, 2.35, 1.9, 1.9]
    np.testing.assert_allclose(by_bytes[0], [(1200, losses[0]), (2400, losses[1]), (3600, losses[2]), (13200, losses[3])])
    characters = 4 * 30 * 12 * 64 / 1e6
    np.testing.assert_allclose(by_characters[0][:, 0], characters * np.array([3, 6, 9, 33]))
    np.testing.assert_allclose(by_characters[1][:, 0], 4 * 12 * 64 / 1e6 * np.array([100, 1000]))


def test_file_is_reproducible(figure: ModuleType, results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "results.json")
    images = []
    for name in ("a.svg", "b.svg"):
        figure.main(["--results", str(tmp_path / "results.json"), "--out", str(tmp_path / name)])
        images.append((tmp_path / name).read_bytes())
    assert images[0] == images[1]
    assert DILOCO.encode() in images[0]
