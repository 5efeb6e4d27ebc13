"""Benchmark of large models, and of the messages of a small model.

    python -m tests.bench.size [--parameters P,P] [--json FILE]

1. "runs": three rounds of three clients with a perceptron of P parameters, each in a process of its own. The whole model is sent
   down in each round; the update is sent up as float32, or as top-k 1 % with error feedback. The unit of memory is a copy: P
   float32 numbers, 4P bytes. The process first runs a small model, so that libraries and compiled loops do not count. "peak" is
   the growth of the peak memory after that. The time is that of the second round, which compiles nothing and evaluates nothing.
   It is compared with the training of its three clients, and with a memcpy of the vector.
2. "messages": one message of a model of 10,000 parameters at a client and at the server, with compiled loops. The arithmetic is
   the message's kernels, called again with their arguments, and its operations on vectors of P numbers. The figure is the
   median time of a message without the median time of its arithmetic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
PARAMETERS = (100_000, 1_000_000, 10_000_000)
CLIENTS, FEATURES, CLASSES, EXAMPLES = 3, 1000, 10, 60
UPLINKS: dict[str, dict[str, Any]] = {
    "top-k 1 %": {"compressor": {"name": "top-k", "density": 0.01}, "error_feedback": "persist"},
    "dense": {"compressor": {"name": "dense"}},
}
MESSAGE_GOAL = 60.0
"""Upper limit for the microseconds of a message of 10,000 parameters beyond its arithmetic."""
STEPS = ("encode", "reply", "decode")
N_MESSAGES, N_WARM_UP, N_RECORDED = 2000, 20, 16


@dataclass(frozen=True)
class RunFigure:
    """Memory and time of a model.

    Attributes:
        uplink: name of the uplink.
        parameters: P.
        peak: growth of the peak memory in copies of P float32 numbers.
        peak_bytes: peak memory of the process, in bytes.
        import_bytes: growth of the peak memory beyond `import torch`, in bytes.
        seconds: seconds of a round.
        to_training: seconds of a round, divided by the seconds of its training.
        to_copy: seconds of a round, divided by the seconds of a memcpy of the vector.
        digest: SHA-256 of the parameters.
    """

    uplink: str
    parameters: int
    peak: float
    peak_bytes: int
    import_bytes: int
    seconds: float
    to_training: float
    to_copy: float
    digest: str


@dataclass(frozen=True)
class MessageFigure:
    """Time of one step of a message.

    Attributes:
        uplink: name of the uplink.
        step: "encode": the update to a frame, with the residual. "reply": the whole reply of a client, with its state, its norms
            and all checks. "decode": the frame to an update, with its addition.
        microseconds: time of the step.
        arithmetic: time of its arithmetic in microseconds.
        beyond: `microseconds` without `arithmetic`.
        n_kernels: number of calls of kernels.
    """

    uplink: str
    step: str
    microseconds: float
    arithmetic: float
    beyond: float
    n_kernels: int


def measure_run(uplink: str, n_parameters: int) -> dict[str, Any]:
    """Run three rounds in this process, which must run nothing else, and return the figures by name."""
    import torch  # noqa: F401

    from fedsgd.system.machine import measure_peak_memory

    after_import = measure_peak_memory() or 0

    import fedsgd
    from fedsgd.numerics.kernels import use_loops
    from fedsgd.system.machine import memcpy_seconds

    use_loops()
    scenario = make_scenario(uplink)
    hidden = max(1, round((n_parameters - CLASSES) / (FEATURES + 1 + CLASSES)))
    fedsgd.run(scenario.with_settings({"model": {"name": "mlp", "hidden": [40]}}), data=make_dataset(FEATURES))
    before = measure_peak_memory() or 0
    result = fedsgd.run(
        scenario.with_settings({"model": {"name": "mlp", "hidden": [hidden]}}),
        data=make_dataset(FEATURES),
        execution=fedsgd.ExecutionConfig(profile=True),
    )
    peak, parameters = measure_peak_memory() or 0, len(result.parameters)
    seconds, phases = result.history[1].seconds, result.summary["profile"]["server"]
    digest = result.summary["params_sha256"]
    del result
    return {
        "parameters": parameters,
        "peak": (peak - before) / (4 * parameters),
        "peak_bytes": peak,
        "import_bytes": peak - after_import,
        "seconds": seconds,
        "to_training": seconds / (phases["train"] + phases["gather"]),
        "to_copy": seconds / memcpy_seconds(parameters),
        "digest": digest,
    }


def make_scenario(uplink: str) -> Any:
    """Return the scenario of three rounds of three clients, without its model."""
    import fedsgd

    return fedsgd.Scenario(name="size").with_settings(
        {
            "rounds": 3,
            "data.partition": {"name": "iid", "clients": CLIENTS},
            "client": {"epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05}},
            "server.fraction": 1.0,
            "uplink": UPLINKS[uplink],
            "evaluation.every": 3,
        }
    )


def make_dataset(features: int) -> Any:
    """Return random examples."""
    import fedsgd

    rng = np.random.default_rng(0)
    x = rng.standard_normal((EXAMPLES, features), dtype=np.float32)
    y = rng.integers(0, CLASSES, EXAMPLES)
    return fedsgd.Dataset(fedsgd.Examples(x, y), fedsgd.Examples(x[:20], y[:20]), classes=CLASSES)


def measure_run_in_process(uplink: str, n_parameters: int) -> RunFigure:
    """Run three rounds in a new process."""
    command = [sys.executable, "-m", "tests.bench.size", "--one", uplink, str(n_parameters)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return RunFigure(uplink, **json.loads(process.stdout.splitlines()[-1]))


@contextmanager
def recorded_kernels(calls: list[Callable[[], object]]) -> Iterator[None]:
    """Append each call of a kernel in the body to `calls`, as a call of the compiled loop itself."""
    from fedsgd.numerics.kernels import Kernel

    call = Kernel.__call__

    def record(self: Kernel[..., Any], *args: Any) -> Any:
        result = call(self, *args)
        loop = self._implementation or self.reference
        calls.append(lambda: loop(*args))
        return result

    with patch.object(Kernel, "__call__", record):
        yield


class MessageBench:
    """A client and a server of a softmax model with 10,000 parameters, and an uplink.

    Attributes:
        plan: settings of the federation.
        total: [P] float64, the server's sum.
    """

    def __init__(self, uplink: str) -> None:
        from fedsgd.experiment.builder import build_experiment
        from fedsgd.federation.client_state import ClientState
        from fedsgd.federation.downlink_cache import DecodedDownlink

        scenario = make_scenario(uplink).with_settings({"model": {"name": "softmax"}})
        experiment = build_experiment(scenario, dataset=make_dataset(FEATURES - 1))
        self.plan, self._examples = experiment.plan, experiment.train.examples_of(0)
        size = self.plan.layout.size
        self._downlink = DecodedDownlink(np.zeros(size, dtype=np.float32), None, None, 0.0)
        rng = np.random.default_rng(0)
        self._updates = [rng.standard_normal(size, dtype=np.float32) * np.float32(1e-3) for _ in range(8)]
        self._state, self._round = ClientState(), 0
        self.total = np.zeros(size)

    @property
    def update(self) -> Any:
        """Update of the current round, [P]."""
        return self._updates[self._round % len(self._updates)]

    def start_round(self) -> tuple[Any, Any]:
        """Return the decoded task of the next round, and the result of its training."""
        from fedsgd.federation.client import ClientTask
        from fedsgd.federation.client_state import ClientState
        from fedsgd.training import TrainingJob, TrainingResult

        self._round += 1
        committed = ClientState(self._state.resolve(self._round, self._round - 1))
        job = TrainingJob(0, self._round, 0, self._downlink.weights, self._examples)
        task = ClientTask(job, committed, self._downlink, 0, 0, 0.0)
        return task, TrainingResult(0, self.update, len(self._examples), 2)

    def encode(self, task: Any) -> bytes:
        """Return the frame of the round's update, without the state of the client."""
        from fedsgd.federation.client import SCHEME
        from fedsgd.federation.client_state import entries_of
        from fedsgd.wire import Frame, FrameKind, Header, encode_frame

        uplink, context = self.plan.uplink, self.plan.make_context(self._round, 0)
        encoded = uplink.send(self.update, entries_of(task.state.committed_state, SCHEME), context)
        header = Header(FrameKind.UPDATE, self._round, uplink.codec, self._round, 0, 0, len(self._examples))
        return encode_frame(Frame(header, encoded.sections))

    def reply(self, task: Any, result: Any) -> Any:
        """Make the reply of a round: the frame, the client's state, the norms of the residual, and all checks."""
        from fedsgd.federation.client import encode_update

        reply, self._state = encode_update(self.plan, task, result)
        return reply

    def decode(self, reply: Any) -> None:
        """Decode a reply and add the update."""
        from fedsgd.federation.server import decode_update

        decoded = decode_update(self.plan, reply, self._round)
        context = self.plan.make_context(self._round, 0)
        self.plan.uplink.decode(decoded.sections, context).add_to(self.total, 0.3)

    def list_vector_operations(self, step: str, reply: Any) -> list[Callable[[], object]]:
        """Return the operations of a step on P numbers, or on all bytes of the message, outside kernels."""
        update, data, total = self.update, reply.frames[0], self.total
        operations: list[Callable[[], object]] = [lambda: zlib.crc32(data)]
        has_residual = bool(self.plan.uplink.residual_entries)
        if step != "decode":
            operations += [lambda: update + update, lambda: update.copy()] if has_residual else [lambda: b"".join([data])]
        elif not has_residual:
            operations += [lambda: update.copy(), lambda: np.add(total, update.astype(np.float64) * 0.3, out=total)]
        return operations


