"""FedLab 1.3.0 with its standalone pipeline: `SyncServerHandler` and `SGDSerialClientTrainer`, one client after the other.

Users of FedLab write `get_dataloader` of the dataset (here over FedLab's `BaseDataset`, with shuffled batches) and `evaluate`
of the pipeline, which is called after each round and reads the clock here. FedLab imports torchvision and pynvml for datasets
and GPUs that are not used here. If they are not installed, empty modules replace them, which makes FedLab start faster.
"""

from __future__ import annotations

import importlib.util
import sys
from unittest.mock import MagicMock

from torch import nn
from torch.utils.data import DataLoader

from tests.bench.peers.work import Clock, Work, build, client_part, drive


def run(work: Work, clock: Clock) -> nn.Module:
    """Train and return the model."""
    for unused in ("torchvision", "pynvml"):
        if importlib.util.find_spec(unused) is None:
            sys.modules[unused] = MagicMock()
    from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
    from fedlab.contrib.algorithm.basic_server import SyncServerHandler
    from fedlab.contrib.dataset.basic_dataset import BaseDataset, FedDataset
    from fedlab.core.standalone import StandalonePipeline

    class Clients(FedDataset):
        def get_dataloader(self, id: int, batch_size: int, type: str = "train") -> DataLoader[object]:  # FedLab's names
            return DataLoader(BaseDataset(*client_part(work, id)), batch_size=batch_size, shuffle=True)

    class Pipeline(StandalonePipeline):
        def evaluate(self) -> None:
            clock.stamp()

    model = build(work.model)
    trainer = SGDSerialClientTrainer(model, work.clients)
    trainer.setup_dataset(Clients())
    trainer.setup_optim(work.epochs, work.batch_size, work.lr)
    handler = SyncServerHandler(model, work.rounds, work.cohort / work.clients)
    Pipeline(handler, trainer).main()
    trained: nn.Module = handler.model
    return trained


if __name__ == "__main__":
    drive(run)
