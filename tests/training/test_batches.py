"""Batches of a pass: counts and sizes, and training loops of plain PyTorch with each use of the last batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedsgd.data import Dataset, Examples
from fedsgd.errors import ScenarioError
from fedsgd.experiment.federation_plan import local_training_config
from fedsgd.experiment.runner import run
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.numerics import rng
from fedsgd.optim import SGD, Momentum, PyTorchMomentum
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import LastBatch, LocalTraining, TrainingJob
from fedsgd.training.base import batches, distinct_batch_sizes
from fedsgd.training.selection import rank_batch_sizes
from fedsgd.training.sequential import Sequential
from tests.effort import nightly_unless
from tests.laws.engines import ENGINES, assert_agree

ScenarioMaker = Callable[..., Scenario]
LAST_BATCH: tuple[LastBatch, ...] = ("keep", "drop", "merge")
BATCH_SIZES = (None, 1, 2, 3, 7, 10, 40)


def make_job(task: LearningTask, data: Dataset, n: int) -> TrainingJob:
    return TrainingJob(5, 2, 3, task.initial_parameters, data.train.slice(0, n))


def slice_sizes(n: int, batch_size: int | None, last_batch: LastBatch) -> list[int]:
    """Return the batch sizes of one pass, from slices of a list of examples."""
    size = batch_size or max(n, 1)
    sizes = [len(range(n)[start : start + size]) for start in range(0, n, size)]
    if len(sizes) > 1 and sizes[-1] < size and last_batch != "keep":
        last = sizes.pop()
        if last_batch == "merge":
            sizes[-1] += last
    return sizes


@pytest.mark.sampled
@pytest.mark.parametrize("last_batch", LAST_BATCH)
@pytest.mark.parametrize(("epochs", "steps"), [(1, None), (3, None), (None, 1), (None, 2), (None, 9)])
def test_batch_sizes_on_a_grid_equal_slices_of_a_list(last_batch: LastBatch, epochs: int | None, steps: int | None) -> None:
    for n in range(24):
        data = Examples(np.zeros((n, 1)), np.zeros(n))
        for batch_size in BATCH_SIZES:
            local_training = LocalTraining(SGD(lr=0.5), epochs, steps, batch_size, last_batch=last_batch)
            pass_sizes = slice_sizes(n, batch_size, last_batch)
            n_steps = 0 if not n else len(pass_sizes) * epochs if epochs else steps or 0
            expected = (pass_sizes * 9)[:n_steps]
            lengths = [len(batch) for batch in batches(TrainingJob(0, 1, 0, np.zeros(1, np.float32), data), local_training)]
            assert lengths == expected, (n, batch_size)
            assert (local_training.n_steps(n), local_training.n_examples_processed(n)) == (n_steps, sum(expected))
            assert Counter(distinct_batch_sizes(n, local_training)) == Counter(set(expected))
            assert set(rank_batch_sizes(np.array([n]), local_training)) == set(expected)
            assert local_training.plan_batches(n).batch_sizes == pass_sizes
            assert local_training.learning_rate_sum(n, 1) == local_training.fednova_normalizer(n, 1) == 0.5 * n_steps


@pytest.mark.parametrize(
    ("last_batch", "expected"), [("keep", [10, 10, 5]), ("drop", [10, 10]), ("merge", [10, 15]), (None, [10, 10, 5])]
)
def test_last_batch_of_25_examples_has_the_stated_size(
    scenario: ScenarioMaker, last_batch: LastBatch | None, expected: list[int]
) -> None:
    settings = {} if last_batch is None else {"client.last_batch": last_batch}
    assert local_training_config(scenario(settings)).plan_batches(25).batch_sizes == expected


def test_last_batch_of_most_clients_is_recorded_first() -> None:
    counts, clients = np.array([11, 17, 30]), np.array([9, 1, 1])
    expected = {"keep": [10, 1, 7], "drop": [10], "merge": [11, 10, 17]}
    for last_batch, sizes in expected.items():
        assert rank_batch_sizes(counts, LocalTraining(SGD(), 1, None, 10, last_batch=last_batch), clients) == sizes


def test_unknown_last_batch_is_rejected_with_the_nearest_name(scenario: ScenarioMaker) -> None:
    with pytest.raises(ScenarioError, match=r'client.last_batch: got "dorp", did you mean "drop"\?'):
        scenario({"client.last_batch": "dorp"})


# ----------------------------------------------------------------------------------------------------------- plain PyTorch


def draw_orders(job: TrainingJob, epochs: int) -> Iterator[list[int]]:
    """Yield the order of the examples in each pass, from its random stream."""
    for epoch in range(epochs):
        generator = rng.derive_generator(job.seed, "batches", job.round, job.client, epoch)
        yield generator.permutation(len(job.examples)).tolist()


def load_batches(data: TensorDataset, order: list[int], size: int, last_batch: LastBatch) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of PyTorch's DataLoader, the last two joined for "merge"."""
    loaded_batches = [(x, y) for x, y in DataLoader(data, size, sampler=order, drop_last=last_batch == "drop")]
    if last_batch == "merge" and len(loaded_batches) > 1 and len(loaded_batches[-1][1]) < size:
        (x, y), (last_x, last_y) = loaded_batches.pop(-2), loaded_batches.pop()
        loaded_batches.append((torch.cat([x, last_x]), torch.cat([y, last_y])))
    return loaded_batches


