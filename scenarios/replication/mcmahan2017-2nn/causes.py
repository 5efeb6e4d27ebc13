"""Causes of the 2NN's few rounds: McMahan et al. 2017, table 1, with one setting varied at a time.

    python scenarios/replication/mcmahan2017-2nn/causes.py [--data DIR] [--variants init-glorot order-dealt] [--splits shards]
        [--rates 0.1 0.215] [--seeds 0 1 2] [--rounds 400] [--target 0.97] [--results causes.json]

A run is scenarios/mnist_fedavg.toml with a split of SPLITS and a variant of VARIANTS, and ends at the target. Finished runs are
stored in --results, with the number of correct test examples after each round, 0 if it was not evaluated. Only a run that
missed its target is repeated, where --rounds allows more rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

import fedsgd
from fedsgd.data import Examples
from fedsgd.experiment.time_to_target import find_first_reached
from fedsgd.numerics.rng import derive_generator

BASE = Path(__file__).parents[2] / "mnist_fedavg.toml"
SPLITS: Mapping[str, Mapping[str, Any]] = {
    "iid": {"rounds": 250},
    "shards": {"rounds": 800, "data.partition": {"name": "shards", "clients": 100, "shards_per_client": 2}},
    "iid, C = 0": {"rounds": 480, "server.cohort": 1},
    "iid, C = 0.5": {"rounds": 113, "server.fraction": 0.5},
    "iid, B = ∞": {"rounds": 2211, "client.batch_size": 600, "evaluation.every": 5},
    "iid, CNN": {"rounds": 90, "model": {"name": "cnn"}},  # with --target 0.99
}


def build_perceptron(initialize: Callable[[nn.Linear], object], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return the 2NN with other initial parameters or another activation."""
    first, second, last = nn.Linear(784, 200), nn.Linear(200, 200), nn.Linear(200, 10)
    for layer in (first, second, last):
        initialize(layer)
    return nn.Sequential(nn.Flatten(), first, activation(), second, activation(), last)


def initialize_glorot(layer: nn.Linear) -> None:
    """Set Keras's defaults: Glorot's uniform weights, biases 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def initialize_normal(layer: nn.Linear, std: float | None = None, bias: float = 0.0) -> None:
    """Draw normal weights, truncated at two standard deviations; a std of None stands for 1/√(number of inputs)."""
    std = 1 / math.sqrt(layer.in_features) if std is None else std
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.constant_(layer.bias, bias)


TUTORIAL = functools.partial(initialize_normal, std=0.1, bias=0.1)


@dataclass(frozen=True)
class Variant:
    """One setting that differs from the baseline.

    Attributes:
        settings: settings of the scenario.
        scale: function of the pixels, which are 0 to 1.
        module: function that builds the initial model; None: the 2NN with PyTorch's initial parameters.
        order: order of a client's examples: "shuffled" in each round; "fixed": shuffled once; "dealt": never shuffled, and
            with two shards the examples of the first shard come before those of the second.
        shards: shards of a client: "random"; "stable": random, with the file's order in each class; "consecutive".
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    scale: Callable[[Any], Any] = lambda pixels: pixels
    module: Callable[[], nn.Module] | None = None
    order: str = "shuffled"
    shards: str = "random"


VARIANTS: Mapping[str, Variant] = {
    "baseline": Variant(),
    "init-glorot": Variant(module=lambda: build_perceptron(initialize_glorot)),
    "init-fan-in": Variant(module=lambda: build_perceptron(initialize_normal)),
    "init-0.1": Variant(module=lambda: build_perceptron(TUTORIAL)),
    "init-0.01": Variant(module=lambda: build_perceptron(lambda layer: initialize_normal(layer, 0.01))),
    "tanh": Variant(module=lambda: build_perceptron(lambda layer: None, nn.Tanh)),
    "pixels-standardised": Variant(scale=lambda x: (x - 0.1307) / 0.3081),
    "pixels-±1": Variant(scale=lambda x: 2 * x - 1),
    "pixels-±0.5": Variant(scale=lambda x: x - 0.5),
    "order-fixed": Variant(order="fixed"),
    "order-dealt": Variant(order="dealt"),
    "pixels-±0.5-order-fixed": Variant(scale=lambda x: x - 0.5, order="fixed"),
    "pixels-±0.5-order-dealt": Variant(scale=lambda x: x - 0.5, order="dealt"),
    "tf-tutorial": Variant(scale=lambda x: x - 0.5, module=lambda: build_perceptron(TUTORIAL), order="dealt"),
    "shards-stable": Variant(shards="stable"),
    "shards-consecutive": Variant(shards="consecutive"),
    "shards-distinct": Variant({"data.partition": {"name": "pathological", "clients": 100, "classes_per_client": 2}}),
}


