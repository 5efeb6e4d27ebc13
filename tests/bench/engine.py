"""How fast local training is: each workload by each engine and by the naive loop, in turn, on one thread.

    python -m tests.bench.engine [--only NAME] [--turns N] [--json FILE]
    python -m tests.bench.engine rounding [--only NAME] [--clients N] [--seeds N] [--data DIR] [--json FILE]

The unit is the naive loop: what a tutorial does for each client, with deepcopy, DataLoader, torch.optim.SGD and state_dict. The
floor is the arithmetic alone: the matrix products of forward and backward pass at the rate of a large one. By hand: the same
steps written out with addmm_ for that very network. Every engine trains the same clients on the same batches; what it gives is
compared with the oracle's, and a benchmark fails if the engine it names cannot be had or gives something else. Recording the
steps is not in the times: it is in a column of its own. Times are the least of some turns, since others use the machine too.

Its data are random: the work is the same.

"rounding" measures distances instead of times. Clients train the first round of the scenario of each built-in model, by the
oracle and by each engine with the fused update. Printed is ‖update − oracle's‖ / ‖oracle's‖ of single clients. The row "one
float away" is the oracle from other initial weights, each of them the next float in a random direction: so far does rounding
alone carry the training apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedsgd.data import Dataset, Examples
from fedsgd.experiment.builder import build_experiment
from fedsgd.models import MODELS
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.optim import SGD, Optimizer, PyTorchMomentum
from fedsgd.scenario.scenario import load as load_scenario
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import EngineName, LocalTraining, TrainingEngine, TrainingJob
from fedsgd.training.base import batches
from fedsgd.training.selection import EngineChoice, make_engine, rank_batch_sizes, select_engine
from fedsgd.training.sequential import Sequential

ROOT = Path(__file__).parent.parent.parent
CLOSE = 1e-3
"""How far an engine's updates may be from the oracle's, relative; convolutions are chaotic within a round of steps this large."""
PRODUCT = 1024
"""Rows and columns of the product whose rate the floor is at."""


@dataclass(frozen=True)
class Workload:
    """clients of n examples each, batches of `locate_batch` (None: all). goals: by engine, at least how many times the naive loop."""

    name: str
    model: str
    shape: tuple[int, ...]
    clients: int
    n: int
    batch: int | None
    goals: dict[str, float]
    classes: int = 10
    words: int = 0
    optimizer: Optimizer = SGD(lr=0.01)


WORKLOADS = (
    Workload("softmax, B = 10", "softmax", (28, 28), 1000, 60, 10, {"stacked": 10.0}),
    Workload("2NN, B = 10", "2nn", (28, 28), 10, 600, 10, {"captured": 3.5}),
    Workload("2NN, B = 10, momentum", "2nn", (28, 28), 10, 600, 10, {}, optimizer=PyTorchMomentum(lr=0.01)),
    Workload("2NN, B = 50", "2nn", (28, 28), 10, 600, 50, {}),
    Workload("2NN, B = all", "2nn", (28, 28), 10, 600, None, {}),
    Workload("CNN, B = 10", "cnn", (28, 28), 2, 100, 10, {"captured": 1.5}),
    Workload("CIFAR CNN, B = 10", "cifar-cnn", (3, 32, 32), 2, 50, 10, {}),
    Workload("char-LSTM, B = 10", "char-lstm", (80,), 2, 50, 10, {}, classes=65, words=65),
)
BY_HAND = 1.25
"""A round of the 2NN with B = 10 by the captured engine: at most so many times the loop written by hand."""


@dataclass(frozen=True)
class Figure:
    """One way to do a workload. seconds: of a round; prepared: what came before, once; faster: than the naive loop; goal: at
    least that; off: the largest relative distance of a client's update from the oracle's."""

    workload: str
    how: str
    seconds: float
    prepared: float
    faster: float
    goal: float | None
    off: float
    note: str = ""


def works_of(load: Workload, task: LearningTask, data: Dataset) -> list[TrainingJob]:
    """The clients' work in a round."""
    order = np.random.default_rng(0).permutation(len(data.train))
    rows = order[: load.clients * load.n].reshape(load.clients, load.n)
    return [
        TrainingJob(0, 1, c, task.initial_parameters, Examples(data.train.x, data.train.y, rows[c]))
        for c in range(load.clients)
    ]


