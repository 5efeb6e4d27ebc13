"""pfl-research 0.6.0 with the API of its tutorials: `FederatedAveraging` over `SimulatedBackend` and `PyTorchModel`.

It runs in one process, without a launcher. Each user is a `PyTorchTensorDataset`. The sampler is "minimize_reuse", which the
documentation recommends; updates are weighted by data points. Batches have the same order each time, since pfl's datasets do
not shuffle. pfl evaluates the users of round one before and after training, without an option to disable it. `metrics`, which
users of pfl write, only counts examples there. A callback reads the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from tests.bench.peers.work import Clock, Work, client_part, drive, layers


class Classifier(nn.Sequential):
    """Module with the methods that pfl requires."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Return the number of examples, which takes no time."""
        return {"examples": Weighted.from_unweighted(len(y))}


class Stamp(TrainingProcessCallback):
    """Callback that reads the clock after each round."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_central_iteration(self, *args: Any, **kwargs: Any) -> tuple[bool, Metrics]:
        """Read the clock and continue the training."""
        self.clock.stamp()
        return False, Metrics()


def run(work: Work, clock: Clock) -> nn.Module:
    """Train and return the model."""
    module = Classifier(*layers(work.model))
    train(module, lambda user: client_part(work, user), work, clock)
    return module


def train(module: nn.Module, read_user: Callable[[int], tuple[Tensor, Tensor]], work: Work, clock: Clock) -> None:
    """Train a module with `loss` and `metrics` on the examples of users, on a GPU if torch has one."""
    users = FederatedDataset(
        lambda user: PyTorchTensorDataset(read_user(user), user_id=user),
        get_user_sampler("minimize_reuse", range(work.clients)),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds,
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(local_num_epochs=work.epochs, local_learning_rate=work.lr, local_batch_size=work.batch_size),
        callbacks=[Stamp(clock)],
    )


if __name__ == "__main__":
    drive(run)
