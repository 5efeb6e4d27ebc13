"""Benchmark of local training: each workload with each engine and with the naive loop, in turn, on one thread.

    python -m tests.bench.engine [--only NAME] [--turns N] [--json FILE]
    python -m tests.bench.engine rounding [--only NAME] [--clients N] [--seeds N] [--data DIR] [--json FILE]

- naive loop: the loop of a tutorial for each client, with deepcopy, DataLoader, torch.optim.SGD and state_dict. It is the unit
  of the other times.
- floor: the time of the arithmetic, which is the matrix products of forward and backward pass at the rate of a large product.
- by hand: the same steps for one network, written with addmm_.

Every engine trains the same clients on the same batches of random data. Its updates are compared with those of the oracle, the
sequential engine. The benchmark fails if an engine cannot train the workload or its updates differ too much. The time to record
the steps is not part of the times and has a separate column. Times are the least of some turns, since other programs may use
the machine.

"rounding" measures distances instead of times. Clients train the first round of the scenario of each built-in model, with the
oracle and with each engine with the fused update. The table has ‖update − oracle's‖ / ‖oracle's‖ over clients. The row "one
float away" is the oracle from other initial weights, each the next float in a random direction. It is the distance that
rounding alone causes.
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
"""Largest relative distance of an engine's updates from the oracle's. Steps this large amplify rounding in convolutions."""
PRODUCT = 1024
"""Rows and columns of the matrix product whose rate determines the floor."""


@dataclass(frozen=True)
class Workload:
    """Local training of one round.

    Attributes:
        name: name of the workload.
        model: name of the model.
        shape: shape of one example.
        clients: number of clients.
        n: examples of each client.
        batch: B; None for all examples of the client.
        goals: by engine, lower limit for its speed as a multiple of the naive loop's.
        classes: K.
        words: number of different tokens; 0 if examples are not tokens.
        optimizer: optimizer of the local steps.
    """

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
    Workload("char-GPT, B = 12", "char-gpt", (64,), 2, 24, 12, {}, classes=65, words=65),
    Workload("char-LSTM, B = 10", "char-lstm", (80,), 2, 50, 10, {}, classes=65, words=65),
)
BY_HAND = 1.25
"""Upper limit for the captured engine's time on the 2NN with B = 10, as a multiple of the time of the loop by hand."""


@dataclass(frozen=True)
class Figure:
    """Time of a workload with one engine or loop.

    Attributes:
        workload: name of the workload.
        how: name of the engine and its update, or of the loop.
        seconds: seconds of a round.
        prepared: seconds to make the engine and record its steps, once.
        faster: speed as a multiple of the naive loop's.
        goal: lower limit for `faster`, None if there is none.
        off: largest relative distance of a client's update from the oracle's.
        note: "auto" for the engine that `engine.name = "auto"` selects.
    """

    workload: str
    how: str
    seconds: float
    prepared: float
    faster: float
    goal: float | None
    off: float
    note: str = ""


def make_jobs(load: Workload, task: LearningTask, data: Dataset) -> list[TrainingJob]:
    """Return the clients' training jobs of a round."""
    order = np.random.default_rng(0).permutation(len(data.train))
    rows = order[: load.clients * load.n].reshape(load.clients, load.n)
    return [
        TrainingJob(0, 1, c, task.initial_parameters, Examples(data.train.x, data.train.y, rows[c]))
        for c in range(load.clients)
    ]


def random_data(load: Workload) -> Dataset:
    """Return a dataset with as many random examples as the workload needs."""
    rng = np.random.default_rng(0)
    shape = (load.clients * load.n, *load.shape)
    x = rng.integers(0, load.words, shape) if load.words else rng.random(shape, np.float32)
    y = rng.integers(0, load.classes, shape if load.words else shape[:1])
    return Dataset(Examples(x, y), Examples(x[:2], y[:2]), load.classes)


# ------------------------------------------------------------------------------------------------------------- loops and engines


def train_naively(load: Workload, task: LearningTask, jobs: Sequence[TrainingJob], device: str = "cpu") -> list[np.ndarray]:
    """Train the clients with the loop of a tutorial on a device, and return their parameters."""
    global_model = task.module
    results = []
    for job in jobs:
        x, y = (torch.from_numpy(a) for a in job.examples.arrays())
        model = copy.deepcopy(global_model).to(device)
        model.train()
        momentum = getattr(load.optimizer, "momentum", 0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=load.optimizer.lr, momentum=momentum)
        for bx, by in DataLoader(TensorDataset(x, y), batch_size=load.batch or load.n, shuffle=True):
            optimizer.zero_grad()
            functional.cross_entropy(model(bx.to(device)), by.to(device)).backward()
            optimizer.step()
        state = model.state_dict()
        results.append(torch.cat([state[name].reshape(-1) for name in task.layout.names]).cpu().numpy())
    return results


