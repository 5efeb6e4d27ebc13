"""Tests of the benchmark of Flower deployments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.flower.__main__ import ROOT, Overhead, main, print_table

pytestmark = pytest.mark.deployment


def test_flower_benchmark_with_unknown_part_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["overheads"])
    assert "got overheads, expected some of overhead, app, rounds" in capsys.readouterr().err
    print_table([Overhead(1000, "up", 1396, 10_995)], "overhead")
    assert "10,995" in capsys.readouterr().out


@pytest.mark.nightly
def test_flower_benchmark_after_sigterm_leaves_no_temporary_folder(tmp_path: Path) -> None:
    command, env = [sys.executable, "-m", "tests.bench.flower", "overhead"], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("fedsgd-bench-*/logs/superlink.log")):
            time.sleep(0.02)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
