"""Runs on several ranks: equal results on any number of ranks and machines, equal errors, and named dead ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fedsgd
from fedsgd.scenario.scenario import Scenario
from tests.effort import nightly_unless
from tests.runtime.ranks.launch import Ranks, find_free_port

pytestmark = pytest.mark.deployment

Make = Callable[..., Scenario]
LAYOUTS = {"two ranks": "aa", "two machines of two ranks": "abab", "two machines": "ab", "three machines": "abcba"}
"""Machine of each rank."""
SETTINGS: dict[str, dict[str, Any]] = {
    "error feedback, differences": {
        "uplink.compressor.name": "top-k",
        "uplink.error_feedback": "persist",
        "downlink.policy": "difference",
        "evaluation.validation": 0.3,
        "checkpoint.every": 2,
    },
    "client models, control variates": {
        "uplink.compressor.name": "scaffold",
        "uplink.error_feedback": "none",
        "server.weighting": "uniform",
        "client.optimizer": {"name": "sgd", "lr": 0.05},
        "downlink.policy": "difference",
        "evaluation.clients": True,
        "data.held_out": 0.2,
    },
}


@pytest.fixture
def small(scenario: Make) -> Make:
    def make(**settings: Any) -> Scenario:
        return scenario({"rounds": 4, "data.partition.clients": 8, "engine.name": "sequential", **settings})

    return make


def write_scenario(scenario: Scenario, path: Path) -> list[str]:
    """Write a scenario, and return the arguments that run it in the folder of the file."""
    path.write_text(scenario.to_toml())
    return ["run", str(path), "--json", "--quiet", "--out", str(path.with_suffix(""))]


@pytest.mark.parametrize("layout", nightly_unless(lambda name: name == "two machines", LAYOUTS))
def test_number_and_place_of_ranks_do_not_change_results(small: Make, tmp_path: Path, layout: str) -> None:
    s = small(**SETTINGS["error feedback, differences"])
    expected = fedsgd.run(s)
    results = Ranks(LAYOUTS[layout], write_scenario(s, tmp_path / "ranks.toml")).wait()
    assert [(status, error) for status, _, error in results] == [(0, "")] * len(results)
    assert [output for _, output, _ in results[1:]] == [""] * (len(results) - 1)
    summary = json.loads(results[0][1])
    assert summary["params_sha256"] == expected.summary["params_sha256"]
    assert summary["ledger_sha256"] == expected.summary["ledger_sha256"]
    assert (summary["ranks"], summary["machines"]) == (len(LAYOUTS[layout]), len(set(LAYOUTS[layout])))
    continued = fedsgd.resume(tmp_path / "ranks", rounds=6)  # has the states of all machines
    assert continued.summary["ledger_sha256"] == fedsgd.run(s.with_settings({"rounds": 6})).summary["ledger_sha256"]


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["client models, control variates"])
def test_other_states_do_not_depend_on_machines(small: Make, tmp_path: Path, case: str) -> None:
    s = small(**SETTINGS[case])
    expected = fedsgd.run(s)
    results = Ranks("abb", write_scenario(s, tmp_path / "ranks.toml")).wait()
    assert json.loads(results[0][1])["ledger_sha256"] == expected.summary["ledger_sha256"]


@pytest.mark.nightly
def test_resume_on_other_ranks_continues_to_equal_results(small: Make, tmp_path: Path) -> None:
    s = small(**SETTINGS["error feedback, differences"], rounds=40)
    arguments = write_scenario(s, tmp_path / "ranks.toml")
    ranks = Ranks("aab", arguments)
    try:
        wait_until(lambda: any((tmp_path / "ranks" / "checkpoints").glob("checkpoint-*.json")), 60)
        ranks.processes[1].kill()
        assert all(status for status, *_ in ranks.wait())
    finally:
        ranks.kill()
    results = Ranks("abcd", ["resume", str(tmp_path / "ranks"), "--json", "--quiet"]).wait()
    assert [status for status, *_ in results] == [0] * 4, results
    assert json.loads(results[0][1])["ledger_sha256"] == fedsgd.run(s).summary["ledger_sha256"]
    results = Ranks("bab", ["resume", str(tmp_path / "ranks"), "--rounds", "42", "--json", "--quiet"]).wait()
    assert [status for status, *_ in results] == [0] * 3, results
    assert json.loads(results[0][1])["ledger_sha256"] == fedsgd.run(s.with_settings({"rounds": 42})).summary["ledger_sha256"]


DYING = """
import os, signal, sys
from fedsgd.cli import main
from fedsgd.runtime.workers import worker

