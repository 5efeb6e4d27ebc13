"""The work of all peers, and the report that a peer's driver writes.

The time of a driver includes its imports, so this module imports numpy and torch only in the functions that use them.
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
    """FedAvg with plain SGD in float32.

    Attributes:
        name: name of the work.
        model: "2nn" or "cnn".
        data: "mnist", or "shapes" for synthetic images that need no file.
        clients: N.
        examples: examples of each client.
        cohort: C.
        epochs: local epochs.
        batch_size: B.
        lr: learning rate.
        rounds: R.
        arrays: folder of the arrays that `prepare` writes.
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
"""The 2NN (199,210 parameters) and the CNN (1,663,370) of McMahan et al. 2017, and a small work for tests.

IID, a tenth of the clients in each round, one local epoch, batches of 10.
"""


@dataclass(frozen=True)
class Report:
    """Report of a driver.

    Attributes:
        ends: time.time() at the end of each round.
        accuracy: accuracy of the last model on the test examples, evaluated after the last round.
        parameters: P.
        uplink_bytes: bytes of all rounds, None if the peer does not count them.
        downlink_bytes: bytes of all rounds, None if the peer does not count them.
    """

    ends: list[float]
    accuracy: float
    parameters: int
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None


@dataclass
class Clock:
    """Clock that is read at the end of each round."""

    ends: list[float] = field(default_factory=list)

    def stamp(self) -> None:
        """Record the end of a round."""
        self.ends.append(time.time())


def prepare(work: Work, data: Path | None, folder: Path) -> Work:
    """Write the arrays of the work and return the work with their folder.

    Training examples are shuffled; client i has rows [i * examples, (i + 1) * examples). The arrays are .npy files, which can
    be mapped into memory, and additionally data.npz for fedsgd.
    """
    import numpy as np

    arrays = _shapes(work) if work.data == "shapes" else _mnist(data)
    rng, n_examples = np.random.default_rng(0), work.clients * work.examples
    order = rng.permutation(len(arrays["y_train"]))[:n_examples]
    arrays |= {name: arrays[name][order] for name in ("x_train", "y_train")}
    for name in PARTS:
        np.save(folder / f"{name}.npy", arrays[name])
    np.savez(folder / "data.npz", owner_train=np.arange(n_examples) // work.examples, **arrays)
    os.sync()  # else the files are written to the disk while the first peer is measured
    return replace(work, arrays=str(folder))


def _mnist(data: Path | None) -> dict[str, NDArray[Any]]:
    from fedsgd.data.datasets.mnist import Mnist

    dataset = Mnist().load(data)
    return dict(zip(PARTS, (dataset.train.x, dataset.train.y, dataset.test.x, dataset.test.y), strict=True))


def _shapes(work: Work) -> dict[str, NDArray[Any]]:
    """Return ten random images of 28×28 with noise."""
    import numpy as np

    rng = np.random.default_rng(1)
    images = rng.random((CLASSES, 28, 28), dtype=np.float32)
    arrays: dict[str, NDArray[Any]] = {}
    for part, n in (("train", work.clients * work.examples), ("test", 200)):
        y = rng.integers(0, CLASSES, n)
        noise = rng.standard_normal((n, 28, 28), dtype=np.float32)
        arrays |= {f"x_{part}": images[y] + np.float32(0.1) * noise, f"y_{part}": y}
    return arrays


# ---------------------------------------------------------------------------------------------------- functions of the drivers


def read_work(folder: Path) -> Work:
    """Read the work that is stored in a folder."""
    return Work(**json.loads((folder / "work.json").read_text()))


def part(work: Work, name: str) -> tuple[Tensor, Tensor]:
    """Return (x, y) of "train" or "test", float32 [n, 28, 28] and int64 [n], mapped into memory."""
    import numpy as np
    import torch

    x, y = (torch.from_numpy(np.load(Path(work.arrays, f"{array}_{name}.npy"), mmap_mode="c")) for array in ("x", "y"))
    return x, y


def client_part(work: Work, client: int) -> tuple[Tensor, Tensor]:
    """Return (x, y) of one client's training examples."""
    x, y = part(work, "train")
    rows = slice(client * work.examples, (client + 1) * work.examples)
    return x[rows], y[rows]


def layers(model: str) -> list[nn.Module]:
    """Return the layers of the model, which are those of fedsgd."""
    from torch import nn

    if model == "2nn":
        return [nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, CLASSES)]
    features = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return [nn.Unflatten(1, (1, 28)), *features, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, CLASSES)]


def build(model: str) -> nn.Module:
    """Return the model with the initial parameters of torch."""
    from torch import nn

    return nn.Sequential(*layers(model))


def finish(folder: Path, work: Work, clock: Clock, module: nn.Module) -> None:
    """Evaluate the model and write the report."""
    import torch

    x, y = part(work, "test")
    module.eval()
    with torch.no_grad():
        hits = [(module(a).argmax(1) == b).sum().item() for a, b in zip(x.split(100), y.split(100), strict=True)]
    n_parameters = sum(p.numel() for p in module.parameters())
    report = Report(clock.ends, sum(hits) / len(y), n_parameters)
    (folder / "report.json").write_text(json.dumps(asdict(report)))


def read_report(folder: Path) -> Report | None:
    """Return the report of a driver, None if there is none."""
    file = folder / "report.json"
    return Report(**json.loads(file.read_text())) if file.exists() else None


def drive(run: Callable[[Work, Clock], nn.Module]) -> None:
    """Do the work in the folder that the command line names, evaluate the model and write the report."""
    import torch

    torch.set_num_threads(1)
    folder, clock = Path(sys.argv[1]), Clock()
    work = read_work(folder)
    finish(folder, work, clock, run(work, clock))