def random_data(load: Workload) -> Dataset:
    """As many examples as the workload needs."""
    rng = np.random.default_rng(0)
    shape = (load.clients * load.n, *load.shape)
    x = rng.integers(0, load.words, shape) if load.words else rng.random(shape, np.float32)
    y = rng.integers(0, load.classes, shape if load.words else shape[:1])
    return Dataset(Examples(x, y), Examples(x[:2], y[:2]), load.classes)


# ------------------------------------------------------------------------------------------------------------ ways to do the work


def naive(load: Workload, task: LearningTask, works: Sequence[TrainingJob]) -> list[np.ndarray]:
    """As tutorials have it."""
    global_model = task.module
    results = []
    for work in works:
        x, y = (torch.from_numpy(a) for a in work.examples.arrays())
        model = copy.deepcopy(global_model)
        model.train()
        momentum = getattr(load.optimizer, "momentum", 0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=load.optimizer.lr, momentum=momentum)
        for bx, by in DataLoader(TensorDataset(x, y), batch_size=load.batch or load.n, shuffle=True):
            optimizer.zero_grad()
            functional.cross_entropy(model(bx), by).backward()
            optimizer.step()
        state = model.state_dict()
        results.append(torch.cat([state[name].reshape(-1) for name in task.layout.names]).numpy())
    return results


def by_hand(load: Workload, task: LearningTask, works: Sequence[TrainingJob], recipe: LocalTraining) -> list[np.ndarray]:
    """The 2NN, written out."""
    w = torch.empty(task.layout.size)
    w1, b1, w2, b2, w3, b3 = (w[where].view(shape) for _, where, shape in task.layout.list_slices())
    lr, results = recipe.optimizer.lr, []
    with torch.inference_mode():
        for work in works:
            w.copy_(torch.from_numpy(np.array(work.weights)))
            x_all, y_all = (torch.from_numpy(a) for a in work.examples.arrays())
            for batch in batches(work, recipe):
                rows = torch.from_numpy(batch)
                x, y = x_all.index_select(0, rows).view(len(batch), -1), y_all.index_select(0, rows)
                h1 = torch.addmm(b1, x, w1.t()).relu_()
                h2 = torch.addmm(b2, h1, w2.t()).relu_()
                d3 = torch.softmax(torch.addmm(b3, h2, w3.t()), 1)
                d3[torch.arange(len(batch)), y] -= 1
                d3 /= len(batch)
                d2 = torch.mm(d3, w3) * (h2 > 0)
                d1 = torch.mm(d2, w2) * (h1 > 0)
                for weight, bias, d, h in ((w3, b3, d3, h2), (w2, b2, d2, h1), (w1, b1, d1, x)):
                    weight.addmm_(d.t(), h, alpha=-lr)
                    bias.add_(d.sum(0), alpha=-lr)
            results.append((w.numpy() - work.weights).copy())
    return results


def engines(load: Workload) -> Iterator[tuple[str, EngineChoice]]:
    """Every engine that may be asked for this workload."""
    yield "sequential", EngineChoice("sequential")
    for update in ("exact", "fused"):
        yield f"captured, {update}", EngineChoice("captured", update)
    if load.model == "softmax":
        for update in ("exact", "fused"):
            yield f"stacked, {update}", EngineChoice("stacked", update, 50)


# ------------------------------------------------------------------------------------------------------------------- measurement


