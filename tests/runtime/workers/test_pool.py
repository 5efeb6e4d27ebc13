"""Runs in several processes: equal results, equal errors, and no remaining process or file descriptor."""

from __future__ import annotations

import gc
import json
import multiprocessing as mp
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from fedsgd import CustomModel, ExecutionConfig
from fedsgd.cli import main
from fedsgd.data import Examples
from fedsgd.errors import ModelError, NonFiniteError, RunError, ScenarioError
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.experiment.execution import InProcessExecution, make_execution
from fedsgd.experiment.result import Result
from fedsgd.experiment.runner import run
from fedsgd.federation import Message, Reply, broadcast
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.models.task import LearningTask
from fedsgd.runtime import WorkerPool
from fedsgd.runtime.workers import protocol
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.forkserver import WORKER_NAME_PREFIX, preload_workers
from fedsgd.training import LocalTraining, TrainingJob, TrainingResult
from fedsgd.training.sequential import Sequential
from tests.systems import linux

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_collection")]

Make = Callable[..., Scenario]


@pytest.fixture(autouse=True)
def distribute_all_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distribute small evaluations too."""
    monkeypatch.setattr("fedsgd.runtime.workers.pool.MIN_DISTRIBUTED_EVALUATION", 0)


@pytest.fixture(autouse=True)
def check_that_nothing_remains() -> Iterator[None]:
    """Check that no worker and no file descriptor remains."""
    preload_workers(2)  # the fork server keeps some descriptors from then on
    before = list_descriptors()
    yield
    assert mp.active_children() == []
    gc.collect()
    end = time.monotonic() + 5  # threads of other libraries open and close descriptors at any time
    while (remaining := list_descriptors() - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not remaining


def list_descriptors() -> set[tuple[str, str]]:
    """Return number and target of each open file descriptor; the set is empty where the system does not tell."""
    folder = Path("/proc/self/fd")
    descriptors = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # the descriptor of the iteration itself
            descriptors.add((path.name, str(path.readlink())))
    return descriptors


def is_in_worker() -> bool:
    return mp.current_process().name.startswith(WORKER_NAME_PREFIX)


# ------------------------------------------------------------------------------------------- functions that workers can import


def double_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return a float64 loss, whose sums depend on their order."""
    return nn.functional.cross_entropy(output.double(), target) / 3


smooth_loss = nn.CrossEntropyLoss(label_smoothing=0.1)


def largest_output(output: Tensor, target: Tensor) -> Tensor:
    return output.max(dim=1).values


LEARNED_LOSS = 1.5
"""Loss below that of the initial model, which each client reaches in round 1."""


