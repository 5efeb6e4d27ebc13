"""Neural network in NumPy with one hidden layer, and a version with a personal last layer."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from .data import CLASSES, PIXELS, Examples

HIDDEN = 128
HEAD = ("head.weight", "head.bias")
EPOCHS = 2
BATCH = 20
LEARNING_RATE = 0.2

Values = dict[str, np.ndarray]


class Network:
    """Network 64-128-10 with 9,610 parameters in float32."""

    def initial(self) -> ArrayRecord:
        """Return the arrays before training."""
        rng = np.random.default_rng(0)
        body, head = rng.normal(size=(PIXELS, HIDDEN)) * (2 / PIXELS) ** 0.5, rng.normal(size=(HIDDEN, CLASSES)) / HIDDEN**0.5
        return _record(
            {"body.weight": body, "body.bias": np.zeros(HIDDEN), "head.weight": head, "head.bias": np.zeros(CLASSES)}
        )

    def train(self, arrays: ArrayRecord, examples: Examples, state: RecordDict, seed: int) -> ArrayRecord:
        """Return the arrays after some local epochs of SGD."""
        values, rng = _values(arrays), np.random.default_rng(seed)
        for _ in range(EPOCHS):
            order = rng.permutation(len(examples.y))
            for rows in np.array_split(order, len(order) // BATCH):
                for name, gradient in _gradients(values, examples.x[rows], examples.y[rows]).items():
                    values[name] = values[name] - LEARNING_RATE * gradient
        return _record(values)

    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the arrays on examples."""
        _, scores = _forward(_values(arrays), examples.x)
        return float((scores.argmax(1) == examples.y).mean())


class PersonalNetwork(Network):
    """Network with a personal head, which each node stores in its state and omits from its replies."""

    def train(self, arrays: ArrayRecord, examples: Examples, state: RecordDict, seed: int) -> ArrayRecord:
        """Return the body after training; the head is stored in the node's state."""
        trained_arrays = super().train(_insert_personal_arrays(arrays, state), examples, state, seed)
        for name in HEAD:
            state[name] = ArrayRecord({name: trained_arrays[name]})
        return ArrayRecord({name: array for name, array in trained_arrays.items() if name not in HEAD})

    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the body with this node's head."""
        return super().accuracy(_insert_personal_arrays(arrays, state), examples, state)


def _insert_personal_arrays(arrays: ArrayRecord, state: RecordDict) -> ArrayRecord:
    """Return the arrays with a node's personal arrays. All records of the state must be the app's."""
    personal_arrays = {name: array for record in state.values() for name, array in record.items()}
    return ArrayRecord({**arrays, **personal_arrays})


def _forward(values: Values, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(x @ values["body.weight"] + values["body.bias"], 0)
    return hidden, hidden @ values["head.weight"] + values["head.bias"]


def _gradients(values: Values, x: np.ndarray, y: np.ndarray) -> Values:
    """Return the gradients of the mean cross-entropy."""
    hidden, scores = _forward(values, x)
    odds = np.exp(scores - scores.max(1, keepdims=True))
    error = odds / odds.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    inner = error @ values["head.weight"].T * (hidden > 0)
    return {"body.weight": x.T @ inner, "body.bias": inner.sum(0), "head.weight": hidden.T @ error, "head.bias": error.sum(0)}


def _values(arrays: ArrayRecord) -> Values:
    return {name: array.numpy().astype(np.float64) for name, array in arrays.items()}


def _record(values: Values) -> ArrayRecord:
    return ArrayRecord({name: Array(value.astype(np.float32)) for name, value in values.items()})