def floor(load: Workload, task: LearningTask) -> float:
    """Seconds that the products of a round take at the rate of a large one: 2 operations a weight and use of it forward, twice
    as many backward, less the gradient with respect to the input."""
    a = torch.rand(PRODUCT, PRODUCT)
    rate = 2 * PRODUCT**3 / min(_seconds(lambda: torch.mm(a, a)) for _ in range(10))
    operations = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        nonlocal operations
        out = output[0] if isinstance(output, tuple) else output
        if isinstance(module, nn.Linear):
            uses = out.numel() / module.out_features
        elif isinstance(module, nn.Conv2d):
            uses = out.shape[-1] * out.shape[-2]
        elif isinstance(module, nn.LSTM):
            uses = out.shape[0] * out.shape[1]
        else:
            return
        weights = sum(p.numel() for p in module.parameters() if p.dim() > 1)
        is_first = operations == 0
        operations += 2 * weights * uses * (2 if is_first else 3)

    hooks = [module.register_forward_hook(count) for module in task.module.modules()]
    x = torch.zeros(1, *load.shape, dtype=torch.long if load.words else torch.float32)
    task.module(x)
    for hook in hooks:
        hook.remove()
    return operations * load.clients * load.n / rate


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def measure(load: Workload, turns: int) -> list[Figure]:
    """All ways of a workload, in turn."""
    data = random_data(load)
    recipe = LocalTraining(load.optimizer, 1, None, load.batch)

    def fresh() -> LearningTask:
        return build_task(MODELS[load.model](), data, 0)

    task = fresh()
    works = works_of(load, task, data)
    sizes = rank_batch_sizes(np.full(load.clients, load.n), recipe)
    oracle = {local.client: local.update for local in Sequential(fresh(), recipe).train(works)}
    ways: dict[str, Callable[[], object]] = {"naive loop": lambda: naive(load, task, works)}
    prepared, off = {"naive loop": 0.0}, {"naive loop": math.nan}
    if load.model == "2nn" and type(load.optimizer) is SGD:
        ways["by hand"] = lambda: by_hand(load, task, works, recipe)
        prepared["by hand"] = 0.0
        off["by hand"] = max(map(_distance, by_hand(load, task, works, recipe), (oracle[w.client] for w in works)))
    for how, chosen in engines(load):
        begun = time.perf_counter()
        engine = make_engine(chosen, sizes, fresh(), recipe, data.train)
        prepared[how] = time.perf_counter() - begun
        assert type(engine).__name__.lower() == chosen.name, f"{load.name}: asked for {chosen.name}, got {engine}"
        results = _train(engine, works)
        off[how] = max(_distance(results[client], update) for client, update in oracle.items())
        assert off[how] <= CLOSE, f"{load.name}, {how}: off by {off[how]:.2g}"
        ways[how] = lambda engine=engine: _train(engine, works)
    least = _in_turn(ways, turns)
    at_least = floor(load, task)
    _, auto = select_engine(EngineChoice(), fresh(), recipe, data.train, sizes, load.clients)
    return [
        Figure(
            load.name,
            how,
            least[how],
            prepared[how],
            least["naive loop"] / least[how],
            load.goals.get(how.split(",")[0]) if how.endswith("fused") else None,
            off[how],
            "auto" if how == f"{auto.name}, {auto.update}" else "",
        )
        for how in ways
    ] + [Figure(load.name, "floor", at_least, 0.0, least["naive loop"] / at_least, None, math.nan)]