def train_by_hand(task: LearningTask, jobs: Sequence[TrainingJob], local_training: LocalTraining) -> list[np.ndarray]:
    """Train the 2NN of each client with explicit matrix products and return the updates."""
    w = torch.empty(task.layout.size)
    w1, b1, w2, b2, w3, b3 = (w[rows].view(shape) for _, rows, shape in task.layout.list_slices())
    lr, results = local_training.optimizer.lr, []
    with torch.inference_mode():
        for job in jobs:
            w.copy_(torch.from_numpy(np.array(job.weights)))
            x_all, y_all = (torch.from_numpy(a) for a in job.examples.arrays())
            for batch in batches(job, local_training):
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
            results.append((w.numpy() - job.weights).copy())
    return results


def engines(load: Workload) -> Iterator[tuple[str, EngineChoice]]:
    """Yield the name and choice of every engine that is measured on a workload."""
    yield "sequential", EngineChoice("sequential")
    for update in ("exact", "fused"):
        yield f"captured, {update}", EngineChoice("captured", update)
    if load.model == "softmax":
        for update in ("exact", "fused"):
            yield f"stacked, {update}", EngineChoice("stacked", update, 50)


# ------------------------------------------------------------------------------------------------------------------- measurement


def estimate_floor(load: Workload, task: LearningTask) -> float:
    """Return the seconds that the products of a round take at the rate of a large product.

    A use of a weight takes 2 operations in the forward pass and 4 in the backward pass; in the first layer 2 in the backward
    pass, since the gradient with respect to the input is not computed.
    """
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
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(load: Workload, turns: int) -> list[Figure]:
    """Measure a workload with all loops and engines, in turn."""
    data = random_data(load)
    local_training = LocalTraining(load.optimizer, 1, None, load.batch)

    def new_task() -> LearningTask:
        return build_task(MODELS[load.model](), data, 0)

    task = new_task()
    jobs = make_jobs(load, task, data)
    sizes = rank_batch_sizes(np.full(load.clients, load.n), local_training)
    oracle = {result.client: result.update for result in Sequential(new_task(), local_training).train(jobs)}
    actions: dict[str, Callable[[], object]] = {"naive loop": lambda: train_naively(load, task, jobs)}
    preparation_seconds, distances = {"naive loop": 0.0}, {"naive loop": math.nan}
    if load.model == "2nn" and type(load.optimizer) is SGD:
        actions["by hand"] = lambda: train_by_hand(task, jobs, local_training)
        preparation_seconds["by hand"] = 0.0
        updates = train_by_hand(task, jobs, local_training)
        distances["by hand"] = max(map(relative_distance, updates, (oracle[job.client] for job in jobs)))
    for name, choice in engines(load):
        start = time.perf_counter()
        engine = make_engine(choice, sizes, new_task(), local_training, data.train)
        preparation_seconds[name] = time.perf_counter() - start
        assert type(engine).__name__.lower() == choice.name, f"{load.name}: expected {choice.name}, got {engine}"
        results = _train(engine, jobs)
        distances[name] = max(relative_distance(results[client], update) for client, update in oracle.items())
        assert distances[name] <= CLOSE, f"{load.name}, {name}: relative distance {distances[name]:.2g} from the oracle"
        actions[name] = lambda engine=engine: _train(engine, jobs)
    least = _time_in_turn(actions, turns)
    floor = estimate_floor(load, task)
    _, auto = select_engine(EngineChoice(), new_task(), local_training, data.train, sizes, load.clients)
    return [
        Figure(
            load.name,
            name,
            least[name],
            preparation_seconds[name],
            least["naive loop"] / least[name],
            load.goals.get(name.split(",")[0]) if name.endswith("fused") else None,
            distances[name],
            "auto" if name == f"{auto.name}, {auto.update}" else "",
        )
        for name in actions
    ] + [Figure(load.name, "floor", floor, 0.0, least["naive loop"] / floor, None, math.nan)]


def _time_in_turn(actions: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    least = dict.fromkeys(actions, math.inf)
    for _ in range(turns):
        for name, action in actions.items():
            least[name] = min(least[name], _seconds(action))
    return least


def _train(engine: TrainingEngine, jobs: Sequence[TrainingJob]) -> dict[int, np.ndarray]:
    """Return the updates by client; the engine gets as many clients at a time as it prefers."""
    updates = {}
    for first in range(0, len(jobs), engine.preferred_batch_of_clients):
        for result in engine.train(jobs[first : first + engine.preferred_batch_of_clients]):
            updates[result.client] = result.update
    return updates


def relative_distance(update: np.ndarray, expected: np.ndarray) -> float:
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
    "char-gpt": ("char_gpt", ("captured",)),
}
"""For each built-in model, a scenario that trains it and the engines that can train it."""


@dataclass(frozen=True)
class Distances:
    """Relative distances of clients' updates from the oracle's.

    Attributes:
        model: name of the model.
        how: name of the engine and its update.
        steps: largest number of local steps of a client.
        each: distance of every client with every seed.
    """

    model: str
    how: str
    steps: int
    each: tuple[float, ...]


