"""Cells as jobs: submitit's processes on this machine, and commands that stand for Slurm's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.cli import main
from fedsgd.errors import FedsgdError, OutputError, ScenarioError
from fedsgd.sweeps import Sweep
from fedsgd.sweeps.options import SweepConfig
from tests.conftest import ROOT

pytestmark = pytest.mark.deployment

TINY = {"rounds": 1, "client.epochs": 1, "server.cohort": 2, "data.partition.clients": 4}
SBATCH = """#!/bin/bash
# Starts the jobs of an array at once, as one node would.
file="${@: -1}"
cp "$file" "$FAKE_SLURM/submission.sh"
for i in 0 1; do
    SLURM_JOB_ID=$((100 + i)) SLURM_ARRAY_JOB_ID=100 SLURM_ARRAY_TASK_ID=$i SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_NODEID=0 \\
    SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=localhost bash "$FAKE_SLURM/submission.sh" >"$FAKE_SLURM/$i.log" 2>&1 &
done
echo "Submitted batch job 100"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do if [[ "$1" == --output || "$1" == --error ]]; then shift; fi; shift; done
exec "$@"
"""
SACCT = """#!/bin/bash
printf 'JobID|State|NodeList\\n100_0|RUNNING|localhost\\n100_1|RUNNING|localhost\\n'
"""


def list_uplink_bytes(sweep: Sweep, out: Path) -> list[int]:
    return [fedsgd.read_run(out / cell.folder).summary["uplink_bytes"] for cell in sweep.cells]


@pytest.mark.nightly
def test_local_jobs_have_the_results_of_this_process(tmp_path: Path) -> None:
    s = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", TINY)
    grid = {"uplink.compressor.density": [0.01, 0.1]}
    plain = fedsgd.sweep(s, grid=grid, out=tmp_path / "plain")
    jobs = fedsgd.sweep(s, grid=grid, out=tmp_path / "jobs", execution=SweepConfig(launcher="local"))
    assert [cell.state for cell in jobs.cells] == ["finished", "finished"]
    assert list_uplink_bytes(jobs, tmp_path / "jobs") == list_uplink_bytes(plain, tmp_path / "plain")


def test_slurm_jobs_get_the_options_and_fill_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", "#!/bin/bash\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setattr("fedsgd.sweeps.launcher.POLL_SECONDS", {"slurm": 0.2})
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    options = ["--launcher", "slurm", "--launcher-option", "partition=cpu", "--launcher-option", "time=30", "--jobs", "2"]
    command = ["sweep", str(ROOT / "scenarios" / "quickstart.toml"), *settings, "--seeds", "2", "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, (result.output, [path.read_text() for path in tmp_path.glob("*.log")])
    submission = (tmp_path / "submission.sh").read_text()
    for line in ("--partition=cpu", "--time=30", "--array=0-1%2", "--cpus-per-task=1", "--job-name=fedsgd"):
        assert f"#SBATCH {line}\n" in submission
    assert all(cell.state == "finished" for cell in Sweep.read(tmp_path / "s").cells)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SweepConfig(launcher="slrum"), "launcher: got 'slrum', did you mean \"slurm\"\\?"),
        (
            SweepConfig(launcher="local", launcher_options={"partition": "cpu"}),
            "got partition, expected none with the launcher",
        ),
        (SweepConfig(launcher_options={"partition": "cpu"}), "launcher options: got some without a launcher"),
        (SweepConfig(launcher="slurm"), "launcher: slurm is not available on this machine"),
    ],
    ids=["name", "local", "none", "slurm"],
)
def test_wrong_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: SweepConfig, message: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ScenarioError, match=message):
        fedsgd.sweep(ROOT / "scenarios" / "quickstart.toml", out=tmp_path / "s", execution=config)


def test_unknown_slurm_option_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    config = SweepConfig(launcher="slurm", launcher_options={"partion": "cpu"})
    with pytest.raises(ScenarioError, match=r"launcher options: .*partion"):
        fedsgd.sweep(ROOT / "scenarios" / "quickstart.toml", out=tmp_path / "s", execution=config)


def test_failing_submission_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"srun": SRUN, "sbatch": "#!/bin/bash\necho 'sbatch: error: invalid partition specified: no' >&2\nexit 1\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    s = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", TINY)
    with pytest.raises(OutputError, match=r"the jobs of the sweep cannot be submitted: sbatch: error: invalid partition"):
        fedsgd.sweep(s, out=tmp_path / "s", execution=SweepConfig(launcher="slurm"))


def test_job_that_dies_ends_the_sweep_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.sweeps.executor.run_cell", die)
    s = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", TINY)
    with pytest.raises(FedsgdError, match=r"job \d+ of the sweep failed: .*; its log: .*/\.jobs/"):
        fedsgd.sweep(s, out=tmp_path / "s", execution=SweepConfig(launcher="local"))


def die(*_: object, **__: object) -> None:
    os._exit(3)
