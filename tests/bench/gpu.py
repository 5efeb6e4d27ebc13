"""Benchmark of a GPU: laws of the engines there, then clients a second, for whole runs with their frames and ledgers.

    python -m tests.bench.gpu --minutes 8 [--device cuda] [--only NAME] [--json FILE]
    python -m tests.bench.gpu --dry-run          the same program with tiny works on the CPU

The examples are random numbers of the named shapes, so no data file is needed. A bare machine needs these wheels, with the CUDA
build of torch for its driver: torch, numpy, scipy, numba, llvmlite, click, rich, tomli-w, psutil, pyarrow, safetensors, pint,
matplotlib, duckdb and what they require (`pip download '.[test]'`); and pfl for the comparison with pfl-research.

Laws, for each work: the first step is that of the CPU up to rounding; two runs, and runs with one and two worker processes, have
equal digests. The program fails if one is broken.

Table: a round trains `clients` clients at a time on B examples a step, one local epoch, by SGD. `clients/s` is the number of
clients of a round, divided by the median seconds of rounds, without the first two and the last, which is evaluated. The rounds
are those of `fedsgd.run`: model and updates are encoded, decoded and written to the ledger. "naive loop" is the loop of a
tutorial on the same device: deepcopy, DataLoader, torch.optim.SGD and state_dict, without messages; × is the ratio to it.
pfl-research, where it is installed, trains the clients of its own benchmark with `tests.bench.peers.pfl`.
Cells that do not fit in the minutes say "not run"; the order is that of their importance.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import fedsgd
from fedsgd.data import Dataset
from fedsgd.experiment.options import ExecutionConfig
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.system.compute_device import CPU, describe_device, resolve_device
from tests.bench.codec import machine
from tests.bench.engine import Workload, make_jobs, random_data, relative_distance, train_naively

ROUNDS = 8
"""Rounds of a run: two of warm-up, five that count, and the last, which is evaluated."""
TOLERANCE = 1e-4
"""Largest distance of one step on the device from that on the CPU, relative to the step. More steps would amplify rounding."""
PFL = "pfl-research"
Law = tuple[str, str, str, bool]
"""Work, law, figure, and whether the law holds."""
UPLINKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "top-k 1 %": {"compressor": {"name": "top-k", "density": 0.01}, "error_feedback": "persist"},
}
PROCESSES = (1, 2, 4)


@dataclass(frozen=True)
class GpuWork:
    """Rounds of a federation.

    Attributes:
        load: model, shapes and the clients of a round.
        registered: number of clients.
        module: "module:function" that makes the model; "": a built-in model.
    """

    load: Workload
    registered: int
    module: str = ""


def make_pfl_cnn(dropout: bool = True) -> nn.Sequential:
    """Return the network of pfl-research's CIFAR-10 benchmark: two convolutions, one hidden layer, with dropout."""
    drop = [nn.Dropout(0.25), nn.Dropout(0.5)] if dropout else [nn.Identity(), nn.Identity()]
    features = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), drop[0], nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(64 * 14 * 14, 128), nn.ReLU(), drop[1], nn.Linear(128, 10))


def make_cnn_without_dropout() -> nn.Sequential:
    """Return the same network without dropout, whose clients can be stacked."""
    return make_pfl_cnn(dropout=False)


def _work(name: str, model: str, shape: tuple[int, ...], clients: int, n: int, registered: int, **extra: Any) -> GpuWork:
    module = extra.pop("module", "")
    return GpuWork(Workload(name, model, shape, clients, n, extra.pop("batch", 10), {}, **extra), registered, module)


TEXT: dict[str, Any] = {"classes": 65, "words": 65}
WORKS = (
    _work("CIFAR-10 CNN", "", (3, 32, 32), 50, 50, 1000, module="tests.bench.gpu:make_pfl_cnn"),
    _work("no dropout", "", (3, 32, 32), 50, 50, 1000, module="tests.bench.gpu:make_cnn_without_dropout"),
    _work("2NN", "2nn", (28, 28), 10, 600, 100),
    _work("CNN", "cnn", (28, 28), 10, 600, 100),
    _work("ResNet-20", "resnet-20", (3, 32, 32), 20, 50, 200),
    _work("char-LSTM", "char-lstm", (80,), 20, 50, 200, **TEXT),
    _work("char-GPT", "char-gpt", (64,), 20, 48, 200, batch=12, **TEXT),
)


def shrink(work: GpuWork) -> GpuWork:
    """Return a work of a few clients with a step each, for `--dry-run`."""
    batch = min(2, work.load.batch or 2)
    return replace(work, load=replace(work.load, clients=2, n=2, batch=batch), registered=4)


@dataclass(frozen=True)
class Figure:
    """Speed of one cell of the table.

    Attributes:
        work, uplink: names of the work and of the uplink; "" for the naive loop, and PFL for pfl-research.
        processes: processes that train; 0 for the naive loop and for pfl-research.
        engine: engine and its reason.
        clients_per_second: None if the cell was not run.
        seconds: seconds of each round that counts.
    """

    work: str
    uplink: str
    processes: int
    engine: str = ""
    clients_per_second: float | None = None
    seconds: tuple[float, ...] = ()


