"""Shapes of apps: model, strategy, and settings of its compression."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedXgbBagging,
    Strategy,
)

from .data import Examples
from .strategies import CheckpointFedAvg, NormFedAvg, PersonalFedAvg

NODES = 4
CLIPPING_NORM = 1.0
NOISE = 0.01
"""Noise multiplier of differential privacy: large enough to be measured, far too small for privacy."""


class Model(Protocol):
    """Model of an app, and its training."""

    def initial(self) -> ArrayRecord:
        """Return the arrays before training."""

    def train(self, arrays: ArrayRecord, examples: Examples, state: RecordDict, seed: int) -> ArrayRecord:
        """Return the arrays after training. `state` is the `context.state` of the node's app."""

    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the arrays on examples."""


@dataclass(frozen=True)
class Shape:
    """Shape of an app.

    Attributes:
        model: name of the model, as "module:object".
        strategy: function that creates the strategy.
        compression: arguments of `CompressedStrategy`.
        clips: True if clients clip their updates with Flower's mod.
    """

    model: str
    strategy: Callable[[], Strategy]
    compression: Mapping[str, Any] = field(default_factory=dict)
    clips: bool = False

    def load_model(self) -> Model:
        """Import the model. Its library is imported only by apps that use it."""
        module, _, name = self.model.partition(":")
        attribute = getattr(importlib.import_module(f".{module}", __package__), name)
        model: Model = attribute() if isinstance(attribute, type) else attribute
        return model


ALL_NODES = {"min_available_nodes": NODES, "min_train_nodes": NODES, "min_evaluate_nodes": NODES}
_FOLLOWING = {"downlink": {"policy": "difference"}}
_TOP_K = {"compressor": {"name": "top-k", "density": 0.05}, "error_feedback": "persist"} | _FOLLOWING
_DENSE = {"compressor": "eden"}
"""One bit for each coordinate, without a residual: suits medians and differential privacy."""


def _dp_client() -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(NormFedAvg(**ALL_NODES), NOISE, CLIPPING_NORM, NODES)


def _dp_server() -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(NormFedAvg(**ALL_NODES), NOISE, CLIPPING_NORM, NODES)


SHAPES = {
    "pytorch": Shape("torch_models:perceptron", lambda: FedAvg(**ALL_NODES), _TOP_K),
    "scikit-learn": Shape("linear:LinearModel", lambda: FedAvg(**ALL_NODES), _TOP_K),
    "boosted-trees": Shape("trees:BoostedTrees", lambda: FedXgbBagging(**ALL_NODES), _TOP_K),
    "own-start": Shape("network:Network", lambda: CheckpointFedAvg(**ALL_NODES), _TOP_K),
    "causal-mask": Shape("torch_models:attention", lambda: FedAvg(**ALL_NODES), _TOP_K),
    "personal-layers": Shape("network:PersonalNetwork", lambda: PersonalFedAvg(**ALL_NODES), _TOP_K),
    "dp-client-side": Shape("network:Network", _dp_client, _DENSE, clips=True),
    "dp-server-side": Shape("network:Network", _dp_server, _DENSE),
    "median": Shape("network:Network", lambda: FedMedian(**ALL_NODES), _DENSE | _FOLLOWING),
    "median-top-k": Shape(
        "network:Network", lambda: FedMedian(**ALL_NODES), _TOP_K | {"compressor": {"name": "top-k", "density": 0.1}}
    ),
    "median-rand-k": Shape(
        "network:Network", lambda: FedMedian(**ALL_NODES), {"compressor": {"name": "rand-k", "density": 0.1}} | _FOLLOWING
    ),
}
"""The shapes by name. "median-rand-k" is a counter-example: a median of mostly zeros is zero."""
