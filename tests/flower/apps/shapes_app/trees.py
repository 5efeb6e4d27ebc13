"""Boosted trees as JSON in one array of bytes that grows each round, as XGBoost's apps send them to `FedXgbBagging`."""

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
        """Return a model of one new tree, which is fitted to the error of all trees so far."""
        error = np.eye(CLASSES)[examples.y] - _scores(_trees(arrays), examples.x)
        fitted = DecisionTreeRegressor(max_depth=DEPTH, max_features=0.3, random_state=seed).fit(examples.x, error).tree_
        tree = {
            "split_indices": fitted.feature.tolist(),
            "split_conditions": fitted.threshold.tolist(),
            "left_children": fitted.children_left.tolist(),
            "right_children": fitted.children_right.tolist(),
            "leaf_values": fitted.value[:, :, 0].tolist(),
        }
        return _record(json.dumps(_model([tree])).encode())

    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the trees on examples."""
        return float((_scores(_trees(arrays), examples.x).argmax(1) == examples.y).mean())


def _model(trees: list[Tree]) -> dict[str, Any]:
    """Return trees in the places where `FedXgbBagging` looks for them."""
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
    """Return [n, 10] scores. Nodes train at once, so a tree counts for its share of a round only."""
    return sum((_leaves(tree, x) for tree in trees), np.zeros((len(x), CLASSES))) * SHRINKAGE


def _leaves(tree: Tree, x: np.ndarray) -> np.ndarray:
    """Return the values of the leaves that examples reach."""
    left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
    feature, threshold = np.array(tree["split_indices"]), np.array(tree["split_conditions"])
    rows, at = np.arange(len(x)), np.zeros(len(x), dtype=int)
    for _ in range(DEPTH):
        goes_left = x[rows, feature[at]].astype(np.float32) <= threshold[at]
        at = np.where(left[at] < 0, at, np.where(goes_left, left[at], right[at]))
    return np.array(tree["leaf_values"])[at]


def _record(data: bytes) -> ArrayRecord:
    return ArrayRecord([np.frombuffer(data, dtype=np.uint8)])
