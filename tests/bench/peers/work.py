"""The work that everybody does, and what everybody says of it afterwards.

Drivers are timed from their first moment, so this module imports numpy and torch only where they are used.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

CLASSES = 10
PARTS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Work:
    """FedAvg over `clients` clients with `examples` examples each, `cohort_size` of them a round, plain SGD, float32.

    data: "mnist", or "shapes", which is made up and needs no file; arrays: the folder that `prepare` has put them into.
    """

    name: str
    model: str = "2nn"
    data: str = "mnist"
    clients: int = 100
    examples: int = 600
    cohort: int = 10
    epochs: int = 1
    batch_size: int = 10
    lr: float = 0.1
    rounds: int = 10
    arrays: str = ""


WORKS = {
    "2nn": Work("2nn"),
    "cnn": Work("cnn", "cnn"),
    "tiny": Work("tiny", data="shapes", clients=8, examples=50, cohort=4),
}
"""McMahan et al. 2017: the 2NN (199,210 parameters) and the CNN (1,663,370), IID, C = 0.1, E = 1, B = 10; and one for tests."""


@dataclass(frozen=True)
class Report:
    """What a driver says. ends: time.time() at the end of each round; accuracy: of the last model on the test examples, taken
    after the last round; bytes: of all rounds, None from those that do not say."""

    ends: list[float]
    accuracy: float
    parameters: int
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None


@dataclass
class Clock:
    """Takes the time at the end of each round."""

    ends: list[float] = field(default_factory=list)

    def stamp(self) -> None:
        """A round has ended."""
        self.ends.append(time.time())


def prepare(work: Work, data: Path | None, folder: Path) -> Work:
    """The work with its arrays written: client i owns rows [i * examples, (i + 1) * examples) of the training part, which is
    shuffled. As .npy for whoever can map files into memory, and the same once more as data.npz for fedsgd."""
    import numpy as np

    arrays = _shapes(work) if work.data == "shapes" else _mnist(data)
    rng, n_examples = np.random.default_rng(0), work.clients * work.examples
    order = rng.permutation(len(arrays["y_train"]))[:n_examples]
    arrays |= {name: arrays[name][order] for name in ("x_train", "y_train")}
    for name in PARTS:
        np.save(folder / f"{name}.npy", arrays[name])
    np.savez(folder / "data.npz", owner_train=np.arange(n_examples) // work.examples, **arrays)
    os.sync()  # or it is written to the disk while the first peer is measured
    return replace(work, arrays=str(folder))


def _mnist(data: Path | None) -> dict[str, NDArray[Any]]:
    from fedsgd.data.datasets.mnist import Mnist

    read = Mnist().load(data)
    return dict(zip(PARTS, (read.train.x, read.train.y, read.test.x, read.test.y), strict=True))


def _shapes(work: Work) -> dict[str, NDArray[Any]]:
    """Ten random pictures of 28×28 with noise."""
    import numpy as np

    rng = np.random.default_rng(1)
    pictures = rng.random((CLASSES, 28, 28), dtype=np.float32)
    arrays: dict[str, NDArray[Any]] = {}
    for part, n in (("train", work.clients * work.examples), ("test", 200)):
        y = rng.integers(0, CLASSES, n)
        noise = rng.standard_normal((n, 28, 28), dtype=np.float32)
        arrays |= {f"x_{part}": pictures[y] + np.float32(0.1) * noise, f"y_{part}": y}
    return arrays


# ------------------------------------------------------------------------------------------------------ for those who use torch


def read_work(folder: Path) -> Work:
    """The work that is to be done there."""
    return Work(**json.loads((folder / "work.json").read_text()))


def part(work: Work, name: str) -> tuple[Tensor, Tensor]:
    """(x, y) of "train" or "test" as float32 [n, 28, 28] and int64 [n], mapped into memory: only what is used is read."""
    import numpy as np
    import torch

    x, y = (torch.from_numpy(np.load(Path(work.arrays, f"{what}_{name}.npy"), mmap_mode="c")) for what in ("x", "y"))
    return x, y


def client_part(work: Work, client: int) -> tuple[Tensor, Tensor]:
    """(x, y) of one client's training examples."""
    x, y = part(work, "train")
    rows = slice(client * work.examples, (client + 1) * work.examples)
    return x[rows], y[rows]


def layers(model: str) -> list[nn.Module]:
    """The model's layers, the same as fedsgd's."""
    from torch import nn

    if model == "2nn":
        return [nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, CLASSES)]
    features = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return [nn.Unflatten(1, (1, 28)), *features, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, CLASSES)]


def build(model: str) -> nn.Module:
    """The model with torch's own random parameters."""
    from torch import nn

    return nn.Sequential(*layers(model))


def finish(folder: Path, work: Work, clock: Clock, module: nn.Module) -> None:
    """Test the model, and write the report."""
    import torch

    x, y = part(work, "test")
    module.eval()
    with torch.no_grad():
        hits = [(module(a).argmax(1) == b).sum().item() for a, b in zip(x.split(100), y.split(100), strict=True)]
    n_parameters = sum(p.numel() for p in module.parameters())
    report = Report(clock.ends, sum(hits) / len(y), n_parameters)
    (folder / "report.json").write_text(json.dumps(asdict(report)))


def read_report(folder: Path) -> Report | None:
    """What a driver has written, if it has."""
    file = folder / "report.json"
    return Report(**json.loads(file.read_text())) if file.exists() else None


def drive(run: Callable[[Work, Clock], nn.Module]) -> None:
    """What a driver does: the work in the folder that its command line names, the test, the report."""
    import torch

    torch.set_num_threads(1)
    folder, clock = Path(sys.argv[1]), Clock()
    work = read_work(folder)
    finish(folder, work, clock, run(work, clock))
