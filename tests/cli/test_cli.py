"""The command line: output, exit codes, error messages and progress."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedsgd.cli import main, terminal
from fedsgd.cli.terminal import progress
from fedsgd.config.quantities import format_bytes, format_ratio
from fedsgd.experiment.state_budget import StateBudget
from fedsgd.federation.round_record import RoundRecord
from fedsgd.training.selection import EngineChoice

TINY = ("--set", "rounds=2", "--set", "client.steps=2", "--set", "engine.name=sequential")


def fedsgd(*arguments: str | Path) -> Result:
    """Run a command line of fedsgd."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def quickstart(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return root / "scenarios" / "quickstart.toml"


@pytest.mark.slow
def test_run_prints_tables_and_writes_a_folder(quickstart: Path) -> None:
    result = fedsgd("run", quickstart, *TINY, "--out", "o")
    assert result.exit_code == 0, result.output
    for words in (
        "uplink",
        "downlink",
        "header",
        "index",
        "value",
        "side",
        "accuracy 0.",
        "params_sha256",
        "written to o",
    ):
        assert words in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    summary = json.loads(Path("o/summary.json").read_text())
    up, down = summary["uplink"], summary["downlink"]
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["uplink", "downlink", "both", "ways"] in rows
    for part in ("header", "index", "value", "side", "frames"):
        assert [part, *(f"{n:,}" for n in (up[part], down[part], up[part] + down[part]))] in rows
    total = up["n_bytes"] + down["n_bytes"]
    assert ["total", f"{up['n_bytes']:,}", f"{down['n_bytes']:,}", f"{total:,}"] in rows
    assert ["if", "broadcast", f"{down['broadcast']:,}", f"{up['n_bytes'] + down['broadcast']:,}"] in rows
    dense = summary["dense_uplink_bytes"], summary["dense_downlink_bytes"]
    ratios = dense[0] / up["n_bytes"], dense[1] / down["n_bytes"], sum(dense) / total
    assert ["compression", "ratio", *map(format_ratio, ratios)] in rows
    assert f"uplink: {8 * up['n_bytes'] / up['kept']:.1f} bits per coordinate sent" in result.stdout
    assert f"{8 * up['index'] / up['kept']:.2f} of them for its position" in result.stdout
    assert f"\npeak memory {format_bytes(summary['peak_memory_bytes'])}\n" in result.stdout
    assert summary["rounds"] == 2


@pytest.mark.slow
def test_json_option_prints_only_json_on_standard_output(quickstart: Path) -> None:
    result = fedsgd("run", quickstart, *TINY, "--out", "o", "--json", "--seed", "5")
    assert json.loads(result.stdout) == json.loads(Path("o/summary.json").read_text())
    assert json.loads(result.stdout)["seed"] == 5


@pytest.mark.slow
def test_quiet_option_silences_progress_bars_of_datasets(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "0")  # so that monkeypatch restores it
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS")
    assert fedsgd("run", quickstart, *TINY).exit_code == 0
    assert "HF_DATASETS_DISABLE_PROGRESS_BARS" not in os.environ
    assert fedsgd("run", quickstart, *TINY, "--quiet").exit_code == 0
    assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"


@pytest.mark.slow
def test_run_without_out_has_a_numbered_folder(quickstart: Path) -> None:
    for _ in range(2):
        assert fedsgd("run", quickstart, *TINY, "--quiet").exit_code == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["quickstart-1", "quickstart-2"]


@pytest.mark.slow
def test_brackets_in_names_are_printed(quickstart: Path) -> None:
    result = fedsgd("run", quickstart, *TINY, "--set", "name=o[/b]x".replace("/", "|"), "--out", "p[bold]q")
    assert result.exit_code == 0
    assert "o[|b]x: bytes on the wire" in result.stdout
    assert "written to p[bold]q" in result.stdout


