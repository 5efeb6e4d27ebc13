"""Runs in several processes: the same results, the same errors, and nothing left behind, however they end."""

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from fedsgd.cli import main
from fedsgd.data import Examples
from fedsgd.errors import ModelError, NonFiniteError, RunError, ScenarioError
from fedsgd.experiment.builder import build_experiment, with_worker_pool
from fedsgd.experiment.runner import Result, run
from fedsgd.federation import Reply, broadcast
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.models.task import LearningTask
from fedsgd.runtime import WorkerPool
from fedsgd.runtime.workers import protocol
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.forkserver import WORKER_NAME_PREFIX, preload_workers
from fedsgd.training import LocalTraining, TrainingJob, TrainingResult
from fedsgd.training.sequential import Sequential
from tests.systems import linux

Make = Callable[..., Scenario]


@pytest.fixture(autouse=True)
def all_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations too, however small."""
    monkeypatch.setattr("fedsgd.runtime.workers.pool.MIN_DISTRIBUTED_EVALUATION", 0)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No worker, and no descriptor."""
    preload_workers(2)  # the fork server keeps some from then on
    before = descriptors()
    yield
    assert mp.active_children() == []
    gc.collect()
    assert descriptors() <= before


def descriptors() -> int:
    fds = Path("/proc/self/fd")
    return len(list(fds.iterdir())) if fds.is_dir() else 0


def in_worker() -> bool:
    return mp.current_process().name.startswith(WORKER_NAME_PREFIX)


# ------------------------------------------------------------------------------------------- functions that workers can import


def double(output: Tensor, target: Tensor) -> Tensor:
    """A loss in float64, whose sums depend on their order."""
    return nn.functional.cross_entropy(output.double(), target) / 3


smooth = nn.CrossEntropyLoss(label_smoothing=0.1)


def largest(output: Tensor, target: Tensor) -> Tensor:
    return output.max(dim=1).values


LEARNT = 1.5
"""A loss that the initial model does not have, and each client has in round 1."""


