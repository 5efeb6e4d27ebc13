"""Benchmark of checkpoints: their time in a run, and in relation to a plain write of the same bytes.

    python -m tests.bench.checkpoint [--folder DIR] [--json FILE]

1. "run": ten rounds of the 2NN (P = 199,210; 100 clients, 10 a round; examples of MNIST's shape) with a dense compressor, so
   that clients have no state. The figure is the time of one checkpoint over the time of ten rounds.
2. "states": a checkpoint of 100 clients with a residual of the 2NN each, over a plain write and fsync of the same bytes, and of
   the server's bytes. Both are measured in turn on the same folder; the figure is the median of the ratios.
3. "registered": a checkpoint of 100 changed clients out of 10^4, 10^5 and 10^6 registered ones, over that of 10^4.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

import fedsgd
from fedsgd.compression import EntryPatch
from fedsgd.experiment.checkpoints import ClientFiles, ClientStorage
from fedsgd.experiment.run_checkpoints import RunCheckpoints
from fedsgd.federation.client_state import (
    NONE_ACKNOWLEDGED,
    ClientState,
    InMemoryClientStore,
    InMemoryModelCache,
    UncommittedState,
)
from fedsgd.runtime.stores.shared import SlotStore, serialize_state

PARAMETERS = 199_210
COHORT = 100
REPETITIONS = 9
REGISTERED = (10_000, 100_000, 1_000_000)


def measure_run(folder: Path, n_rounds: int = 10, n_examples: int = 60_000) -> dict[str, float]:
    """Return the seconds of `n_rounds` rounds of the 2NN and of a checkpoint after them."""
    rng = np.random.default_rng(0)
    x, y = rng.random((n_examples, 784), dtype=np.float32), rng.integers(0, 10, n_examples)
    test = fedsgd.Examples(x[:1000], y[:1000])
    scenario = fedsgd.Scenario(name="2nn").with_settings(
        {
            "rounds": 2 * n_rounds + 1,
            "data.partition": {"name": "iid", "clients": 100},
            "model": {"name": "mlp", "hidden": [200, 200]},
            "client": {"epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05}},
            "server.fraction": 0.1,
            "evaluation.every": n_rounds,
            "checkpoint.every": n_rounds,
        }
    )
    checkpoint_seconds: list[float] = []
    write = RunCheckpoints.write

    def timed_write(*arguments: Any) -> None:
        start = time.perf_counter()
        write(*arguments)
        checkpoint_seconds.append(time.perf_counter() - start)

    with patch.object(RunCheckpoints, "write", timed_write):
        result = fedsgd.run(scenario, data=fedsgd.Dataset(fedsgd.Examples(x, y), test, classes=10), out=folder / "run")
    rounds = sum(record.seconds for record in result.history[n_rounds : 2 * n_rounds])
    first, second = checkpoint_seconds[:2]  # the first also takes the fingerprint of the data
    return {"rounds": rounds, "first_checkpoint": first, "checkpoint": second, "share": second / rounds}


def make_state(seed: int, size: int) -> ClientState:
    """Return the state of a client with a residual after a reply of 1 % of the coordinates."""
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(size, size // 100, replace=False)).astype(np.int64)
    residual = rng.standard_normal(size, dtype=np.float32)
    patch = EntryPatch(indices, rng.standard_normal(len(indices), dtype=np.float32))
    return ClientState(
        {}, UncommittedState(1, {"scheme/residual": residual}, {"scheme/residual": patch}, bytes(12 * len(indices)))
    )


def measure_states(folder: Path, size: int = PARAMETERS, repetitions: int = REPETITIONS) -> dict[str, float]:
    """Return the bytes of 100 states, and the median ratio of a checkpoint of them to a plain write and fsync."""
    store = InMemoryClientStore()
    for client in range(COHORT):
        store.save(client, make_state(client, size))
    data = b"".join(bytes(part) for client in range(COHORT) for part in serialize_state(store.load(client)))
    files = ClientFiles(folder, COHORT, ClientStorage(store, InMemoryModelCache()))
    ratios = []
    for repetition in range(repetitions + 1):
        plain = time_call(lambda: write_plainly(folder / "plain", data))
        checkpoint = time_call(partial(files.write, f"{repetition:06d}", range(COHORT), NONE_ACKNOWLEDGED, {}))
        (folder / f"clients-{repetition:06d}.safetensors").unlink()
        ratios.append(checkpoint / plain)
    return {"bytes": len(data), "ratio": median(ratios[1:])}


def write_plainly(path: Path, data: bytes) -> None:
    """Write a new file with one call, and wait until its bytes and its name are on disk."""
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def measure_registered(
    folder: Path, repetitions: int = REPETITIONS, registered: Sequence[int] = REGISTERED
) -> dict[str, float]:
    """Return the median milliseconds of a checkpoint of 100 changed clients, by the number of registered clients."""
    milliseconds = {}
    for n_clients in registered:
        store, rng = SlotStore(n_clients), np.random.default_rng(0)
        files = ClientFiles(folder, n_clients, ClientStorage(store, InMemoryModelCache()))
        seconds = []
        for repetition in range(repetitions + 1):
            clients = rng.choice(n_clients, COHORT, replace=False).tolist()
            for client in clients:
                store.save(client, make_state(client, 10_000))
            seconds.append(time_call(partial(files.write, f"{repetition:06d}", clients, NONE_ACKNOWLEDGED, {})))
        store.close()
        milliseconds[f"{n_clients:,}"] = 1000 * median(seconds[1:])
    return milliseconds


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _subfolder(parent: Path, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent) as folder:
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure  [default: temporary files]")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    measurements = {"run": measure_run, "states": measure_states, "registered": measure_registered}
    for name, measure in measurements.items():
        with _subfolder(options.folder or Path(tempfile.gettempdir()), name) as folder:
            figures[name] = measure(folder)
    run, states = figures["run"], figures["states"]
    print(
        f"checkpoint without client state: {run['checkpoint']:.3f} s, {run['share']:.1%} of ten rounds ({run['rounds']:.2f} s)"
    )
    print(f"first checkpoint, with the fingerprint of the data: {run['first_checkpoint']:.3f} s")
    print(f"checkpoint of {states['bytes'] / 1e6:.0f} MB of states: {states['ratio']:.2f} x a plain write and fsync")
    for n_clients, milliseconds in figures["registered"].items():
        ratio = milliseconds / figures["registered"][f"{REGISTERED[0]:,}"]
        print(f"checkpoint of {COHORT} of {n_clients} registered clients: {milliseconds:.1f} ms, {ratio:.2f} x 10,000 clients")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