def measure_messages(uplink: str, n_messages: int = N_MESSAGES) -> list[MessageFigure]:
    """Measure the messages of a client with an uplink. The arithmetic is that of `N_RECORDED` messages."""
    from fedsgd.numerics.kernels import use_loops
    from fedsgd.system.torch_threads import use_single_thread

    use_loops()
    bench = MessageBench(uplink)
    seconds, kernels, others = ({step: [] for step in STEPS} for _ in range(3))  # type: ignore[var-annotated]
    with use_single_thread():
        for number in range(n_messages + N_WARM_UP):
            task, result = bench.start_round()
            times = [time.perf_counter()]
            bench.encode(task)
            times.append(time.perf_counter())
            reply = bench.reply(task, result)
            times.append(time.perf_counter())
            bench.decode(reply)
            times.append(time.perf_counter())
            for step, start, end in zip(STEPS, times, times[1:], strict=False):
                if number >= N_WARM_UP:
                    seconds[step].append(end - start)
        for _ in range(N_RECORDED):
            task, result = bench.start_round()
            with recorded_kernels(kernels["encode"]):
                bench.encode(task)
            with recorded_kernels(kernels["reply"]):
                reply = bench.reply(task, result)
            with recorded_kernels(kernels["decode"]):
                bench.decode(reply)
            for step in STEPS:
                others[step] += bench.list_vector_operations(step, reply)
        figures = []
        for step in STEPS:
            calls = [*kernels[step], *others[step]]
            arithmetic = 1e6 * _time_calls(calls, max(3, n_messages // N_RECORDED)) / N_RECORDED
            total = 1e6 * median(seconds[step])
            n_kernels = len(kernels[step]) // N_RECORDED
            figures.append(MessageFigure(uplink, step, total, arithmetic, total - arithmetic, n_kernels))
    return figures


def _time_calls(calls: Sequence[Callable[[], object]], repetitions: int) -> float:
    """Return the median seconds of all calls together."""
    durations = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for call in calls:
            call()
        durations.append(time.perf_counter() - start)
    return median(durations)


def run_table(figures: Sequence[RunFigure]) -> Table:
    """Return a table of the runs."""
    out = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("uplink", "P", "peak, copies", "beyond import, MB", "s a round", "× training", "× memcpy"):
        out.add_column(name, justify="left" if name == "uplink" else "right", no_wrap=True)
    for f in figures:
        cells = (
            f"{f.peak:.1f}",
            f"{f.import_bytes / 1e6:,.0f}",
            f"{f.seconds:.3f}",
            f"{f.to_training:.1f}",
            f"{f.to_copy:.0f}",
        )
        out.add_row(f.uplink, f"{f.parameters:,}", *cells)
    return out


def message_table(figures: Sequence[MessageFigure]) -> Table:
    """Return a table of the messages."""
    out = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("uplink", "step", "µs", "arithmetic, µs", "beyond, µs", "× arithmetic", "kernels", ""):
        out.add_column(name, justify="left" if name in ("uplink", "step", "") else "right", no_wrap=True)
    for f in figures:
        verdict = "pass" if f.beyond <= MESSAGE_GOAL else "miss"
        times = (f"{f.microseconds:.1f}", f"{f.arithmetic:.1f}", f"{f.beyond:.1f}", f"{f.microseconds / f.arithmetic:.1f}")
        out.add_row(f.uplink, f.step, *times, str(f.n_kernels), f"≤ {MESSAGE_GOAL:g}: {verdict}")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ",".join(map(str, PARAMETERS))
    parser.add_argument("--parameters", default=default, help="numbers of parameters, separated by commas; empty for no run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--one", nargs=2, metavar=("UPLINK", "P"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        uplink, n_parameters = options.one
        print(json.dumps(measure_run(uplink, int(n_parameters))))
        return
    console = Console(width=120, highlight=False)
    sizes = [round(float(size)) for size in options.parameters.split(",") if size]
    messages = [figure for uplink in UPLINKS for figure in measure_messages(uplink)]
    console.print(message_table(messages))
    runs = [measure_run_in_process(uplink, size) for size in sizes for uplink in UPLINKS]
    console.print(run_table(runs))
    if options.json is not None:
        report = {"runs": [asdict(f) for f in runs], "messages": [asdict(f) for f in messages]}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