def broken(output: Tensor, target: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(output, target)
    if loss.item() < LEARNT:
        raise ZeroDivisionError("in my loss")
    return loss


class TwoPartsError(Exception):
    """Pickled, it cannot be made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def oddly_broken(output: Tensor, target: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(output, target)
    if loss.item() < LEARNT:
        raise TwoPartsError("this", "that")
    return loss


def deadly(output: Tensor, target: Tensor) -> Tensor:
    if in_worker():
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.cross_entropy(output, target)


def broken_metric(output: Tensor, target: Tensor) -> Tensor:
    if in_worker():
        raise KeyError("in my metric")
    return output[:, 0]


def leaving(output: Tensor, target: Tensor) -> Tensor:
    if in_worker():
        sys.exit(3)
    return nn.functional.cross_entropy(output, target)


# -------------------------------------------------------------------------------------------------------------- the same results

EVERYTHING = {"data.held_out": 0.2, "evaluation.clients": True, "evaluation.training": True}
SCENARIOS = {
    "top-k with memory": {"uplink.compressor.name": "top-k", "server.cohort": 6, "rounds": 4, **EVERYTHING},
    "a reference beside the model": {"uplink.compressor.name": "cafe", "uplink.error_feedback": "none"},
    "large frames": {"model.name": "mlp", "model.hidden": [600], "uplink.compressor.name": "dense"},
}


def outcome(result: Result) -> tuple[Any, ...]:
    assert result.out is not None
    table = pq.read_table(result.out / "rounds.parquet").drop_columns(["seconds"])
    digests = [result.summary[name] for name in ("params_sha256", "ledger_sha256")]
    files = [f for f in ("clients.parquet", "params.safetensors") if (result.out / f).exists()]
    return (*digests, table.to_pylist(), [(result.out / f).read_bytes() for f in files])


@pytest.mark.parametrize("settings", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_the_number_of_workers_changes_nothing(scenario: Make, settings: dict[str, Any], tmp_path: Path) -> None:
    s = scenario(settings)
    odd: dict[str, Any] = {"loss": double, "metrics": {"largest": largest}}
    results = [run(s, out=tmp_path / str(k), workers=k, **odd) for k in (1, 2, 3)]
    assert outcome(results[0]) == outcome(results[1]) == outcome(results[2])
    assert [r.summary["workers"] for r in results] == [1, 2, 3]


def test_evaluation_is_bit_for_bit_that_of_one_engine(scenario: Make) -> None:
    asked = scenario({"evaluation.training": True})
    experiment = build_experiment(asked, loss=smooth, metrics={"largest": largest}, share_data=True)
    weights, test, train = experiment.task.initial_parameters, experiment.dataset.test, experiment.train.all_examples()
    with with_worker_pool(experiment, 2) as shared:
        runtime = shared.runtime
        assert isinstance(runtime, WorkerPool)
        runtime.engine = cast("Any", None)
        for examples in (test, train):
            one, many = experiment.engine.evaluate(weights, examples), runtime.evaluate(weights, examples)
            assert one.losses == many.losses
            assert {n: v.tobytes() for n, v in one.scores.items()} == {n: v.tobytes() for n, v in many.scores.items()}
        runtime.engine = experiment.engine
        for examples in (test.slice(0, 50), test.slice(0, 300)):  # small, and not one of those that workers know
            assert runtime.evaluate(weights, examples).losses == experiment.engine.evaluate(weights, examples).losses


def test_the_users_thread_count_and_environment_are_as_before(scenario: Make) -> None:
    before, threads = dict(os.environ), torch.get_num_threads()
    run(scenario({"rounds": 1}), workers=2)
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


def test_an_exchange_that_was_not_waited_for_does_not_spoil_the_next(scenario: Make) -> None:
    reference = build_experiment(scenario())
    messages, _ = broadcast(reference.plan, reference.initial_server_state, range(8))
    expected = {o.client: o.frames for o in reference.runtime.exchange(messages, None) if isinstance(o, Reply)}
    with with_worker_pool(build_experiment(scenario(), share_data=True), 2) as experiment:
        hurried = list(experiment.runtime.exchange(messages, 0.0))
        late = [o for o in hurried if isinstance(o, ClientFailure)]
        assert sorted(o.client for o in hurried) == list(range(8))
        assert all(str(o.error) == "no reply within 0 s" for o in late)
        assert late
        abandoned = experiment.runtime.exchange(messages, None)
        next(abandoned)
        abandoned.close()
        outcomes = list(experiment.runtime.exchange(messages, None))
        assert {o.client: o.frames for o in outcomes if isinstance(o, Reply)} == expected


class ThreeAtOnce(Sequential):
    """Results backwards, and what one client cannot do, none of three can."""

    preferred_batch_of_clients = 3

    def __init__(self, task: LearningTask, local_training: LocalTraining, like: Examples) -> None:
        super().__init__(task, local_training)

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        if any(work.client == 5 for work in jobs):
            raise ZeroDivisionError(f"with {len(jobs)}")
        return super().train(jobs[::-1])


def test_there_are_clients_for_every_worker_where_one_stack_could_take_them_all(
    scenario: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[list[int]] = []
    train = protocol.encode_train_request
    monkeypatch.setattr(protocol, "encode_train_request", lambda messages: parts.append(sorted(messages)) or train(messages))
    experiment = build_experiment(scenario({"engine": {"name": "stacked", "stack": 8}}), share_data=True)
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(8))
    expected = {o.client: o.frames for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)}
    with with_worker_pool(experiment, 2) as shared:
        outcomes = list(shared.runtime.exchange(messages, None))
    assert [len(part) for part in parts] == [4, 4]
    assert {o.client: o.frames for o in outcomes if isinstance(o, Reply)} == expected


def test_engines_get_as_many_clients_at_once_as_they_like(scenario: Make) -> None:
    reference = build_experiment(scenario({"engine.name": "sequential"}))
    messages, _ = broadcast(reference.plan, reference.initial_server_state, range(8))
    expected = {o.client: o.frames for o in reference.runtime.exchange(messages, None) if isinstance(o, Reply)}
    experiment = build_experiment(scenario(), share_data=True)
    experiment = replace(
        experiment,
        make_engine=ThreeAtOnce,
        engine=ThreeAtOnce(experiment.task, experiment.plan.local_training, experiment.dataset.train),
    )
    with with_worker_pool(experiment, 2) as shared:
        outcomes = {o.client: o for o in shared.runtime.exchange(messages, None)}
    failed = outcomes.pop(5)
    assert isinstance(failed, ClientFailure)
    assert str(failed.error) == "with 1"
    assert {c: o.frames for c, o in outcomes.items() if isinstance(o, Reply)} == {c: expected[c] for c in outcomes}


# -------------------------------------------------------------------------------------------------------------- the same errors


def message(s: Scenario, workers: int, **given: Any) -> tuple[type[BaseException], str, str]:
    with pytest.raises(RunError) as caught:
        run(s, workers=workers, **given)
    return caught.type, str(caught.value), type(caught.value.__cause__).__name__


FAILING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an error of the user's": ({}, {"loss": broken}, r"round 1, client \d: ZeroDivisionError: in my loss"),
    "one that cannot be pickled": ({}, {"loss": oddly_broken}, r"round 1, client \d: TwoPartsError: this and that"),
    "an error of ours": ({"client.optimizer.lr": 1e30}, {}, r"round 1, client \d: the update is not finite"),
}


@pytest.mark.parametrize(("settings", "given", "expected"), FAILING.values(), ids=FAILING.keys())
def test_an_error_at_a_client_is_the_same_anywhere(scenario: Make, settings: Any, given: Any, expected: str) -> None:
    here, there = (message(scenario(settings), workers, **given) for workers in (1, 2))
    assert here == there
    assert re.match(expected, here[1])
    assert here[0] is (RunError if given else NonFiniteError)


def test_an_error_in_an_evaluation_says_so(scenario: Make) -> None:
    with pytest.raises(RunError, match="round 1, server: evaluation: KeyError: 'in my metric'"):
        run(scenario({"evaluation.every": 1}), workers=2, metrics={"odd": broken_metric})


@pytest.mark.parametrize(
    ("loss", "how"),
    [(deadly, "was killed by SIGKILL; it may have run out of memory"), (leaving, "ended with exit status 3")],
    ids=["killed", "left"],
)
def test_a_worker_that_ends_ends_the_run(scenario: Make, loss: Any, how: str) -> None:
    with pytest.raises(RunError, match=rf"round 1, client \d: ChildProcessError: worker \d {how}"):
        run(scenario({"server.cohort": 8, "engine.name": "sequential"}), workers=2, loss=loss)


def test_clients_of_a_worker_that_ended_have_failed_and_others_have_not(scenario: Make) -> None:
    with with_worker_pool(build_experiment(scenario(), share_data=True), 2) as experiment:
        messages, _ = broadcast(experiment.plan, experiment.initial_server_state, range(8))
        victim = mp.active_children()[0]
        outcomes = experiment.runtime.exchange(messages, None)
        seen = [next(outcomes)]
        victim.kill()
        seen += outcomes
        assert sorted(o.client for o in seen) == list(range(8))
        lost = [o for o in seen if isinstance(o, ClientFailure)]
        assert len(lost) <= 3
        again = list(experiment.runtime.exchange(messages, None))
        assert all(isinstance(o, Reply) for o in again)
        for process in mp.active_children():
            process.kill()
        for _ in range(2):
            reasons = {str(o.error) for o in experiment.runtime.exchange(messages, None) if isinstance(o, ClientFailure)}
            assert len(reasons) == 1
            assert re.match(r"worker \d was killed by SIGKILL", *reasons)


def at_the_prompt(output: Tensor, target: Tensor) -> Tensor:
    """As a notebook's functions are: of a main module that no other process has."""
    return nn.functional.cross_entropy(output, target)


def test_what_cannot_be_sent_to_workers_is_refused_with_what_to_do(
    scenario: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    advice = r'name it in \[model\].*"package.module:function", or run with workers = 1'
    with pytest.raises(ModelError, match=f"the loss cannot be sent to worker processes .*{advice}"):
        run(scenario(), workers=2, loss=lambda o, t: nn.functional.cross_entropy(o, t), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="the metric odd cannot be sent"):
        run(scenario(), workers=2, metrics={"odd": lambda o, t: o[:, 0]})
    monkeypatch.setattr(at_the_prompt, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "at_the_prompt", at_the_prompt, raising=False)
    with pytest.raises(ModelError, match=f"cannot be made again in a worker process .*at_the_prompt.*{advice}"):
        run(scenario(), workers=2, loss=at_the_prompt)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(scenario: Make, workers: Any) -> None:
    with pytest.raises(ScenarioError, match=rf"workers: got {workers!r}, expected .* 1 or more"):
        run(scenario(), workers=workers)


# -------------------------------------------------------------------------------------------------------------- from outside


def test_the_command_takes_workers_and_says_when_there_are_too_many(root: Path, tmp_path: Path) -> None:
    command = ["run", str(root / "scenarios" / "quickstart.toml"), "--set", "rounds=1", "--set", "client.epochs=1", "--json"]
    many = (os.cpu_count() or 1) + 1
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "a"), "--workers", str(many)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["workers"] == many
    assert f"{many} workers share" in done.stderr
    refused = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "b"), "--workers", "0"])
    assert refused.exit_code == 2
    assert "0 is not in the range x>=1" in refused.stderr