def measure_distances(model: str, clients: int, seeds: int, data: str | None) -> list[Distances]:
    """Train the first clients of the first round of the model's scenario; return the distances of each engine."""
    scenario, engines = SCENARIOS[model]
    path, dataset, steps = ROOT / "scenarios" / f"{scenario}.toml", None, 0
    distances: dict[str, list[float]] = {}
    for seed in range(seeds):
        oracle = build_experiment(load_scenario(path, {"seed": seed, "engine.name": "sequential"}), data, dataset)
        dataset, weights = oracle.dataset, oracle.task.initial_parameters
        cohort = oracle.participation.sample_round(1).cohort[:clients]
        jobs = [TrainingJob(seed, 1, client, weights, oracle.train.examples_of(client)) for client in cohort]
        steps = max(steps, *(oracle.plan.local_training.n_steps(len(job.examples)) for job in jobs))
        expected = _train(oracle.engine, jobs)
        is_upward = np.random.default_rng(seed).random(len(weights)) < 0.5
        neighbours = np.nextafter(weights, np.where(is_upward, np.float32(np.inf), np.float32(-np.inf)))
        updates = {"sequential, one float away": _train(oracle.engine, [replace(job, weights=neighbours) for job in jobs])}
        for engine in engines:
            experiment = build_experiment(
                load_scenario(path, {"seed": seed, "engine.name": engine, "engine.update": "fused"}), data, dataset
            )
            updates[f"{engine}, fused"] = _train(experiment.engine, jobs)
        for name, by_client in updates.items():
            distances.setdefault(name, []).extend(relative_distance(by_client[client], expected[client]) for client in cohort)
    return [Distances(model, name, steps, tuple(of_name)) for name, of_name in sorted(distances.items())]


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
    """Return a table of the figures of one workload."""
    out = Table(title=figures[0].workload, title_justify="left", box=None, padding=(0, 1), header_style="bold", width=100)
    for name in ("", "ms a round", "recording, ms", "× naive", "goal", "", "distance", ""):
        out.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for f in figures:
        verdict = "" if f.goal is None else "[green]pass[/]" if f.faster >= f.goal else "[red]miss[/]"
        goal, distance = "" if f.goal is None else f"≥ {f.goal:g}", "" if math.isnan(f.off) else f"{f.off:.1g}"
        recording = f"{1e3 * f.prepared:,.0f}" if f.prepared else ""
        out.add_row(f.how, f"{1e3 * f.seconds:,.1f}", recording, f"{f.faster:.2f}", goal, verdict, distance, f.note)
    return out


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """Return lines about the goals that compare two engines."""
    lines = []
    by_workload: dict[str, dict[str, float]] = {}
    for f in figures:
        by_workload.setdefault(f.workload, {})[f.how] = f.seconds
    for workload, seconds in by_workload.items():
        if "by hand" in seconds and workload == "2NN, B = 10":
            ratio = seconds["captured, fused"] / seconds["by hand"]
            lines.append(f"{workload}: captured takes {ratio:.2f} × the time of the loop by hand, goal ≤ {BY_HAND}")
        compiled = {name: s for name, s in seconds.items() if name.startswith(("captured", "stacked"))}
        slower = [f"{name} {s / seconds['sequential']:.2f}" for name, s in compiled.items() if s > seconds["sequential"]]
        if slower:
            lines.append(f"{workload}: slower than sequential: {', '.join(slower)}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__.splitlines()[0])
    parser.add_argument("figure", nargs="?", choices=("speed", "rounding"), default="speed", help="times or distances")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="measure only the workloads or models whose name contains NAME"
    )
    parser.add_argument("--turns", type=int, default=5, help="speed: number of turns, of which the least time counts")
    parser.add_argument("--clients", type=int, default=4, help="rounding: number of clients for each seed")
    parser.add_argument("--seeds", type=int, default=3, help="rounding: number of seeds")
    parser.add_argument(
        "--data", default=os.environ.get("FEDSGD_DATA"), metavar="DIR", help="rounding: folder of the data files"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=100)
    figures: list[Figure] | list[Distances] = (
        _measure_all_distances(options, console) if options.figure == "rounding" else _measure_speed(options, console)
    )
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    console.print(machine)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "figures": [asdict(f) for f in figures]}, indent=2))


def _measure_speed(options: argparse.Namespace, console: Console) -> list[Figure]:
    figures = []
    with use_single_thread():
        for load in WORKLOADS:
            if options.only in load.name:
                of_load = measure(load, options.turns)
                console.print(table(of_load))
                figures += of_load
    for line in verdicts(figures):
        console.print(line)
    return figures


def _measure_all_distances(options: argparse.Namespace, console: Console) -> list[Distances]:
    rows = []
    for model in SCENARIOS:
        if options.only in model:
            of_model = measure_distances(model, options.clients, options.seeds, options.data)
            console.print(make_distance_table(of_model))
            rows += of_model
    return rows


if __name__ == "__main__":
    main()
