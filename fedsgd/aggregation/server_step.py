"""Step of the server's optimizer with the aggregate of a round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsgd.numerics.arrays import F32
from fedsgd.optim import Optimizer
from fedsgd.system.torch_threads import use_single_thread


def compute_server_step(
    optimizer: Optimizer,
    weights: F32,
    update: F32,
    state: Mapping[str, F32],
    round: int,
    *,
    overwrite_update: bool = False,
    needs_step: bool = True,
) -> tuple[F32, F32 | None, dict[str, F32]]:
    """Make one server step on the pseudo-gradient −update, and return the next weights [P], the step [P] and the next state.

    An empty state stands for the initial buffers. No argument is written to, except `update` with `overwrite_update`, which
    saves a copy of P numbers. The step is None unless `needs_step`. With "sgd" and lr = 1, the next weights are
    weights + update, the weighted mean of the clients' models: FedAvg.
    """
    import torch

    with use_single_thread():
        w = torch.from_numpy(weights.copy())
        buffers = {name: torch.from_numpy(value.copy()) for name, value in state.items()} or optimizer.init(w)
        gradient = torch.from_numpy(np.negative(update, out=update if overwrite_update else None))
        step = optimizer.step(w, gradient, buffers, optimizer.learning_rate(round))
        difference: F32 | None = step.compute_difference(w).numpy() if needs_step else None
        step.add_to(w)
    return w.numpy(), difference, {name: value.numpy() for name, value in buffers.items()}