process, n_jobs = worker.JobProcessor.process, 0

def process_and_die(self, head, frames):
    global n_jobs
    n_jobs += 1
    if n_jobs > 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return process(self, head, frames)

worker.JobProcessor.process = process_and_die
main(prog_name="fedsgd")
"""
"""`fedsgd` whose rank 1 dies in its fourth job, unless torchrun has started it again."""


def run_torchrun(script: Path, ranks: int, *arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={find_free_port()}", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.nightly
def test_torchrun_restarts_a_killed_rank_to_equal_results(small: Make, tmp_path: Path) -> None:
    s = small(**SETTINGS["error feedback, differences"])
    (tmp_path / "dying.py").write_text(DYING)
    process = run_torchrun(tmp_path / "dying.py", 2, *write_scenario(s, tmp_path / "ranks.toml"), restarts=1)
    assert process.returncode == 0, process.stderr
    assert "(exitcode: -9) local_rank: 1" in process.stderr  # of torchrun, which also ends rank 0
    assert json.loads(process.stdout)["ledger_sha256"] == fedsgd.run(s).summary["ledger_sha256"]
    records = pq.read_table(tmp_path / "ranks" / "rounds.parquet").to_pylist()
    assert [record["round"] for record in records] == [1, 2, 3, 4]


@pytest.mark.nightly
def test_restart_does_not_replace_an_earlier_run(small: Make, tmp_path: Path) -> None:
    s = small()
    arguments = write_scenario(s, tmp_path / "ranks.toml")
    fedsgd.run(s, out=tmp_path / "ranks")
    (tmp_path / "plain.py").write_text("from fedsgd.cli import main\nmain(prog_name='fedsgd')\n")
    process = run_torchrun(tmp_path / "plain.py", 2, *arguments, "--set", "seed=77", restarts=1)
    assert process.returncode != 0
    assert process.stderr.count("ranks: is not empty") == 2, process.stderr
    assert fedsgd.read_run(tmp_path / "ranks").summary["params_sha256"] == fedsgd.run(s).summary["params_sha256"]


@pytest.mark.nightly
def test_two_launchers_restart_ranks_at_different_counts(small: Make, tmp_path: Path) -> None:
    """The launcher whose ranks are healthy does not count the restart, and the store of the launchers stays."""
    s = small(**SETTINGS["error feedback, differences"])
    (tmp_path / "dying.py").write_text(DYING)
    arguments = [str(tmp_path / "dying.py"), *write_scenario(s, tmp_path / "ranks.toml")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", "--max-restarts=3"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{find_free_port()}", "--rdzv-id=fedsgd", *arguments]
    launchers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        outputs = [launcher.communicate(timeout=200) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    results = [output for output, _ in outputs if output]
    assert json.loads(results[-1])["ledger_sha256"] == fedsgd.run(s).summary["ledger_sha256"]


# ------------------------------------------------------------------------------------------------------------ wrong at the start


def fails_with(results: list[tuple[int, str, str]], status: int, *texts: str) -> bool:
    """Check that all ranks fail, and that rank 0 alone prints a line, with the texts."""
    assert results[0][0] == status, results
    assert all(result[0] not in (0, None) for result in results), results
    assert len(results[0][2].splitlines()) == 1, results
    assert all(text in results[0][2] for text in texts), results
    assert [(output, error) for _, output, error in results[1:]] == [("", "")] * (len(results) - 1)
    return True


@pytest.mark.nightly
def test_rank_without_the_data_is_named(small: Make, tmp_path: Path) -> None:
    s = small(**{"data.name": "npz", "data.path": "data.npz"})
    arguments = write_scenario(s, tmp_path / "ranks.toml")
    x, y = np.zeros((40, 4), np.float32), np.arange(40) % 4
    for folder in ("full", "empty"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "full" / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    results = Ranks("ab", [[*arguments, "--data", str(tmp_path / folder)] for folder in ("full", "empty")]).wait()
    assert fails_with(results, 1, "fedsgd: rank 1 on b: ", "data.npz")


@pytest.mark.nightly
def test_rank_without_the_scenario_is_named(small: Make, tmp_path: Path) -> None:
    arguments = write_scenario(small(), tmp_path / "first.toml")
    results = Ranks("ab", [arguments, ["run", str(tmp_path / "second.toml"), *arguments[2:]]]).wait()
    assert fails_with(results, 2, "rank 1 on b: ", "second.toml")


@pytest.mark.nightly
def test_ranks_on_different_scenarios_are_refused(small: Make, tmp_path: Path) -> None:
    first = write_scenario(small(), tmp_path / "first.toml")
    second = write_scenario(small(**{"client.optimizer.lr": 0.25}), tmp_path / "second.toml")
    results = Ranks("aa", [first, second]).wait()
    assert fails_with(results, 2, "rank 1 on a: client.optimizer.lr is 0.05 on rank 0, there 0.25; all ranks need the same")


@pytest.mark.nightly
def test_more_ranks_than_clients_are_refused(small: Make, tmp_path: Path) -> None:
    s = small(**{"data.partition.clients": 2, "server.cohort": 2})
    results = Ranks("aaa", write_scenario(s, tmp_path / "ranks.toml")).wait()
    assert fails_with(results, 2, "ranks: got 3, more than the 2 clients")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"MASTER_ADDR": None}, [], "MASTER_ADDR: not set, expected the address of rank 0; torchrun sets it"),
        pytest.param(
            {"MASTER_PORT": "x"},
            [],
            "MASTER_PORT: got 'x', expected a whole number from 1 to 65535",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {},
            ["--workers", "2"],
            "--workers: got 2, expected no such option: the 2 ranks of torchrun train the clients",
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["address", "port", "workers"],
)
def test_wrong_start_is_an_error_of_one_line(
    small: Make, tmp_path: Path, variables: dict[str, str | None], options: list[str], message: str
) -> None:
    results = Ranks("aa", [*write_scenario(small(), tmp_path / "ranks.toml"), *options], variables).wait()
    assert [status for status, *_ in results] == [2, 1]
    assert message in results[0][2]
    assert (results[1][1], results[1][2]) == ("", "")


@pytest.mark.nightly
def test_folder_that_machines_do_not_share_is_refused(small: Make, tmp_path: Path) -> None:
    s = small(**{"checkpoint.every": 1})
    results = Ranks(["a", "apart"], write_scenario(s, tmp_path / "ranks.toml")).wait()
    assert fails_with(results, 2, f"{tmp_path}: rank 1 on apart: is not the same folder there")
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.toml"]


# ------------------------------------------------------------------------------------------------------------------- dead ranks


@pytest.mark.nightly
def test_ctrl_c_ends_all_ranks(small: Make, tmp_path: Path) -> None:
    ranks = Ranks("ab", write_scenario(small(rounds=100_000), tmp_path / "ranks.toml"))
    try:
        rounds = tmp_path / "ranks" / "rounds.parquet"
        wait_until(lambda: rounds.is_dir() and any(rounds.glob("segment-*")), 60)
        for process in ranks.processes:
            process.send_signal(signal.SIGINT)
        results = ranks.wait(30)
        assert [status for status, *_ in results] == [130, 1], results
        assert results[0][2].splitlines()[-1] == "fedsgd: interrupted"
        assert results[1][2] == ""
    finally:
        ranks.kill()


@pytest.mark.nightly
@pytest.mark.parametrize("layout", ["aaa", "abc"])
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_dead_rank_is_named_and_all_ranks_end(
    small: Make, tmp_path: Path, layout: str, victim: int, signal_number: signal.Signals
) -> None:
    s = small(rounds=100_000)
    ranks = Ranks(layout, write_scenario(s, tmp_path / "ranks.toml"))
    try:
        rounds = tmp_path / "ranks" / "rounds.parquet"
        wait_until(lambda: rounds.is_dir() and any(rounds.glob("segment-*")), 60)
        start = time.monotonic()
        ranks.processes[victim].send_signal(signal_number)
        others = [process for rank, process in enumerate(ranks.processes) if rank != victim]
        wait_until(lambda: all(process.poll() is not None for process in others), 60)
        assert time.monotonic() - start < 60
        assert all(process.returncode for process in others)
        ranks.kill()
        errors = [error for _, _, error in ranks.wait()]
        assert f"rank {victim} on {layout[victim]} has" in ("".join(errors) if victim == 0 else errors[0])
    finally:
        ranks.kill()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