SCRIPT = """
import multiprocessing as mp
import fedsgd

def show(record):
    print(*(child.pid for child in mp.active_children()), flush=True)

{guard}
    fedsgd.run(fedsgd.load({path!r}, {{"rounds": 10_000, "client.epochs": 1}}), workers=2, on_round=show)
"""


def script(root: Path, folder: Path, guard: str) -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT.format(guard=guard, path=str(root / "scenarios" / "quickstart.toml")))
    return path


def test_a_script_without_its_guard_is_told_so(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script(root, tmp_path, "if True:"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "fedsgd.errors.ScenarioError: workers: each worker process imports the script"
    )
    assert done.stderr.count("Traceback") == 1
    assert not done.stdout


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
    print(fedsgd.run(fedsgd.load({path!r}, {{"rounds": 1, "client.epochs": 1}}), workers=2, module=Net()).summary["parameters"])
"""


def test_a_model_of_the_users_script_reaches_workers(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN_MODEL.format(path=str(root / "scenarios" / "quickstart.toml")))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "650\n"), done.stderr


def test_a_worker_that_cannot_import_the_script_says_where_to_look(root: Path, tmp_path: Path) -> None:
    guard = 'if __name__ != "__main__":\n    raise FileNotFoundError("table.csv")\nelse:'
    done = subprocess.run([sys.executable, str(script(root, tmp_path, guard))], capture_output=True, text=True, timeout=60)
    assert "RunError: round 1, server: worker 0 ended with exit status 1 before it was ready" in done.stderr
    assert "FileNotFoundError: table.csv" in done.stderr
    assert not done.stdout


def test_workers_model_of_a_script_on_standard_input_is_refused(root: Path) -> None:
    source = OWN_MODEL.format(path=str(root / "scenarios" / "quickstart.toml"))
    done = subprocess.run([sys.executable, "-"], input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert not done.stdout
    assert "ModelError: the model cannot be made again in a worker process (Can't get attribute 'Net' on" in done.stderr


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@linux
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_server(root: Path, tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, str(script(root, tmp_path, 'if __name__ == "__main__":'))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        process.wait(20)
        errors = process.stderr.read()
        assert errors.count("Traceback") == (1 if how is signal.SIGINT else 0), errors
        deadline = time.monotonic() + 10
        while not all(map(gone, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_one_worker_is_this_process(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    with with_worker_pool(experiment, 1) as same:
        assert same is experiment
    with pytest.raises(ValueError, match="share=True"), with_worker_pool(experiment, 2):
        pass