def broken_loss(output: Tensor, target: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(output, target)
    if loss.item() < LEARNED_LOSS:
        raise ZeroDivisionError("in my loss")
    return loss


class TwoPartsError(Exception):
    """Exception that can be pickled but not restored."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def unpicklable_loss(output: Tensor, target: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(output, target)
    if loss.item() < LEARNED_LOSS:
        raise TwoPartsError("this", "that")
    return loss


def killing_loss(output: Tensor, target: Tensor) -> Tensor:
    if is_in_worker():
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.cross_entropy(output, target)


def broken_metric(output: Tensor, target: Tensor) -> Tensor:
    if is_in_worker():
        raise KeyError("in my metric")
    return output[:, 0]


def exiting_loss(output: Tensor, target: Tensor) -> Tensor:
    if is_in_worker():
        sys.exit(3)
    return nn.functional.cross_entropy(output, target)


# --------------------------------------------------------------------------------------------------------------- equal results

ALL_EVALUATIONS = {
    "data.held_out": 0.2,
    "evaluation.clients": True,
    "evaluation.training": True,
    "evaluation.validation": 0.3,
}
SCENARIOS = {
    "top-k with error feedback": {"uplink.compressor.name": "top-k", "server.cohort": 6, "rounds": 4, **ALL_EVALUATIONS},
    "a REFERENCE frame": {"uplink.compressor.name": "cafe", "uplink.error_feedback": "none"},
    "large frames": {"model.name": "mlp", "model.hidden": [600], "uplink.compressor.name": "dense"},
}


def collect_results(result: Result) -> tuple[Any, ...]:
    assert result.out is not None
    table = pq.read_table(result.out / "rounds.parquet").drop_columns(["seconds"])
    digests = [result.summary[name] for name in ("params_sha256", "ledger_sha256")]
    files = [f for f in ("clients.parquet", "params.safetensors") if (result.out / f).exists()]
    return (*digests, table.to_pylist(), [(result.out / f).read_bytes() for f in files])


@pytest.mark.sampled
@pytest.mark.parametrize("settings", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_results_do_not_depend_on_the_number_of_workers(scenario: Make, settings: dict[str, Any], tmp_path: Path) -> None:
    s = scenario(settings)
    model = CustomModel(loss=double_loss, metrics={"largest": largest_output})
    results = [
        run(s, out=tmp_path / str(n_workers), model=model, execution=ExecutionConfig(workers=n_workers))
        for n_workers in (1, 2, 3)
    ]
    assert collect_results(results[0]) == collect_results(results[1]) == collect_results(results[2])
    assert [r.summary["workers"] for r in results] == [1, 2, 3]


def test_distributed_evaluation_equals_that_of_one_engine(scenario: Make) -> None:
    s = scenario({"evaluation.training": True, "evaluation.validation": 0.4})
    experiment = build_experiment(s, loss=smooth_loss, metrics={"largest": largest_output}, workers=2)
    weights, test, train = experiment.task.initial_parameters, experiment.dataset.test, experiment.train.all_examples()
    assert experiment.validation is not None
    with make_execution(experiment, 2) as shared:
        runtime = shared.runtime
        assert isinstance(runtime, WorkerPool)
        runtime.engine = cast("Any", None)
        for examples in (test, train, experiment.validation.all_examples()):
            expected, result = experiment.engine.evaluate(weights, examples), runtime.evaluate(weights, examples)
            assert expected.losses == result.losses
            assert {n: v.tobytes() for n, v in expected.scores.items()} == {n: v.tobytes() for n, v in result.scores.items()}
        runtime.engine = experiment.engine
        for examples in (test.slice(0, 50), test.slice(0, 300)):  # a small set, and one that workers do not have
            assert runtime.evaluate(weights, examples).losses == experiment.engine.evaluate(weights, examples).losses


def test_run_with_workers_keeps_thread_count_and_environment(scenario: Make) -> None:
    environment, threads = dict(os.environ), torch.get_num_threads()
    run(scenario({"rounds": 1}), execution=ExecutionConfig(workers=2))
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads


def exchange_in_process(experiment: Experiment, messages: Mapping[int, Message]) -> dict[int, Message]:
    """Return the frames of the replies in this process, by client."""
    with InProcessExecution(experiment) as execution:
        return {o.client: o.frames for o in execution.runtime.exchange(messages, None) if isinstance(o, Reply)}


def test_abandoned_exchange_does_not_affect_the_next(scenario: Make) -> None:
    reference = build_experiment(scenario())
    messages, _ = broadcast(reference.plan, reference.initial_server_state, range(8))
    expected = exchange_in_process(reference, messages)
    with make_execution(build_experiment(scenario(), workers=2), 2) as execution:
        outcomes_without_waiting = list(execution.runtime.exchange(messages, 0.0))
        late_failures = [o for o in outcomes_without_waiting if isinstance(o, ClientFailure)]
        assert sorted(o.client for o in outcomes_without_waiting) == list(range(8))
        assert all(str(o.error) == "no reply within 0 s" for o in late_failures)
        assert late_failures
        abandoned = execution.runtime.exchange(messages, None)
        next(abandoned)
        abandoned.close()
        outcomes = list(execution.runtime.exchange(messages, None))
        assert {o.client: o.frames for o in outcomes if isinstance(o, Reply)} == expected


class ThreeAtOnce(Sequential):
    """Engine that trains three clients together, yields results in reverse, and fails for all three if client 5 is among them."""

    preferred_batch_of_clients = 3

    def __init__(self, task: LearningTask, local_training: LocalTraining, examples: Examples) -> None:
        super().__init__(task, local_training)

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        if any(job.client == 5 for job in jobs):
            raise ZeroDivisionError(f"with {len(jobs)}")
        return super().train(jobs[::-1])


def test_clients_of_one_stack_are_divided_between_workers(scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[list[int]] = []
    train = protocol.encode_train_request
    monkeypatch.setattr(protocol, "encode_train_request", lambda messages: parts.append(sorted(messages)) or train(messages))
    experiment = build_experiment(scenario({"engine": {"name": "stacked", "stack": 8}}), workers=2)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(8))
    expected = exchange_in_process(experiment, messages)
    with make_execution(experiment, 2) as shared:
        outcomes = list(shared.runtime.exchange(messages, None))
    assert [len(part) for part in parts] == [4, 4]
    assert {o.client: o.frames for o in outcomes if isinstance(o, Reply)} == expected


def test_workers_train_chunks_of_the_preferred_size(scenario: Make) -> None:
    reference = build_experiment(scenario({"engine.name": "sequential"}))
    messages, _ = broadcast(reference.plan, reference.initial_server_state, range(8))
    expected = exchange_in_process(reference, messages)
    experiment = build_experiment(scenario(), workers=2)
    experiment = replace(
        experiment,
        make_engine=ThreeAtOnce,
        engine=ThreeAtOnce(experiment.task, experiment.plan.local_training, experiment.dataset.train),
    )
    with make_execution(experiment, 2) as shared:
        outcomes = {o.client: o for o in shared.runtime.exchange(messages, None)}
    failed = outcomes.pop(5)
    assert isinstance(failed, ClientFailure)
    assert str(failed.error) == "with 1"
    assert {c: o.frames for c, o in outcomes.items() if isinstance(o, Reply)} == {c: expected[c] for c in outcomes}


# ---------------------------------------------------------------------------------------------------------------- equal errors


def run_to_error(s: Scenario, workers: int, **functions: Any) -> tuple[type[BaseException], str, str]:
    with pytest.raises(RunError) as error_info:
        run(s, model=CustomModel(**functions), execution=ExecutionConfig(workers=workers))
    return error_info.type, str(error_info.value), type(error_info.value.__cause__).__name__


FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an error of user code": ({}, {"loss": broken_loss}, r"round 1, client \d: ZeroDivisionError: in my loss"),
    "an error that cannot be pickled": ({}, {"loss": unpicklable_loss}, r"round 1, client \d: TwoPartsError: this and that"),
    "an error of the package": ({"client.optimizer.lr": 1e30}, {}, r"round 1, client \d: the update is not finite"),
}


@pytest.mark.sampled
@pytest.mark.parametrize(("settings", "functions", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_client_error_is_the_same_with_workers(scenario: Make, settings: Any, functions: Any, expected: str) -> None:
    error, worker_error = (run_to_error(scenario(settings), workers, **functions) for workers in (1, 2))
    assert error == worker_error
    assert re.match(expected, error[1])
    assert error[0] is (RunError if functions else NonFiniteError)


def test_evaluation_error_names_the_evaluation(scenario: Make) -> None:
    with pytest.raises(RunError, match="round 1, server: evaluation: KeyError: 'in my metric'"):
        run(
            scenario({"evaluation.every": 1}),
            execution=ExecutionConfig(workers=2),
            model=CustomModel(metrics={"odd": broken_metric}),
        )


@pytest.mark.parametrize(
    ("loss", "description"),
    [(killing_loss, "was killed by SIGKILL; it may have run out of memory"), (exiting_loss, "ended with exit status 3")],
    ids=["killed", "left"],
)
def test_worker_that_ends_ends_the_run(scenario: Make, loss: Any, description: str) -> None:
    with pytest.raises(RunError, match=rf"round 1, client \d: ChildProcessError: worker \d {description}"):
        run(
            scenario({"server.cohort": 8, "engine.name": "sequential"}),
            execution=ExecutionConfig(workers=2),
            model=CustomModel(loss=loss),
        )


def test_ended_worker_fails_only_its_own_clients(scenario: Make) -> None:
    experiment = build_experiment(scenario(), workers=2)
    with make_execution(experiment, 2) as execution:
        messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(8))
        victim = mp.active_children()[0]
        outcomes = execution.runtime.exchange(messages, None)
        received = [next(outcomes)]
        victim.kill()
        received += outcomes
        assert sorted(o.client for o in received) == list(range(8))
        failures = [o for o in received if isinstance(o, ClientFailure)]
        assert len(failures) <= 3
        replies = list(execution.runtime.exchange(messages, None))
        assert all(isinstance(o, Reply) for o in replies)
        for process in mp.active_children():
            process.kill()
        for _ in range(2):
            descriptions = {str(o.error) for o in execution.runtime.exchange(messages, None) if isinstance(o, ClientFailure)}
            assert len(descriptions) == 1
            assert re.match(r"worker \d was killed by SIGKILL", *descriptions)


def interactive_loss(output: Tensor, target: Tensor) -> Tensor:
    """Loss whose module is a main module that no other process has, as in a notebook."""
    return nn.functional.cross_entropy(output, target)


def test_function_that_cannot_be_pickled_raises_error_with_advice(
    scenario: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    advice = r'name it in \[model\].*"package.module:function", or run with workers = 1'
    with pytest.raises(ModelError, match=f"the loss cannot be sent to worker processes .*{advice}"):
        run(
            scenario(),
            execution=ExecutionConfig(workers=2),
            model=CustomModel(loss=lambda o, t: nn.functional.cross_entropy(o, t)),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="the metric odd cannot be sent"):
        run(scenario(), execution=ExecutionConfig(workers=2), model=CustomModel(metrics={"odd": lambda o, t: o[:, 0]}))
    monkeypatch.setattr(interactive_loss, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "interactive_loss", interactive_loss, raising=False)
    with pytest.raises(ModelError, match=f"cannot be made again in a worker process .*interactive_loss.*{advice}"):
        run(scenario(), execution=ExecutionConfig(workers=2), model=CustomModel(loss=interactive_loss))


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_invalid_number_of_workers_raises_scenario_error(scenario: Make, workers: Any) -> None:
    with pytest.raises(ScenarioError, match=rf"workers: got {workers!r}, expected .* from 1 to 4096"):
        run(scenario(), execution=ExecutionConfig(workers=workers))


# ------------------------------------------------------------------------------------------------------- commands and scripts


def test_command_accepts_workers_and_warns_if_they_exceed_the_processors(root: Path, tmp_path: Path) -> None:
    command = ["run", str(root / "scenarios" / "quickstart.toml"), "--set", "rounds=1", "--set", "client.epochs=1", "--json"]
    n_workers = (os.cpu_count() or 1) + 1
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "a"), "--workers", str(n_workers)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["workers"] == n_workers
    assert f"{n_workers} workers share" in result.stderr
    rejected = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "b"), "--workers", "0"])
    assert rejected.exit_code == 2
    assert "0 is not in the range x>=1" in rejected.stderr


SCRIPT = """
import multiprocessing as mp
import fedsgd

def show(record):
    print(*(child.pid for child in mp.active_children()), flush=True)

{guard}
    fedsgd.run(fedsgd.load({path!r}, {{"rounds": 10_000, "client.epochs": 1}}), on_round=show, execution=fedsgd.ExecutionConfig(workers=2))
"""


def write_script(root: Path, folder: Path, guard: str) -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT.format(guard=guard, path=str(root / "scenarios" / "quickstart.toml")))
    return path


@pytest.mark.nightly
def test_script_without_main_guard_raises_scenario_error(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(write_script(root, tmp_path, "if True:"))]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(
        "fedsgd.errors.ScenarioError: workers: each worker process imports the script"
    )
    assert process.stderr.count("Traceback") == 1
    assert not process.stdout


OWN_MODEL = """
import fedsgd
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))

