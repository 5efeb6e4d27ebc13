"""Comparison of four policies for batch norm: python scenarios/participation/batch_norm.py

The running statistics of batch norm are not gradients. The script trains on digits with skewed classes, and prints the accuracy
on each client's held-out examples and the bytes up. Policies: "group" replaces batch norm by group norm; "batch" normalises by
each batch; "mean" averages the statistics, sent as dense float32 and counted; "local" keeps batch norm at its client (FedBN).
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import fedsgd
from fedsgd.scenario.scenario import parse_scenario

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
SCENARIO = parse_scenario(
    {
        "name": "batch_norm",
        "rounds": ROUNDS,
        "data": {"name": "digits", "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.3}, "held_out": 0.3},
        "client": {"optimizer": {"name": "sgd", "lr": 0.1}, "epochs": 2, "batch_size": "full"},
        "server": {"cohort": 10},
        "evaluation": {"clients": True, "every": ROUNDS},
    }
)


def network() -> nn.Module:
    """Return a perceptron with batch norm, with equal initial weights at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


for policy in ("group", "batch", "mean", "local"):
    result = fedsgd.run(SCENARIO.with_settings({"model.batch_norm": policy}), model=network())
    final, up = result.summary["final_metrics"], result.summary["uplink"]
    print(
        f"{policy:>6}: {final['client_accuracy_mean']:.3f} by client, worst tenth {final['client_accuracy_worst_tenth']:.3f}, "
        f"{up['n_bytes']:>9,} bytes up, {up['side']:>7,} of them statistics"
    )