def train_by_pytorch(task: LearningTask, job: TrainingJob, local_training: LocalTraining) -> np.ndarray:
    """Return the parameters [P] after training with a plain PyTorch loop over a DataLoader."""
    engine = Sequential(task, local_training)
    engine._flat_module.bind_parameters(engine._tensor_format.view_tensors(torch.from_numpy(task.initial_parameters.copy())))
    module, data = task.module.train(), TensorDataset(*(torch.from_numpy(array) for array in job.examples.arrays()))
    optimizer = torch.optim.SGD(module.parameters(), lr=local_training.optimizer.lr, momentum=0.9, foreach=False)
    with use_single_thread():
        for order in draw_orders(job, local_training.epochs or 0):
            for x, y in load_batches(data, order, local_training.batch_size or 0, local_training.last_batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x), y).backward()
                optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()


@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("last_batch", LAST_BATCH)
@pytest.mark.parametrize(("n", "batch_size"), nightly_unless((41, 10).__eq__, [(41, 10), (47, 5), (40, 8)]))
def test_client_update_equals_that_of_a_data_loader_loop(
    name: str, last_batch: LastBatch, n: int, batch_size: int, blobs: Dataset
) -> None:
    task = build_task(Mlp(hidden=(16,)), blobs, 0)
    local_training = LocalTraining(PyTorchMomentum(lr=0.1), 2, None, batch_size, last_batch=last_batch)
    job = make_job(task, blobs, n)
    (result,) = ENGINES[name](task, local_training, blobs).train([job])
    assert_agree(
        name, result.update, train_by_pytorch(task, job, local_training) - task.initial_parameters, task.initial_parameters
    )


@pytest.mark.sampled
@pytest.mark.parametrize("name", ENGINES)
def test_merged_single_batch_trains_as_a_full_batch(name: str, blobs: Dataset) -> None:
    """A pass of 10 + 7 examples is one batch of 17, in the order of the data, as every full batch."""
    task = build_task(Mlp(hidden=(16,)), blobs, 0)
    settings = LocalTraining(SGD(lr=0.1), 3, None, 10, last_batch="merge")
    merged, full = (
        next(iter(ENGINES[name](task, local_training, blobs).train([make_job(task, blobs, 17)])))
        for local_training in (settings, replace(settings, batch_size=None))
    )
    assert merged.update.tobytes() == full.update.tobytes()
    assert (merged.n_steps, merged.n_examples) == (full.n_steps, full.n_examples) == (3, 17)


# ------------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.sampled
@pytest.mark.parametrize("engine", ["sequential", "captured", "stacked"])
@pytest.mark.parametrize("last_batch", LAST_BATCH)
def test_ledger_counts_the_steps_and_examples_of_the_batches(
    scenario: ScenarioMaker, blobs: Dataset, tmp_path: Path, engine: str, last_batch: LastBatch
) -> None:
    """120 examples of 7 clients: one has 18, the others have 17."""
    settings = {
        "data.partition.name": "iid",
        "data.partition.clients": 7,
        "server.cohort": 7,
        "engine.name": engine,
        "rounds": 1,
    }
    run(scenario({**settings, "client.epochs": 2, "client.last_batch": last_batch}), data=blobs, out=tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "ledger.parquet").to_pydict()
    rows = zip(table["steps"], table["examples"], strict=True)
    expected = {"keep": {(4, 34): 6, (4, 36): 1}, "drop": {(2, 20): 7}, "merge": {(2, 34): 6, (2, 36): 1}}
    assert Counter(row for row in rows if row[0]) == expected[last_batch]


def test_fednova_normalizer_counts_the_steps_of_each_last_batch() -> None:
    """With momentum 0.5, step n of τ moves the model by η(1 − 0.5^(τ − n + 1)) / 0.5 in total."""
    for last_batch, tau in (("keep", 3), ("drop", 2), ("merge", 2)):
        local_training = LocalTraining(Momentum(lr=0.1, momentum=0.5), 1, None, 10, last_batch=last_batch)
        expected = math.fsum(0.1 * (1 - 0.5**n) / 0.5 for n in range(1, tau + 1))
        assert local_training.fednova_normalizer(25, 1) == pytest.approx(expected)