if __name__ == "__main__":
    print(fedsgd.run(fedsgd.load({path!r}, {{"rounds": 1, "client.epochs": 1}}), model=Net(), execution=fedsgd.ExecutionConfig(workers=2)).summary["parameters"])
"""


@pytest.mark.nightly
def test_model_class_of_a_script_can_be_used_by_workers(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN_MODEL.format(path=str(root / "scenarios" / "quickstart.toml")))
    process = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout) == (0, "650\n"), process.stderr


@pytest.mark.nightly
def test_worker_that_cannot_import_the_script_raises_run_error(root: Path, tmp_path: Path) -> None:
    guard = 'if __name__ != "__main__":\n    raise FileNotFoundError("table.csv")\nelse:'
    process = subprocess.run(
        [sys.executable, str(write_script(root, tmp_path, guard))], capture_output=True, text=True, timeout=60
    )
    assert "RunError: round 1, server: worker 0 ended with exit status 1 before it was ready" in process.stderr
    assert "FileNotFoundError: table.csv" in process.stderr
    assert not process.stdout


@pytest.mark.nightly
def test_model_class_of_a_script_on_standard_input_raises_model_error(root: Path) -> None:
    source = OWN_MODEL.format(path=str(root / "scenarios" / "quickstart.toml"))
    process = subprocess.run([sys.executable, "-"], input=source, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert not process.stdout
    assert "ModelError: the model cannot be made again in a worker process (Can't get attribute 'Net' on" in process.stderr


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@linux
@pytest.mark.nightly
@pytest.mark.parametrize("end_signal", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_when_their_server_ends(root: Path, tmp_path: Path, end_signal: signal.Signals) -> None:
    command = [sys.executable, str(write_script(root, tmp_path, 'if __name__ == "__main__":'))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        if end_signal is signal.SIGINT:
            os.killpg(process.pid, end_signal)  # as a terminal does
        else:
            process.send_signal(end_signal)
        process.wait(20)
        errors = process.stderr.read()
        assert errors.count("Traceback") == (1 if end_signal is signal.SIGINT else 0), errors
        deadline = time.monotonic() + 10
        while not all(map(has_ended, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_one_worker_uses_no_other_process(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    assert isinstance(make_execution(experiment, 1), InProcessExecution)
    with pytest.raises(ValueError, match="workers=2"), make_execution(experiment, 2):
        pass
