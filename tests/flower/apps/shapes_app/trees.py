"""Boosted trees as JSON in one array of bytes that grows each round, in the format of `FedXgbBagging`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from sklearn.tree import DecisionTreeRegressor

from .data import CLASSES, Examples

DEPTH = 5
SHRINKAGE = 0.2

Tree = dict[str, Any]


class BoostedTrees:
    """Sum of regression trees with ten outputs. Each round, each node adds one tree."""

    def initial(self) -> ArrayRecord:
        """Return an empty model."""
        return _record(b"")

    def train(self, arrays: ArrayRecord, examples: Examples, state: RecordDict, seed: int) -> ArrayRecord:
        """Return a model of one new tree, fitted to the error of all trees so far."""
        error = np.eye(CLASSES)[examples.y] - _scores(_trees(arrays), examples.x)
        fit_tree = DecisionTreeRegressor(max_depth=DEPTH, max_features=0.3, random_state=seed).fit(examples.x, error).tree_
        tree = {
            "split_indices": fit_tree.feature.tolist(),
            "split_conditions": fit_tree.threshold.tolist(),
            "left_children": fit_tree.children_left.tolist(),
            "right_children": fit_tree.children_right.tolist(),
            "leaf_values": fit_tree.value[:, :, 0].tolist(),
        }
        return _record(json.dumps(_model([tree])).encode())

    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the trees on examples."""
        return float((_scores(_trees(arrays), examples.x).argmax(1) == examples.y).mean())


def _model(trees: list[Tree]) -> dict[str, Any]:
    """Return trees in the structure that `FedXgbBagging` reads."""
    sizes = {"num_trees": str(len(trees)), "num_parallel_tree": str(len(trees))}
    model = {
        "gbtree_model_param": sizes,
        "iteration_indptr": [0, len(trees)],
        "tree_info": [0] * len(trees),
        "trees": trees,
    }
    return {"learner": {"gradient_booster": {"model": model}}}


def _trees(arrays: ArrayRecord) -> list[Tree]:
    data = arrays["0"].numpy().tobytes()
    trees: list[Tree] = json.loads(data)["learner"]["gradient_booster"]["model"]["trees"] if data else []
    return trees


def _scores(trees: list[Tree], x: np.ndarray) -> np.ndarray:
    """Return scores [n, 10]. All nodes add a tree in each round, so each tree is shrunk."""
    return sum((_leaves(tree, x) for tree in trees), np.zeros((len(x), CLASSES))) * SHRINKAGE


def _leaves(tree: Tree, x: np.ndarray) -> np.ndarray:
    """Return the leaf values [n, 10] of examples."""
    left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
    feature, threshold = np.array(tree["split_indices"]), np.array(tree["split_conditions"])
    rows, nodes = np.arange(len(x)), np.zeros(len(x), dtype=int)
    for _ in range(DEPTH):
        goes_left = x[rows, feature[nodes]].astype(np.float32) <= threshold[nodes]
        nodes = np.where(left[nodes] < 0, nodes, np.where(goes_left, left[nodes], right[nodes]))
    return np.array(tree["leaf_values"])[nodes]


def _record(data: bytes) -> ArrayRecord:
    return ArrayRecord([np.frombuffer(data, dtype=np.uint8)])
