"""The comparison with other simulators, without any of them: fedsgd's own part, and the watch over other processes."""

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
from tests.bench.peers.contenders import PEERS, Peer, PeerError, figure
from tests.bench.peers.measure import Spec, measured
from tests.bench.peers.work import WORKS, Report
from tests.systems import linux

comparison = importlib.import_module("tests.bench.peers.__main__")

pytestmark = linux

TINY = replace(WORKS["tiny"], rounds=3)
ONE_CORE = PEERS[0]
ABSENT = Peer("nobody", 1, lambda folder, work: [], needs=("no_such_module",), install="pip install nobody")


def python(code: str) -> Peer:
    """A peer that runs this code."""
    return Peer("somebody", 1, lambda folder, work: [sys.executable, "-c", code, str(folder)])


def reporting(ends: int, accuracy: float) -> Peer:
    """A peer that says this at once."""
    report = Report([float(n) for n in range(ends)], accuracy, 1)
    return Peer("somebody", 1, lambda folder, work: [sys.executable, "-c", ""], report=lambda folder: report)


def test_fedsgd_is_measured_and_who_is_absent_or_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "PEERS", (ONE_CORE, ABSENT, python("print('the reason'); raise SystemExit(3)")))
    file = tmp_path / "figures.json"
    asked = ["--workload", "tiny", "--rounds", "3", "--cold", "--json", str(file)]
    assert comparison.main(asked) == 1
    shown, report = capsys.readouterr().out, json.loads(file.read_text())
    (found,) = report["figures"]
    assert found["peer"] == "fedsgd dense"
    assert found["parameters"] == 199_210
    numbers = [value for value in found.values() if isinstance(value, int | float)] + found["rounds"]
    assert all(math.isfinite(n) and n > 0 for n in numbers)
    assert found["uplink_bytes"] > TINY.cohort * 4 * found["parameters"]
    assert report["skipped"] == {"nobody, one core": "no no_such_module here: pip install nobody"}
    assert "skipped nobody, one core" in shown
    assert "FAILED tiny: somebody: exit status 3" in shown
    assert "the reason" in shown
    assert all(len(line) <= comparison.WIDTH for line in shown.splitlines() if "processor" not in line)


@pytest.mark.parametrize(
    ("ends", "accuracy", "problem"), [(3, 0.1, "chance is 0.1"), (3, math.nan, "chance"), (2, 0.9, "2 rounds")]
)
def test_whoever_has_not_done_the_work_fails(tmp_path: Path, ends: int, accuracy: float, problem: str) -> None:
    with pytest.raises(PeerError, match=problem):
        figure(reporting(ends, accuracy), TINY, tmp_path)


@pytest.mark.parametrize(
    ("asked", "problem"), [("--rounds 2", "at least 3"), ("--workload 3nn", "has 3nn"), ("--workload 2nn", "--data DIR")]
)
def test_what_cannot_be_measured_is_refused_at_once(
    asked: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    with pytest.raises(SystemExit):
        comparison.main(asked.split())
    assert problem in capsys.readouterr().err


def test_ratios_are_to_fedsgd_with_as_many_cores_or_one(tmp_path: Path) -> None:
    one = figure(reporting(3, 0.9), TINY, tmp_path)
    dense = [replace(one, peer="fedsgd dense", cores=cores, seconds=seconds) for cores, seconds in ((1, 2.0), (2, 1.0))]
    rival = replace(one, cores=2)
    assert comparison.baseline(rival, dense) == dense[1]
    assert comparison.baseline(rival, dense[:1]) == dense[0]
    assert comparison.baseline(rival, []) is None


def test_memory_of_orphans_counts_and_they_are_ended(tmp_path: Path) -> None:
    ready, pid = tmp_path / "ready", tmp_path / "pid"
    orphan = f"import time; held = bytearray(b'x' * 300_000_000); open({str(ready)!r}, 'w').close(); time.sleep(600)"
    parent = (
        "import subprocess, sys\n"
        f"left = subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)\n"
        f"open({str(pid)!r}, 'w').write(str(left.pid))"
    )
    main = (
        "import os, subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {parent!r}])\n"
        f"while not os.path.exists({str(ready)!r}): time.sleep(0.01)\n"
        "time.sleep(1)"
    )
    core = max(os.sched_getaffinity(0))
    taken = measured(Spec([sys.executable, "-c", main], {}, [core], str(tmp_path / "log")))
    assert taken.status == 0, (tmp_path / "log").read_text()
    assert taken.peak_bytes > 300_000_000
    assert taken.started < time.time()
    assert not Path("/proc", pid.read_text()).exists()


@pytest.mark.parametrize("name", ["2nn", "cnn"])
def test_everybody_trains_the_same_model(name: str) -> None:
    ours = MODELS[name]().build((28, 28), work.CLASSES)
    theirs = work.build(name)
    assert [str(layer) for layer in theirs] == [str(layer) for layer in ours]


@pytest.mark.parametrize("uplink", fedsgd.UPLINKS)
def test_fedsgd_has_the_same_settings(tmp_path: Path, uplink: str) -> None:
    command = fedsgd.command(tmp_path, replace(TINY, arrays=str(tmp_path)), uplink, 1)
    assert "--workers" not in command
    assert fedsgd.command(tmp_path, TINY, uplink, 2)[-2:] == ["--workers", "2"]
    scenario = load(tmp_path / "scenario.toml")
    assert scenario.client.optimizer == type(scenario.client.optimizer)(lr=TINY.lr)
    assert (scenario.client.epochs, scenario.client.batch_size) == (TINY.epochs, TINY.batch_size)
    assert (scenario.rounds, scenario.server.cohort, scenario.evaluation.every) == (TINY.rounds, TINY.cohort, TINY.rounds)
    assert scenario.model.name == TINY.model
    assert scenario.uplink.error_feedback == ("none" if uplink == "dense" else "persist")