def build_scenario(work: GpuWork, uplink: str, processes: int, device: str, rounds: int, steps: int | None = None) -> Scenario:
    """Return the scenario of a cell. A process has an equal part of the cohort in its stack. `steps`: in place of an epoch."""
    load = work.load
    stack = None if processes == 1 else -(-load.clients // processes)
    return parse_scenario(
        {
            "name": "gpu",
            "rounds": rounds,
            "data": {"partition": {"name": "iid", "clients": work.registered}},
            "model": {"name": "module", "module": work.module} if work.module else {"name": load.model},
            "client": {
                "optimizer": {"name": "sgd", "lr": 0.01},
                "batch_size": load.batch,
                **({"epochs": 1} if steps is None else {"steps": steps}),
            },
            "server": {"cohort": load.clients},
            "engine": {"device": device, **({} if stack is None else {"stack": stack})},
            "evaluation": {"every": rounds},
            "uplink": UPLINKS[uplink],
        }
    )


def make_data(work: GpuWork) -> Dataset:
    """Return random examples for all registered clients."""
    return random_data(replace(work.load, clients=work.registered))


def make_task(work: GpuWork, data: Dataset) -> LearningTask:
    """Return the task that runs of a work train, with their initial parameters."""
    return build_task(build_scenario(work, "dense", 1, CPU, 1).model, data, 0)


def run(work: GpuWork, data: Dataset, uplink: str, processes: int, device: str, rounds: int) -> fedsgd.Result:
    """Run a cell."""
    scenario = build_scenario(work, uplink, processes, device, rounds)
    return fedsgd.run(scenario, data=data, execution=ExecutionConfig(workers=processes))


# -------------------------------------------------------------------------------------------------------------------------- laws


def check_laws(work: GpuWork, data: Dataset, device: str) -> Iterator[tuple[str, str, bool]]:
    """Yield name, figure and outcome of each law for a work."""
    short = replace(work, load=replace(work.load, clients=min(4, work.load.clients)))
    task = make_task(work, data)
    if not any(isinstance(module, nn.Dropout) for module in task.module.modules()):  # devices draw different numbers
        one_step = [build_scenario(short, "dense", 1, name, 1, steps=1) for name in (CPU, device)]
        on_cpu, on_device = (fedsgd.run(s, data=data).parameters - task.initial_parameters for s in one_step)
        distance = relative_distance(on_device, on_cpu)
        yield "one step on the CPU and the device, relative distance", f"{distance:.1e}", distance <= TOLERANCE
    scenario = build_scenario(short, "top-k 1 %", 2, device, 2)
    digests = []
    for workers in (1, 1, 2):
        summary = fedsgd.run(scenario, data=data, execution=ExecutionConfig(workers=workers)).summary
        digests.append((summary["params_sha256"], summary["ledger_sha256"]))
    for law, other in (("two runs", digests[1]), ("one and two processes", digests[2])):
        yield f"digests of {law}", "equal" if other == digests[0] else "differ", other == digests[0]


# ------------------------------------------------------------------------------------------------------------------------- speed


def measure(work: GpuWork, data: Dataset, uplink: str, processes: int, device: str, rounds: int) -> Figure:
    """Measure a cell."""
    result = run(work, data, uplink, processes, device, rounds)
    seconds = tuple(record.seconds for record in result.history[2:-1])
    speed = work.load.clients / median(seconds)
    engine = result.summary["engine"]
    stack = "" if engine["stack"] is None else f" {engine['stack']}"
    return Figure(work.load.name, uplink, processes, f"{engine['name']}{stack}", speed, seconds)


def measure_naive_loop(work: GpuWork, data: Dataset, device: str) -> Figure:
    """Measure the loop of a tutorial on a device, for the clients of one round."""
    load, task = work.load, make_task(work, data)
    jobs = make_jobs(load, task, data)
    train_naively(load, task, jobs[:1], device)  # libraries allocate their memory
    start = time.perf_counter()
    train_naively(load, task, jobs, device)
    seconds = time.perf_counter() - start
    return Figure(load.name, "", 0, "naive loop", load.clients / seconds, (seconds,))


def measure_pfl(work: GpuWork, data: Dataset, rounds: int) -> Figure:
    """Measure pfl-research on the same clients, as `tests.bench.peers` does; on a GPU if torch has one."""
    from tests.bench.peers import pfl
    from tests.bench.peers.work import Clock, Work

    load = work.load
    assert load.batch is not None
    x, y = (torch.from_numpy(array) for array in data.train.arrays())
    module = pfl.Classifier(*make_task(work, data).module.children())
    clock = Clock()
    settings = Work(
        load.name, clients=work.registered, examples=load.n, cohort=load.clients, batch_size=load.batch, lr=0.01, rounds=rounds
    )
    pfl.train(
        module, lambda user: (x[user * load.n : (user + 1) * load.n], y[user * load.n : (user + 1) * load.n]), settings, clock
    )
    seconds = tuple(after - before for before, after in pairwise(clock.ends[1:-1]))
    return Figure(load.name, PFL, 0, "pfl-research", load.clients / median(seconds), seconds)


def list_cells(processes: Sequence[int]) -> list[tuple[str, int]]:
    """Return uplinks and numbers of processes, the most important first."""
    return [(uplink, k) for k in processes for uplink in UPLINKS]


def measure_all(
    works: Sequence[GpuWork],
    device: str,
    minutes: float,
    processes: Sequence[int],
    rounds: int,
    report: Callable[[list[Figure], list[Law]], None],
) -> tuple[list[Figure], list[Law]]:
    """Check the laws, and measure all cells until the time is over. An error is a broken law, or a cell without a figure.

    `report` is called with what there is after each law and cell.
    """
    end = time.monotonic() + 60 * minutes
    figures: list[Figure] = []
    laws: list[Law] = []
    for work in works:
        if time.monotonic() < end:
            laws += _try_laws(work, device)
            report(figures, laws)
    cells: list[tuple[GpuWork, str, int]] = [(work, "", 0) for work in works]
    cells += [(work, PFL, 0) for work in works if work.module and find_spec("pfl")]
    cells += [(work, uplink, k) for uplink, k in list_cells(processes) for work in works]
    for work, uplink, k in cells:
        if time.monotonic() >= end:
            figures.append(Figure(work.load.name, uplink, k))
            continue
        try:
            figures.append(_measure_cell(work, uplink, k, device, rounds))
        except Exception as error:
            figures.append(Figure(work.load.name, uplink, k, _shorten(error)))
        report(figures, laws)
    return figures, laws


def _try_laws(work: GpuWork, device: str) -> list[Law]:
    laws: list[Law] = []
    try:
        laws += [(work.load.name, *law) for law in check_laws(work, make_data(work), device)]
    except Exception as error:
        laws.append((work.load.name, "no error", _shorten(error), False))
    return laws


def _measure_cell(work: GpuWork, uplink: str, processes: int, device: str, rounds: int) -> Figure:
    data = make_data(work)
    if uplink == PFL:
        return measure_pfl(work, data, rounds)
    if not processes:
        return measure_naive_loop(work, data, device)
    return measure(work, data, uplink, processes, device, rounds)


def _shorten(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def make_table(figures: Sequence[Figure]) -> Table:
    """Return the table of speeds, with their ratio to the naive loop's."""
    naive = {figure.work: figure.clients_per_second for figure in figures if not figure.uplink}
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("work", "uplink", "processes", "engine", "clients/s", "×"):
        table.add_column(name, justify="left" if name in ("work", "uplink", "engine") else "right", no_wrap=True)
    for figure in figures:
        speed, unit = figure.clients_per_second, naive.get(figure.work)
        ratio = "" if speed is None or not unit else f"{speed / unit:.2f}"
        processes = str(figure.processes) if figure.processes else ""
        table.add_row(
            figure.work,
            figure.uplink,
            processes,
            figure.engine,
            ("failed" if figure.engine else "not run") if speed is None else f"{speed:,.1f}",
            ratio,
        )
    return table


def describe_machine(device: str) -> dict[str, Any]:
    """Return the machine, the libraries and the device."""
    return {**machine(), "device": describe_device(device), "cuda": torch.version.cuda}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description="Check and measure the engines on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes after which no further cell starts")
    parser.add_argument("--device", default="cuda", help="device of the engines")
    parser.add_argument("--only", default="", metavar="NAME", help="only works whose name contains NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--dry-run", action="store_true", help="tiny works on the CPU, in one and two processes")
    options = parser.parse_args(arguments)
    console = Console(width=110)
    device = resolve_device(CPU if options.dry_run else options.device)
    works = [work for work in WORKS if options.only in work.load.name]
    if options.dry_run:
        works = [shrink(work) for work in works]
    machine_facts = describe_machine(device)

    def report(figures: list[Figure], laws: list[Law]) -> None:
        if options.json:
            rows = [asdict(figure) for figure in figures]
            options.json.write_text(json.dumps({"machine": machine_facts, "laws": laws, "figures": rows}, indent=1) + "\n")
        last = f"{figures[-1].work}, {figures[-1].uplink}, {figures[-1].clients_per_second}" if figures else str(laws[-1])
        console.print(last, style="dim")

    processes, rounds = (PROCESSES[:2], 4) if options.dry_run else (PROCESSES, ROUNDS)
    figures, laws = measure_all(works, device, options.minutes, processes, rounds, report)
    report(figures, laws)
    for work, law, figure, holds in laws:
        console.print(f"{work}: {law}: {figure}", style=None if holds else "bold red")
    console.print(make_table(figures))
    console.print(", ".join(f"{key} {value}" for key, value in machine_facts.items()), style="dim")
    if not all(holds for *_, holds in laws):
        sys.exit(1)


if __name__ == "__main__":
    main()