@contextmanager
def order_batches(order: str) -> Iterator[None]:
    """Replace the order in which clients pass over their examples."""

    def derive(seed: int, purpose: str, round: int, *rest: int) -> Any:
        return SimpleNamespace(permutation=np.arange) if order == "dealt" else derive_generator(seed, purpose, 0, *rest)

    function = derive_generator if order == "shuffled" else derive
    with mock.patch("fedsgd.training.base.rng", SimpleNamespace(derive_generator=function)):
        yield


def prepare_data(variant: Variant, split: str, mnist: fedsgd.Dataset, seed: int) -> tuple[fedsgd.Dataset, dict[str, Any]]:
    """Return the dataset of a variant, and the settings that the dataset needs."""
    rows, owners, settings = np.arange(60_000), None, {}
    if split == "shards" and (variant.order == "dealt" or variant.shards != "random"):
        rows = np.argsort(mnist.train.y[rows], kind="stable")
    if split == "shards" and variant.shards != "random":
        shards = np.arange(200) if variant.shards == "consecutive" else np.random.default_rng(seed).permutation(200)
        owners, settings = np.repeat(shards // 2, len(rows) // 200), {"data.partition": {"name": "natural"}}
    train = Examples(variant.scale(mnist.train.x[rows]), mnist.train.y[rows], writer=owners)
    return dataclasses.replace(mnist, train=train, test=Examples(variant.scale(mnist.test.x), mnist.test.y)), settings


def run(key: Mapping[str, Any], rounds: int | None, mnist: fedsgd.Dataset) -> dict[str, Any]:
    """Execute one run and return its record."""
    variant, seed, start = VARIANTS[key["variant"]], key["seed"], time.process_time()
    dataset, settings = prepare_data(variant, key["split"], mnist, seed)
    settings = {**SPLITS[key["split"]], **variant.settings, **settings, **({"rounds": rounds} if rounds else {})}
    settings |= {"stop.target_accuracy": key["target"], "client.optimizer.lr": key["rate"], "seed": seed}
    torch.manual_seed(seed)
    model = None if variant.module is None else variant.module()
    correct, error = list[int](), ""
    try:
        with order_batches(variant.order):
            fedsgd.run(
                fedsgd.load(BASE, settings),
                data=dataset,
                model=model,
                on_round=lambda record: correct.append(round(10_000 * (record.accuracy or 0))),
            )
    except fedsgd.NonFiniteError as problem:
        error = str(problem)
    figures = {"cpu_seconds": round(time.process_time() - start, 1), "error": error, "correct": correct}
    return {**key, "limit": settings["rounds"], **figures}


def count_rounds(record: Mapping[str, Any]) -> float:
    """Return the rounds to the target by the paper's rule; NaN if it was missed."""
    curve = [(n, value / 10_000) for n, value in enumerate(record["correct"], start=1) if value]
    reached = find_first_reached(curve, record["target"])
    return math.nan if reached is None else reached.rounds


def describe(record: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    correct, note = record["correct"], record["error"] and "diverged"
    key = f"| {record['variant']} | {record['split']} | {record['rate']:g} | {record['seed']}"
    return f"{key} | {count_rounds(record):.1f} | {max(correct, default=0) / 10_000:.4f} | {len(correct)} | {note} |"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDSGD_DATA"), help="folder of the MNIST files")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=["iid"])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1], help="learning rates; default: 0.1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, help="most rounds of a run; default: by split")
    parser.add_argument("--target", type=float, default=0.97, help="accuracy that ends a run; default: 0.97")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("causes.json"))
    options = parser.parse_args()
    records = json.loads(options.results.read_text()) if options.results.exists() else []
    mnist = fedsgd.datasets.Mnist().load(options.data)
    print("| variant | split | learning rate | seed | rounds | best | length | |\n" + "|---" * 8 + "|")
    for seed, split, name, rate in itertools.product(options.seeds, options.splits, options.variants, options.rates):
        key = {"variant": name, "split": split, "rate": rate, "seed": seed, "target": options.target}
        record = next((stored for stored in records if key.items() <= stored.items()), None)
        limit = options.rounds or SPLITS[split]["rounds"]
        missed = record is not None and not record["error"] and math.isnan(count_rounds(record))
        if record is None or (missed and record["limit"] < limit):
            records = [stored for stored in records if stored is not record]
            record = run(key, options.rounds, mnist)
            records.append(record)
            options.results.write_text("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n]\n")
        print(describe(record), flush=True)


if __name__ == "__main__":
    try:
        main()
    except fedsgd.FedsgdError as error:
        sys.exit(f"causes.py: {error}")
