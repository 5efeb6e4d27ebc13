"""Tests of the comparison with other simulators, without these: the runs of fedsgd, and the measurement of processes."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedsgd.models import MODELS
from fedsgd.scenario.scenario import load
from tests.bench.peers import fedsgd, work
from tests.bench.peers.contenders import PEERS, Peer, PeerError, measure_peer
from tests.bench.peers.measure import Spec, measure_command
from tests.bench.peers.work import WORKS, Report
from tests.systems import linux

peers_main = importlib.import_module("tests.bench.peers.__main__")

pytestmark = linux

TINY = replace(WORKS["tiny"], rounds=3)
ONE_CORE = PEERS[0]
MISSING = Peer("missing peer", 1, lambda folder, work: [], needs=("no_such_module",), install="pip install missing")


def make_python_peer(code: str) -> Peer:
    """Return a peer that runs Python code."""
    return Peer("peer", 1, lambda folder, work: [sys.executable, "-c", code, str(folder)])


def make_reporting_peer(n_rounds: int, accuracy: float) -> Peer:
    """Return a peer that reports rounds and an accuracy without any work."""
    report = Report([float(n) for n in range(n_rounds)], accuracy, 1)
    return Peer("peer", 1, lambda folder, work: [sys.executable, "-c", ""], report=lambda folder: report)


@pytest.mark.nightly
@pytest.mark.slow
def test_command_measures_fedsgd_and_names_skipped_and_failed_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers_main, "PEERS", (ONE_CORE, MISSING, make_python_peer("print('the reason'); raise SystemExit(3)")))
    file = tmp_path / "figures.json"
    arguments = ["--workload", "tiny", "--rounds", "3", "--cold", "--json", str(file)]
    assert peers_main.main(arguments) == 1
    output, report = capsys.readouterr().out, json.loads(file.read_text())
    (figure,) = report["figures"]
    assert figure["peer"] == "fedsgd dense"
    assert figure["parameters"] == 199_210
    numbers = [value for value in figure.values() if isinstance(value, int | float)] + figure["rounds"]
    assert all(math.isfinite(n) and n > 0 for n in numbers)
    assert figure["uplink_bytes"] > TINY.cohort * 4 * figure["parameters"]
    reason = "no_such_module not installed; to install: pip install missing"
    assert report["skipped"] == {"missing peer, one core": reason}
    assert "skipped missing peer, one core" in output
    assert "FAILED tiny: peer: exit status 3" in output
    assert "the reason" in output
    assert all(len(line) <= peers_main.WIDTH for line in output.splitlines() if "processor" not in line)


@pytest.mark.parametrize(
    ("n_rounds", "accuracy", "message"), [(3, 0.1, "chance is 0.1"), (3, math.nan, "chance"), (2, 0.9, "2 rounds")]
)
def test_peer_with_missing_rounds_or_accuracy_by_chance_fails(
    tmp_path: Path, n_rounds: int, accuracy: float, message: str
) -> None:
    with pytest.raises(PeerError, match=message):
        measure_peer(make_reporting_peer(n_rounds, accuracy), TINY, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"), [("--rounds 2", "at least 3"), ("--workload 3nn", "has 3nn"), ("--workload 2nn", "--data DIR")]
)
def test_invalid_option_ends_the_command_with_a_message(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    with pytest.raises(SystemExit):
        peers_main.main(arguments.split())
    assert message in capsys.readouterr().err


def test_baseline_is_dense_fedsgd_with_equal_cores_or_one_core(tmp_path: Path) -> None:
    figure = measure_peer(make_reporting_peer(3, 0.9), TINY, tmp_path)
    dense = [replace(figure, peer="fedsgd dense", cores=cores, seconds=seconds) for cores, seconds in ((1, 2.0), (2, 1.0))]
    other = replace(figure, cores=2)
    assert peers_main.baseline(other, dense) == dense[1]
    assert peers_main.baseline(other, dense[:1]) == dense[0]
    assert peers_main.baseline(other, []) is None


@pytest.mark.slow
def test_measurement_counts_memory_of_orphans_and_ends_them(tmp_path: Path) -> None:
    ready, pid = tmp_path / "ready", tmp_path / "pid"
    orphan = f"import time; data = bytearray(b'x' * 300_000_000); open({str(ready)!r}, 'w').close(); time.sleep(600)"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))"
    )
    main = (
        "import os, subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {parent!r}])\n"
        f"while not os.path.exists({str(ready)!r}): time.sleep(0.01)\n"
        "time.sleep(1)"
    )
    core = max(os.sched_getaffinity(0))
    usage = measure_command(Spec([sys.executable, "-c", main], {}, [core], str(tmp_path / "log")))
    assert usage.status == 0, (tmp_path / "log").read_text()
    assert usage.peak_bytes > 300_000_000
    assert usage.started < time.time()
    assert not Path("/proc", pid.read_text()).exists()


@pytest.mark.parametrize("name", ["2nn", "cnn"])
def test_model_of_the_peers_equals_that_of_fedsgd(name: str) -> None:
    fedsgd_model = MODELS[name]().build((28, 28), work.CLASSES)
    peer_model = work.build(name)
    assert [str(layer) for layer in peer_model] == [str(layer) for layer in fedsgd_model]


@pytest.mark.parametrize("uplink", fedsgd.UPLINKS)
def test_fedsgd_scenario_has_the_settings_of_the_work(tmp_path: Path, uplink: str) -> None:
    command = fedsgd.command(tmp_path, replace(TINY, arrays=str(tmp_path)), uplink, 1)
    assert "--workers" not in command
    assert fedsgd.command(tmp_path, TINY, uplink, 2)[-2:] == ["--workers", "2"]
    scenario = load(tmp_path / "scenario.toml")
    assert scenario.client.optimizer == type(scenario.client.optimizer)(lr=TINY.lr)
    assert (scenario.client.epochs, scenario.client.batch_size) == (TINY.epochs, TINY.batch_size)
    assert (scenario.rounds, scenario.server.cohort, scenario.evaluation.every) == (TINY.rounds, TINY.cohort, TINY.rounds)
    assert scenario.model.name == TINY.model
    assert scenario.uplink.error_feedback == ("none" if uplink == "dense" else "persist")
