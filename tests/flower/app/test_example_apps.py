"""Small Flower apps of many shapes, plain and with our two lines: accuracy, and bytes of Flower's objects."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from tests.flower.apps.shapes_app import shapes
from tests.flower.apps.shapes_app.network import HEAD
from tests.flower.apps.shapes_app.server_app import Outcome
from tests.flower.apps.shapes_app.shapes import CLIPPING_NORM, NODES, SHAPES
from tests.flower.shapes import ObjectGrid, run_shape, write_app

ROUNDS = 5
MARGIN = 0.05
"""Largest loss of accuracy by compression, after five rounds."""
ROUNDING = 1e-6
"""Relative error of norms of float32."""
RATIOS = {
    "pytorch": (15.0, 4.0),
    "scikit-learn": (25.0, 8.0),
    "causal-mask": (10.0, 4.0),
    "dp-server-side": (15.0, 1.0),
    "median": (15.0, 1.2),
    "median-top-k": (8.0, 4.0),
}
"""Smallest compression ratios of uplink and downlink, in bytes of Flower's objects. Noise has no small differences."""


@dataclass(frozen=True)
class Pair:
    """Runs of a shape without and with compression."""

    plain: Outcome
    compressed: Outcome
    plain_grid: ObjectGrid
    compressed_grid: ObjectGrid
    folder: Path


pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(scope="module")
def run_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A function that runs a shape, once in this module."""
    pairs: dict[str, Pair] = {}

    def run(shape: str) -> Pair:
        if shape not in pairs:
            folder = tmp_path_factory.mktemp(shape)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FEDSGD_STATE", str(folder / "state"))
                plain, plain_grid = run_shape(shape, False, ROUNDS, folder / "plain")
                compressed, compressed_grid = run_shape(shape, True, ROUNDS, folder / "compressed")
            pairs[shape] = Pair(plain, compressed, plain_grid, compressed_grid, folder)
        return pairs[shape]

    return run


def values(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def check_learning(pair: Pair) -> None:
    assert len(pair.plain.accuracies) == len(pair.compressed.accuracies) == ROUNDS
    assert not any(reply.has_error() for grid in (pair.plain_grid, pair.compressed_grid) for reply in grid.replies)
    assert pair.plain.accuracies[-1] > 0.85
    assert pair.compressed.accuracies[-1] > pair.plain.accuracies[-1] - MARGIN


def check_ratios(pair: Pair, up: float, down: float) -> None:
    assert pair.plain_grid.up / pair.compressed_grid.up > up
    assert pair.plain_grid.down / pair.compressed_grid.down > down


@pytest.mark.parametrize("shape", RATIOS)
def test_app_with_two_lines_learns_as_plain_with_fewer_bytes(shape: str, run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair(shape)
    check_learning(pair)
    check_ratios(pair, *RATIOS[shape])


def test_scikit_learn_app_with_two_lines_keeps_float64(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("scikit-learn")
    for outcome in (pair.plain, pair.compressed):
        assert {array.dtype for array in outcome.arrays.values()} == {"float64"}
    halved = pair.plain_grid.up / pair.compressed_grid.up / 2
    assert halved > 12, "more than the half that float32 saves"


def test_boosted_trees_with_two_lines_pass_through_bit_for_bit(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("boosted-trees")
    check_learning(pair)
    assert pair.compressed.accuracies == pair.plain.accuracies
    assert pair.compressed.arrays == pair.plain.arrays
    assert pair.compressed_grid.up == pytest.approx(pair.plain_grid.up, rel=0.02)
    assert pair.compressed_grid.down == pytest.approx(pair.plain_grid.down, rel=0.02)
    model = json.loads(pair.plain.arrays["0"].numpy().tobytes())["learner"]["gradient_booster"]["model"]
    assert len(model["trees"]) == NODES * ROUNDS, "each node's tree of each round"


def test_causal_mask_with_two_lines_stays_infinite(run_pair: Callable[[str], Pair]) -> None:
    pair, initial = run_pair("causal-mask"), SHAPES["causal-mask"].load_model().initial()
    assert np.isneginf(initial["mask"].numpy()).any()
    assert pair.compressed.arrays["mask"] == initial["mask"]
    assert list(pair.compressed.arrays) == list(pair.plain.arrays) == list(initial)


def test_server_side_clipping_inside_clips_every_decoded_update(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("dp-server-side")
    norms = pair.compressed.strategy.inner.strategy.norms
    assert len(norms) == NODES * ROUNDS
    assert max(norms) <= CLIPPING_NORM * (1 + ROUNDING)
    assert min(norms) > CLIPPING_NORM / 3, "an update arrived"


def test_strategy_with_its_own_start_behind_two_lines_saves_each_round(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("own-start")
    check_learning(pair)
    check_ratios(pair, 10.0, 4.0)
    for name, outcome in {"plain": pair.plain, "compressed": pair.compressed}.items():
        folder = pair.folder / name / "checkpoints"
        saved = [dict(np.load(folder / f"round-{number}.npz")) for number in range(1, ROUNDS + 1)]
        for array, value in values(outcome.arrays).items():
            np.testing.assert_array_equal(saved[-1][array], value)
            assert not np.array_equal(saved[0][array], value)
        results = json.loads((folder / "results.json").read_text())
        assert [metrics["accuracy"] for metrics in results.values()] == outcome.accuracies


def test_client_side_clipping_behind_two_lines_bounds_every_decoded_update(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("dp-client-side")
    check_learning(pair)
    check_ratios(pair, 15.0, 1.0)
    for strategy in (pair.plain.strategy, pair.compressed.strategy.inner):
        norms = strategy.strategy.norms
        assert len(norms) == NODES * ROUNDS
        assert max(norms) <= CLIPPING_NORM * (1 + ROUNDING)
        assert min(norms) > CLIPPING_NORM / 3, "an update arrived"


def test_personal_layers_stay_on_their_nodes_with_two_lines(run_pair: Callable[[str], Pair]) -> None:
    pair, initial = run_pair("personal-layers"), values(SHAPES["personal-layers"].load_model().initial())
    check_learning(pair)
    check_ratios(pair, 10.0, 4.0)
    for outcome, grid in ((pair.plain, pair.plain_grid), (pair.compressed, pair.compressed_grid)):
        heads = [{name: node.state[name][name].numpy() for name in HEAD} for node in grid.nodes.values()]
        for name in HEAD:
            np.testing.assert_array_equal(outcome.arrays[name].numpy(), initial[name], "the server's head never changes")
            assert not np.array_equal(heads[0][name], heads[1][name]), "each node has a head of its own"
        assert not np.array_equal(outcome.arrays["body.weight"].numpy(), initial["body.weight"])


MEDIANS: dict[str, Any] = {
    "qsgd": {"name": "qsgd", "levels": 64},
    "natural": {"name": "natural"},
    "bfloat16": {"name": "dense", "values": "bfloat16"},
}


@pytest.mark.parametrize("compressor", MEDIANS)
def test_median_of_dense_updates_learns_as_plain(
    compressor: str, run_pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_pair("median").plain
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(SHAPES, "median", replace(SHAPES["median"], compression={"compressor": MEDIANS[compressor]}))
    outcome, _ = run_shape("median", True, ROUNDS, tmp_path)
    assert outcome.accuracies[-1] > plain.accuracies[-1] - MARGIN


def test_median_of_random_coordinates_learns_far_less_than_their_mean(
    run_pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    median = run_pair("median-rand-k")
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(SHAPES, "median-rand-k", replace(SHAPES["median-rand-k"], strategy=lambda: FedAvg(**shapes.ALL_NODES)))
    mean, _ = run_shape("median-rand-k", True, ROUNDS, tmp_path)
    assert median.plain.accuracies[-1] > 0.85
    assert mean.accuracies[-1] > 0.85
    assert median.compressed.accuracies[-1] < mean.accuracies[-1] - 0.15


def test_app_folder_is_written_with_its_components_and_settings(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", "dp-client-side", True, 3, tmp_path)
    project = tomllib.loads((app / "pyproject.toml").read_text())
    (dependency,) = project["project"]["dependencies"]
    assert dependency.startswith("flwr"), "a node would install a package of anybody's by any other name"
    flower = project["tool"]["flwr"]["app"]
    assert flower["components"]["clientapp"] == "shapes_app.client_app:compressed_clipping"
    assert flower["config"] == {"shape": "dp-client-side", "compressed": True, "rounds": 3, "folder": str(tmp_path)}
    assert (app / "LICENSE").exists()
    assert (app / "shapes_app" / "server_app.py").exists()