def _in_turn(ways: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    least = dict.fromkeys(ways, math.inf)
    for _ in range(turns):
        for how, way in ways.items():
            least[how] = min(least[how], _seconds(way))
    return least


def _train(engine: TrainingEngine, works: Sequence[TrainingJob]) -> dict[int, np.ndarray]:
    """The updates, one client at a time or as many as the engine likes."""
    results = {}
    for first in range(0, len(works), engine.preferred_batch_of_clients):
        for local in engine.train(works[first : first + engine.preferred_batch_of_clients]):
            results[local.client] = local.update
    return results


def _distance(update: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(update - expected) / np.linalg.norm(expected))


# ---------------------------------------------------------------------------------------------------------------------- rounding


SCENARIOS: dict[str, tuple[str, tuple[EngineName, ...]]] = {
    "softmax": ("many_clients", ("captured", "stacked")),
    "mlp": ("quickstart", ("captured", "stacked")),
    "2nn": ("mnist_fedavg", ("captured",)),
    "cnn": ("mnist_cnn", ("captured",)),
    "lenet": ("cifar10", ("captured",)),
    "cifar-cnn": ("cifar_cnn", ("captured",)),
    "resnet-20": ("resnet20", ("captured",)),
    "char-lstm": ("shakespeare", ("captured",)),
}
"""For each built-in model the scenario that trains it, and the engines that can."""


@dataclass(frozen=True)
class Distances:
    """Relative distances of clients' updates from the oracle's. steps: the most that a client made; each: of every client and
    seed."""

    model: str
    how: str
    steps: int
    each: tuple[float, ...]


def measure_distances(model: str, clients: int, seeds: int, data: str | None) -> list[Distances]:
    """Train the first clients of the first round of the model's scenario; return the distances of each engine."""
    name, engines = SCENARIOS[model]
    path, dataset, steps = ROOT / "scenarios" / f"{name}.toml", None, 0
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        oracle = build_experiment(load_scenario(path, {"seed": seed, "engine.name": "sequential"}), data, dataset)
        dataset, weights = oracle.dataset, oracle.task.initial_parameters
        cohort = oracle.participation.sample_round(1).cohort[:clients]
        works = [TrainingJob(seed, 1, client, weights, oracle.train.examples_of(client)) for client in cohort]
        steps = max(steps, *(oracle.plan.local_training.n_steps(len(work.examples)) for work in works))
        expected = _train(oracle.engine, works)
        upwards = np.random.default_rng(seed).random(len(weights)) < 0.5
        nearby = np.nextafter(weights, np.where(upwards, np.float32(np.inf), np.float32(-np.inf)))
        others = {"sequential, one float away": _train(oracle.engine, [replace(work, weights=nearby) for work in works])}
        for engine in engines:
            made = build_experiment(
                load_scenario(path, {"seed": seed, "engine.name": engine, "engine.update": "fused"}), data, dataset
            )
            others[f"{engine}, fused"] = _train(made.engine, works)
        for how, updates in others.items():
            found.setdefault(how, []).extend(_distance(updates[client], expected[client]) for client in cohort)
    return [Distances(model, how, steps, tuple(each)) for how, each in sorted(found.items())]


def make_distance_table(rows: Sequence[Distances]) -> Table:
    """Return a table of medians and maxima."""
    out = Table(box=None, padding=(0, 1), header_style="bold", width=100)
    for name in ("model", "engine", "steps", "clients", "median", "maximum"):
        out.add_column(name, justify="left" if name in ("model", "engine") else "right", no_wrap=True)
    for row in rows:
        figures = f"{median(row.each):.1e}", f"{max(row.each):.1e}"
        out.add_row(row.model, row.how, str(row.steps), str(len(row.each)), *figures)
    return out


# ------------------------------------------------------------------------------------------------------------------------ report


def table(figures: Sequence[Figure]) -> Table:
    """The figures of one workload, for people."""
    out = Table(title=figures[0].workload, title_justify="left", box=None, padding=(0, 1), header_style="bold", width=100)
    for name in ("", "ms a round", "recording, ms", "× naive", "goal", "", "off", ""):
        out.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for f in figures:
        verdict = "" if f.goal is None else "[green]pass[/]" if f.faster >= f.goal else "[red]miss[/]"
        goal, off = "" if f.goal is None else f"≥ {f.goal:g}", "" if math.isnan(f.off) else f"{f.off:.1g}"
        ahead = f"{1e3 * f.prepared:,.0f}" if f.prepared else ""
        out.add_row(f.how, f"{1e3 * f.seconds:,.1f}", ahead, f"{f.faster:.2f}", goal, verdict, off, f.note)
    return out


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """The goals that compare two engines, in words."""
    said = []
    by_workload: dict[str, dict[str, float]] = {}
    for f in figures:
        by_workload.setdefault(f.workload, {})[f.how] = f.seconds
    for workload, seconds in by_workload.items():
        if "by hand" in seconds and workload == "2NN, B = 10":
            ratio = seconds["captured, fused"] / seconds["by hand"]
            said.append(f"{workload}: captured is {ratio:.2f} × the loop by hand, goal ≤ {BY_HAND}")
        fast = {how: s for how, s in seconds.items() if how.startswith(("captured", "stacked"))}
        slow = [f"{how} {s / seconds['sequential']:.2f}" for how, s in fast.items() if s > seconds["sequential"]]
        if slow:
            said.append(f"{workload}: slower than sequential: {', '.join(slow)}")
    return said


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("speed", "rounding"), default="speed")
    parser.add_argument("--only", default="", help="workloads, or models, whose name contains this")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4, help="rounding: clients of each seed")
    parser.add_argument("--seeds", type=int, default=3, help="rounding: seeds")
    parser.add_argument("--data", default=os.environ.get("FEDSGD_DATA"), help="rounding: folder of the data files")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    console = Console(highlight=False, width=100)
    figures: list[Figure] | list[Distances] = _rounding(given, console) if given.what == "rounding" else _speed(given, console)
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    console.print(machine)
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine, "figures": [asdict(f) for f in figures]}, indent=2))


def _speed(given: argparse.Namespace, console: Console) -> list[Figure]:
    figures = []
    with use_single_thread():
        for load in WORKLOADS:
            if given.only in load.name:
                measured = measure(load, given.turns)
                console.print(table(measured))
                figures += measured
    for line in verdicts(figures):
        console.print(line)
    return figures


def _rounding(given: argparse.Namespace, console: Console) -> list[Distances]:
    rows = []
    for model in SCENARIOS:
        if given.only in model:
            measured = measure_distances(model, given.clients, given.seeds, given.data)
            console.print(make_distance_table(measured))
            rows += measured
    return rows


if __name__ == "__main__":
    main()
