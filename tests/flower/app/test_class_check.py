"""A user's compressor in a Flower app: allowed, missing and different classes on nodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from fedsgd.compression.operators.topk import TopK
from fedsgd.config.registry import import_by_path
from fedsgd.errors import ScenarioError, WireError
from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app import class_check
from fedsgd.flower.app.array_layout import build_array_layout
from fedsgd.flower.app.class_check import CLASS_CHECK_KEY
from fedsgd.flower.app.settings import CompressionSettings, decode_settings
from tests.flower.app.fixed_updates import NODES, TOP_K, Node, RecordingFedAvg, RecordingGrid, flatten, make_model, run_rounds
from tests.flower.user_source import write_rules

pytestmark = pytest.mark.usefixtures("quick_collection")


def make_user_grid(allow: Sequence[str]) -> RecordingGrid:
    """Return a grid of nodes that allow these classes."""
    return RecordingGrid([Node(id, number, [compression_mod(allow=allow)]) for number, id in enumerate(NODES)])


def make_user_compressor(folder: Path, name: str) -> dict[str, Any]:
    """Write a user's module, and return the table of its compressor, which sends what `TOP_K` sends."""
    path = write_rules(folder, name)["uplink.compressor"]
    return {"name": path, "density": 2 * TOP_K["density"]}


def list_check_messages(grid: RecordingGrid) -> list[int]:
    return [node for direction, node, content in grid.contents if direction == "down" and CLASS_CHECK_KEY in content]


@pytest.mark.slow
def test_allowed_compressor_of_a_user_trains_as_its_equal_of_fedsgd(user_folder: Path) -> None:
    """Each node is compared once, and only for a user's compressor."""
    user_compressor = make_user_compressor(user_folder, "allowed_rules")
    models, grids = [], []
    for compressor in (TOP_K, user_compressor, import_by_path(user_compressor["name"])(density=user_compressor["density"])):
        grids.append(make_user_grid([user_compressor["name"]]))
        strategy = CompressedStrategy(FedAvg(), compressor, error_feedback="persist")
        models.append([flatten(arrays) for arrays, _ in run_rounds(strategy, grids[-1], make_model(), 3)])
    np.testing.assert_array_equal(models[1], models[0])
    np.testing.assert_array_equal(models[2], models[0])
    assert list_check_messages(grids[0]) == []
    assert list_check_messages(grids[1]) == sorted(NODES)
    assert all(len(node.received) == 3 for node in grids[1].nodes.values()), "the app is not called for a comparison"


def test_class_that_a_node_does_not_allow_is_refused_and_not_imported(user_folder: Path) -> None:
    compressor = make_user_compressor(user_folder, "forbidden_rules")
    strategy = CompressedStrategy(FedAvg(), compressor)
    settings = CompressionSettings(*strategy._link_settings, build_array_layout(make_model(), ()))
    data = settings.encode()
    del sys.modules["forbidden_rules"]
    grid = make_user_grid(["forbidden_rules:Other"])
    with pytest.raises(ScenarioError) as caught:
        strategy.configure_train(1, make_model(), ConfigRecord(), grid)
    assert str(caught.value) == (
        "compressor: node 7 cannot take part: forbidden_rules:HalfTopK is not allowed; "
        'expected compression_mod(allow=["forbidden_rules:HalfTopK"])'
    )
    assert len(list_check_messages(grid)) == len(grid.contents) == len(NODES), "no node was sent a model"
    with pytest.raises(WireError, match=r'compressor\.name: got "forbidden_rules:HalfTopK"'):
        decode_settings(data)
    assert "forbidden_rules" not in sys.modules
    assert decode_settings(data, ["forbidden_rules:HalfTopK"]).uplink.compressor.name == "half-top-k"


def test_class_that_a_node_cannot_import_is_refused(user_folder: Path) -> None:
    compressor = make_user_compressor(user_folder, "absent_rules")
    strategy = CompressedStrategy(FedAvg(), compressor)
    del sys.modules["absent_rules"]
    (user_folder / "absent_rules.py").unlink()
    with pytest.raises(ScenarioError) as caught:
        strategy.configure_train(1, make_model(), ConfigRecord(), make_user_grid([compressor["name"]]))
    assert str(caught.value).startswith(
        'compressor: node 7 cannot take part: absent_rules:HalfTopK: cannot import "absent_rules": '
        "ModuleNotFoundError: No module named 'absent_rules'"
    )
    assert "\n" not in str(caught.value)


def test_class_with_another_source_at_a_node_is_refused_in_any_round(
    user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that connects after the first round has another class."""
    compressor = make_user_compressor(user_folder, "differing_rules")
    strategy, grid = CompressedStrategy(RecordingFedAvg(), compressor), make_user_grid([compressor["name"]])
    late_node = grid.nodes.pop(NODES[0])
    rounds = run_rounds(strategy, grid, make_model(), 2)
    arrays, _ = next(rounds)
    grid.nodes[late_node.id] = late_node
    identify_classes = class_check.identify_classes
    monkeypatch.setattr(
        class_check, "identify_classes", lambda paths: [item._replace(sha256="0") for item in identify_classes(paths)]
    )
    message = f"node {late_node.id} cannot take part: differing_rules:HalfTopK is not the server's: the node has "
    for call in (lambda: strategy.configure_evaluate(1, arrays, ConfigRecord(), grid), lambda: next(rounds)):
        with pytest.raises(ScenarioError, match=message):
            call()
    assert late_node.received == []


def test_node_without_the_mod_is_reported_as_for_any_compressor(user_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    compressor = make_user_compressor(user_folder, "unreported_rules")
    grid = RecordingGrid(
        [Node(id, number, [] if id == 7 else [compression_mod(allow=[compressor["name"]])]) for number, id in enumerate(NODES)]
    )
    list(run_rounds(CompressedStrategy(RecordingFedAvg(), compressor), grid, make_model(), 1))
    assert "node 7: the ClientApp failed outside compression_mod()" in caplog.text


def test_compressor_that_nodes_cannot_import_is_refused_at_the_server() -> None:
    @dataclass(frozen=True)
    class LocalTopK(TopK):
        pass

    with pytest.raises(ScenarioError, match=r"expected a compressor whose class nodes can import"):
        CompressedStrategy(FedAvg(), LocalTopK())
    with pytest.raises(ScenarioError, match=r'compressor\.name: cannot import "no_such_rules"'):
        CompressedStrategy(FedAvg(), "no_such_rules:Rule")


@pytest.mark.parametrize("allow", ["my_rules:Rule", 3, None, ["my_rules"], [":Rule"], [TopK]])
def test_wrong_list_of_allowed_classes_is_refused(allow: Any) -> None:
    with pytest.raises(ScenarioError, match=r'allow: got .*, expected (a list of )?"my_package.my_module:MyClass"'):
        compression_mod(allow=allow)
