"""Example apps with and without the two lines of fedsgd: accuracy, and bytes of Flower's objects.

The apps are tests/flower/apps, in many shapes, and scenarios/flower_app.
"""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from tests.effort import nightly_unless
from tests.flower import example
from tests.flower.app.fixed_updates import make_grid
from tests.flower.apps.shapes_app import shapes
from tests.flower.apps.shapes_app.network import HEAD
from tests.flower.apps.shapes_app.server_app import Outcome
from tests.flower.apps.shapes_app.shapes import CLIPPING_NORM, NODES, SHAPES
from tests.flower.grid import RUN
from tests.flower.shapes import ObjectGrid, run_shape, write_app

ROUNDS = 5
MARGIN = 0.05
"""Largest loss of accuracy through compression, after five rounds."""
ROUNDING = 1e-6
"""Relative error of norms in float32."""
RATIOS = {
    "pytorch": (15.0, 4.0),
    "scikit-learn": (25.0, 8.0),
    "causal-mask": (10.0, 4.0),
    "dp-server-side": (15.0, 1.0),
    "median": (15.0, 1.2),
    "median-top-k": (8.0, 4.0),
}
"""Smallest compression ratios of uplink and downlink, in bytes of Flower's objects.

Noise changes all coordinates, so "dp-server-side" has no small differences to send.
"""


@dataclass(frozen=True)
class Pair:
    """Runs of a shape without and with compression.

    Attributes:
        plain: outcome without compression.
        compressed: outcome with compression.
        plain_grid: grid of the run without compression.
        compressed_grid: grid of the run with compression.
        folder: folder of both runs' results.
    """

    plain: Outcome
    compressed: Outcome
    plain_grid: ObjectGrid
    compressed_grid: ObjectGrid
    folder: Path


pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(scope="module")
def run_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Function that runs a shape without and with compression, once for all tests of this module."""
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


def to_numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def check_learning(pair: Pair) -> None:
    assert len(pair.plain.accuracies) == len(pair.compressed.accuracies) == ROUNDS
    assert not any(reply.has_error() for grid in (pair.plain_grid, pair.compressed_grid) for reply in grid.replies)
    assert pair.plain.accuracies[-1] > 0.85
    assert pair.compressed.accuracies[-1] > pair.plain.accuracies[-1] - MARGIN


def check_ratios(pair: Pair, up: float, down: float) -> None:
    assert pair.plain_grid.up / pair.compressed_grid.up > up
    assert pair.plain_grid.down / pair.compressed_grid.down > down


@pytest.mark.slow
@pytest.mark.parametrize("shape", nightly_unless("scikit-learn".__eq__, RATIOS))
@pytest.mark.nightly
def test_compressed_app_learns_as_without_compression_with_fewer_bytes(shape: str, run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair(shape)
    check_learning(pair)
    check_ratios(pair, *RATIOS[shape])


@pytest.mark.nightly
def test_compressed_scikit_learn_app_has_a_float64_model(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("scikit-learn")
    for outcome in (pair.plain, pair.compressed):
        assert {array.dtype for array in outcome.arrays.values()} == {"float64"}
    half_ratio = pair.plain_grid.up / pair.compressed_grid.up / 2
    assert half_ratio > 12, "float32 alone has a ratio of 2"


@pytest.mark.nightly
def test_compressed_boosted_trees_are_sent_bit_for_bit(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("boosted-trees")
    check_learning(pair)
    assert pair.compressed.accuracies == pair.plain.accuracies
    assert pair.compressed.arrays == pair.plain.arrays
    assert pair.compressed_grid.up == pytest.approx(pair.plain_grid.up, rel=0.02)
    assert pair.compressed_grid.down == pytest.approx(pair.plain_grid.down, rel=0.02)
    model = json.loads(pair.plain.arrays["0"].numpy().tobytes())["learner"]["gradient_booster"]["model"]
    assert len(model["trees"]) == NODES * ROUNDS, "each node's tree of each round"


@pytest.mark.nightly
def test_compressed_app_with_a_causal_mask_has_an_infinite_mask(run_pair: Callable[[str], Pair]) -> None:
    pair, initial = run_pair("causal-mask"), SHAPES["causal-mask"].load_model().initial()
    assert np.isneginf(initial["mask"].numpy()).any()
    assert pair.compressed.arrays["mask"] == initial["mask"]
    assert list(pair.compressed.arrays) == list(pair.plain.arrays) == list(initial)


@pytest.mark.nightly
def test_server_side_clipping_clips_each_decoded_update(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("dp-server-side")
    norms = pair.compressed.strategy.inner.strategy.norms
    assert len(norms) == NODES * ROUNDS
    assert max(norms) <= CLIPPING_NORM * (1 + ROUNDING)
    assert min(norms) > CLIPPING_NORM / 3, "an update arrived"


@pytest.mark.nightly
@pytest.mark.slow
def test_compressed_strategy_with_its_own_start_saves_each_round(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("own-start")
    check_learning(pair)
    check_ratios(pair, 10.0, 4.0)
    for name, outcome in {"plain": pair.plain, "compressed": pair.compressed}.items():
        folder = pair.folder / name / "checkpoints"
        checkpoints = [dict(np.load(folder / f"round-{number}.npz")) for number in range(1, ROUNDS + 1)]
        for array, value in to_numpy(outcome.arrays).items():
            np.testing.assert_array_equal(checkpoints[-1][array], value)
            assert not np.array_equal(checkpoints[0][array], value)
        results = json.loads((folder / "results.json").read_text())
        assert [metrics["accuracy"] for metrics in results.values()] == outcome.accuracies


@pytest.mark.nightly
@pytest.mark.slow
def test_client_side_clipping_bounds_each_decoded_update(run_pair: Callable[[str], Pair]) -> None:
    pair = run_pair("dp-client-side")
    check_learning(pair)
    check_ratios(pair, 15.0, 1.0)
    for strategy in (pair.plain.strategy, pair.compressed.strategy.inner):
        norms = strategy.strategy.norms
        assert len(norms) == NODES * ROUNDS
        assert max(norms) <= CLIPPING_NORM * (1 + ROUNDING)
        assert min(norms) > CLIPPING_NORM / 3, "an update arrived"


@pytest.mark.slow
@pytest.mark.nightly
def test_personal_layers_of_a_compressed_app_stay_on_their_nodes(run_pair: Callable[[str], Pair]) -> None:
    pair, initial = run_pair("personal-layers"), to_numpy(SHAPES["personal-layers"].load_model().initial())
    check_learning(pair)
    check_ratios(pair, 10.0, 4.0)
    for outcome, grid in ((pair.plain, pair.plain_grid), (pair.compressed, pair.compressed_grid)):
        heads = [{name: node.state[name][name].numpy() for name in HEAD} for node in grid.nodes.values()]
        for name in HEAD:
            np.testing.assert_array_equal(outcome.arrays[name].numpy(), initial[name], "the server's head never changes")
            assert not np.array_equal(heads[0][name], heads[1][name]), "each node has its own head"
        assert not np.array_equal(outcome.arrays["body.weight"].numpy(), initial["body.weight"])


MEDIANS: dict[str, Any] = {
    "qsgd": {"name": "qsgd", "levels": 64},
    "natural": {"name": "natural"},
    "bfloat16": {"name": "dense", "values": "bfloat16"},
}


@pytest.mark.nightly
@pytest.mark.parametrize("compressor", MEDIANS)
def test_median_of_dense_updates_learns_as_without_compression(
    compressor: str, run_pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_pair("median").plain
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(SHAPES, "median", replace(SHAPES["median"], compression={"compressor": MEDIANS[compressor]}))
    outcome, _ = run_shape("median", True, ROUNDS, tmp_path)
    assert outcome.accuracies[-1] > plain.accuracies[-1] - MARGIN


@pytest.mark.nightly
@pytest.mark.slow
def test_median_of_random_coordinates_learns_less_than_their_mean(
    run_pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    median = run_pair("median-rand-k")
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(SHAPES, "median-rand-k", replace(SHAPES["median-rand-k"], strategy=lambda: FedAvg(**shapes.ALL_NODES)))
    mean, _ = run_shape("median-rand-k", True, ROUNDS, tmp_path)
    assert median.plain.accuracies[-1] > 0.85
    assert mean.accuracies[-1] > 0.85
    assert median.compressed.accuracies[-1] < mean.accuracies[-1] - 0.15


@pytest.mark.slow
def test_written_app_folder_has_its_components_and_settings(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", "dp-client-side", True, 3, tmp_path)
    project = tomllib.loads((app / "pyproject.toml").read_text())
    (dependency,) = project["project"]["dependencies"]
    assert dependency.startswith("flwr"), "Flower would install any other package from the registry, whoever owns its name"
    flower = project["tool"]["flwr"]["app"]
    assert flower["components"]["clientapp"] == "shapes_app.client_app:compressed_clipping"
    assert flower["config"] == {"shape": "dp-client-side", "compressed": True, "rounds": 3, "folder": str(tmp_path)}
    assert (app / "LICENSE").exists()
    assert (app / "shapes_app" / "server_app.py").exists()


# ------------------------------------------------------------------------------------------------------ scenarios/flower_app


def test_example_app_has_two_lines_of_fedsgd(tmp_path: Path) -> None:
    removed_lines = []
    for path in (example.write_app(tmp_path / "app", compressed=False) / "digits_app").glob("*.py"):
        lines = (example.APP / "digits_app" / path.name).read_text().splitlines()
        removed_lines += [line for line in lines if line not in path.read_text().splitlines() and "import" not in line]
    assert len(removed_lines) == 2
    assert {line.split("(")[0].strip() for line in removed_lines} == {"app = ClientApp", "strategy = CompressedStrategy"}


@pytest.mark.slow
def test_example_app_learns_with_and_without_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"num-server-rounds": 4, "min-nodes": 4, "local-epochs": 2, "learning-rate": 0.1}
    n_bytes, accuracies = {}, {}
    for compressed in (False, True):
        monkeypatch.syspath_prepend(str(example.write_app(tmp_path / f"app-{compressed}", compressed)))
        for name in [name for name in sys.modules if name.startswith("digits_app")]:
            monkeypatch.delitem(sys.modules, name)
        client, server = (importlib.import_module(f"digits_app.{side}_app").app for side in ("client", "server"))
        grid = make_grid()
        for node in grid.nodes.values():
            node.app = client
            node.context = Context(RUN, node.id, {"partition-id": node.number, "num-partitions": 4}, RecordDict(), dict(config))
        with use_single_thread(), isolate_generators(0):
            server(grid, Context(RUN, 1, {}, RecordDict(), dict(config)))
        n_bytes[compressed] = {
            direction: sum(size for way, size in grid.message_sizes if way == direction) for direction in ("up", "down")
        }
        metrics = [content.metric_records["metrics"] for way, _, content in grid.contents if way == "up"]
        accuracies[compressed] = np.mean([float(record["accuracy"]) for record in metrics if "accuracy" in record][-4:])
    assert min(accuracies.values()) > 0.7
    assert n_bytes[False]["up"] > 30 * n_bytes[True]["up"]
    assert n_bytes[False]["down"] > 3 * n_bytes[True]["down"]