@pytest.mark.slow
def test_progress_without_terminal_is_lines_on_standard_error(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    result = fedsgd("run", quickstart, *TINY, "--out", "o")
    assert "quickstart: round 1/2, acc 0." in result.stderr
    assert re.search(r"up [\d.]+ kB, 74[.\d]*× · both ways [\d.]+ kB, [\d.]+×, about", result.stderr)
    assert "s left" in result.stderr
    assert "round 1/2" not in result.stdout
    assert fedsgd("run", quickstart, *TINY, "--out", "p", "--quiet").stderr == ""


@pytest.mark.slow
def test_run_into_a_finished_run_names_the_overwrite_option(quickstart: Path) -> None:
    assert fedsgd("run", quickstart, *TINY, "--out", "o", "--quiet").exit_code == 0
    second = fedsgd("run", quickstart, *TINY, "--out", "o", "--quiet")
    assert second.exit_code == 2
    assert "choose another folder, or pass --overwrite" in second.stderr
    assert fedsgd("run", quickstart, *TINY, "--out", "o", "--quiet", "--overwrite").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--set", "uplink.compressor.name=topkk"), 2, 'uplink.compressor.name: got "topkk", did you mean "top-k"?'),
        (("--set", "rounds"), 2, "expected KEY=VALUE"),
        (("--set", "data.name=mnist"), 1, "mnist: no data folder is set"),
        (("--set", "data.name=mnist", "--data", "nowhere"), 1, "train-images-idx3-ubyte not found (looked for nowhere/mnist"),
        (("--set", "data.partition.clients=2000"), 1, "2000 clients cannot share 1437 examples"),
        (("--set", 'model={module="nowhere_at_all:f"}'), 2, 'model.module: cannot import "nowhere_at_all"'),
        (("--set", "client.optimizer.lr=1e30", "--out", "o"), 1, "round 1, client"),
        (("--out", "."), 2, "is not empty"),
    ],
)
def test_error_is_one_line_and_an_exit_status(
    quickstart: Path, arguments: tuple[str, ...], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    Path("something").touch()
    result = fedsgd("run", quickstart, *arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.splitlines()[-1].startswith("fedsgd: ")
    assert not Path("runs").exists()


def test_interrupted_run_mentions_its_ledger(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, out: Path, **__: object) -> None:
        (out / "ledger.parquet").mkdir(parents=True)
        (out / "ledger.parquet" / "segment-000000.parquet").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsgd.experiment.runner.run", interrupt)
    result = fedsgd("run", quickstart, "--out", "o")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["fedsgd: o/ledger.parquet has the ledger of the rounds so far", "fedsgd: interrupted"]


@pytest.mark.parametrize(
    ("family", "member"),
    [
        ("compressors", "top-k"),
        ("models", "2nn"),
        ("datasets", "mnist"),
        ("partitioners", "dirichlet"),
        ("optimizers", "nesterov"),
        ("samplers", "weighted"),
        ("durations", "log-normal"),
    ],
)
def test_list_prints_members_of_a_family(family: str, member: str) -> None:
    assert f"  {member}: " in fedsgd("list", family).stdout
    names = [m["name"] for m in json.loads(fedsgd("list", family, "--json").stdout)]
    assert member in names
    assert family in json.loads(fedsgd("list", "--json").stdout)


@pytest.mark.slow
@pytest.mark.nightly
def test_module_in_the_working_directory_is_imported(quickstart: Path) -> None:
    Path("my_nets.py").write_text(
        "from torch import nn\ndef make(width):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    command = [
        sys.executable,
        "-m",
        "fedsgd",
        "run",
        str(quickstart),
        *TINY,
        "--set",
        'model={module="my_nets:make", arguments={width=5}}',
        "--json",
    ]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(process.stdout)["parameters"] == 65 * 5 + 60


LARGE_MODULES = ("torch", "flwr", "pyarrow", "sklearn", "rich", "numba", "pandas")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["list"], ["list", "models", "--json"]], ids=" ".join
)
def test_help_and_list_import_no_large_module(arguments: list[str]) -> None:
    code = f"""
import sys
from fedsgd.cli import main
try:
    main({arguments!r})
except SystemExit as status:
    assert not status.code
imported = [name for name in {LARGE_MODULES!r} if name in sys.modules]
assert not imported, imported
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_wrong_scenario_is_refused_before_torch_is_imported(quickstart: Path) -> None:
    code = f"""
import sys
from fedsgd.cli import main
try:
    main(["run", {str(quickstart)!r}, "--set", "rounds=0"])
except SystemExit as status:
    assert status.code == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def make_record(number: int, metrics: dict[str, float] | None, seconds: float) -> RoundRecord:
    """Return the record of a round of one client."""
    return RoundRecord(number, 0.1, (0,), (0,), 1000, 1000, 5000, 5000, 70_000, 70_000, None, None, metrics, seconds)


def test_progress_line_estimates_the_remaining_time(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After rounds of 2 s and 4 s, four rounds of 3 s each remain."""
    from fedsgd.scenario.scenario import load

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with terminal.show_progress(load(root / "scenarios" / "quickstart.toml", {"rounds": 6}), quiet=False) as (
        _,
        _,
        on_round,
        *_,
    ):
        assert on_round is not None
        for number, seconds in ((1, 2.0), (2, 4.0)):
            on_round(make_record(number, None, seconds))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "quickstart: round 1/6, up 1 kB, 70× · both ways 6 kB, 23.3×, about 10 s left",
        "quickstart: round 2/6, up 1 kB, 70× · both ways 6 kB, 23.3×, about 12 s left",
    ]


def test_progress_in_a_terminal_is_a_bar(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsgd.scenario.scenario import load

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with terminal.show_progress(load(root / "scenarios" / "quickstart.toml", {"rounds": 6}), quiet=False) as (
        on_engine,
        on_state_budget,
        on_round,
        *_,
    ):
        assert on_engine is not None
        assert on_state_budget is not None
        assert on_round is not None
        on_state_budget(StateBudget(10, 10, 1000, 0, "memory", 2**30))
        on_engine(EngineChoice("captured", "fused", None, "a reason"))
        on_round(make_record(2, {"accuracy": 0.5}, 1.0))
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "engine: captured, fused update: a reason" in output
    assert "client state: at most 10 of 10 clients x 1 kB = 10 kB, in memory (budget 1 GiB)" in output
    assert "2/6" in output
    assert "acc 0.500 · up 1 kB, 70× · both ways 6 kB, 23.3×" in output


def test_empty_label_in_a_comparison_is_refused() -> None:
    result = fedsgd("compare", "=runs/b1")
    assert result.exit_code == 2
    assert result.stderr == "fedsgd: =runs/b1: the label is empty, expected LABEL=PATH, or a path alone\n"


def test_missing_trace_of_a_price_is_named_without_errno(quickstart: Path) -> None:
    assert fedsgd("run", quickstart, *TINY, "--out", "o", "--quiet").exit_code == 0
    result = fedsgd("price", "o", "--trace", "none.csv")
    assert result.stderr == "fedsgd: none.csv: cannot be read (No such file or directory)\n"
