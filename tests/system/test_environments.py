"""Environments of fedsgd: streams, encodings, disks, folders, settings of the user, starts of the script."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

import fedsgd
from fedsgd.analysis.runs import load_run
from fedsgd.cli import main
from fedsgd.cli.options import _parse_run_spec
from fedsgd.cli.streams import echo_json, make_streams_safe
from fedsgd.cli.tracking import print_warnings
from fedsgd.errors import OutputError, ReportError, RunError, ScenarioError
from fedsgd.numerics.kernels import Kernel
from fedsgd.scenario.scenario import Scenario, load, parse_scenario
from fedsgd.storage import parquet, run_directory
from fedsgd.storage.parquet import TableWriter
from fedsgd.system.forkserver import hide_missing_main
from fedsgd.system.user_files import expand_user_path, read_text

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
QUICK = 'name = "q"\nrounds = 2\n[server]\ncohort = 2\n[data.partition]\nname = "iid"\nclients = 4\n'


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run_commands(*lines: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run commands in a new process; its exit status is 0 if all succeed."""
    script = f"from fedsgd.cli import main\nfor line in {lines!r}: main(line, standalone_mode=False)"
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=False, timeout=120)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """Return a tiny scenario, which is also in q.toml of the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("q.toml").write_text(QUICK)
    return load("q.toml")


# ---------------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "koi8-r", "cp932", "utf-8"])
def test_safe_stream_in_any_encoding_is_readable(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding))
    make_streams_safe()
    text = "70.0× · −1 µs │ é ∞ 10² β"
    print(text, flush=True)
    written = data.getvalue().decode(encoding).rstrip()
    assert "?" not in written
    if encoding == "utf-8":
        assert written == text
    if encoding == "ascii":
        assert written == "70.0x . -1 us | e inf 10^2 beta"


def test_safe_stream_writes_the_bytes_of_a_name_that_is_not_text(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="utf-8"))
    make_streams_safe()
    print(os.fsdecode(b"a\xffb"), flush=True)
    assert data.getvalue() == b"a\xffb\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
def test_json_in_any_encoding_is_equal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding))
    value = {"label": "top-k 1 % × é 😀"}
    echo_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(data.getvalue().decode(encoding)) == value


@pytest.mark.slow
@pytest.mark.nightly
def test_commands_on_ascii_streams_succeed(quick: Scenario) -> None:
    fedsgd.run(quick, out="o")
    price = ["price", "o", "--network", "4g", "--target", "0.01"]
    process = run_commands(["compare", "o"], price, ["partition", "q.toml"], ["list"], PYTHONIOENCODING="ascii")
    assert process.returncode == 0, process.stderr
    assert process.stdout.isascii()
    assert b"1x" in process.stdout, "the ratio of times in a price"


@pytest.mark.parametrize("name", [[], *([name] for name in main.commands)])
def test_help_of_every_command_is_ascii(name: list[str]) -> None:
    assert invoke(*name, "--help").stdout.isascii()


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [["list", "models"], ["--help"], ["--version"], ["run", "--help"]])
def test_output_to_a_full_device_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        run = [sys.executable, "-m", "fedsgd", *command]
        process = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert process.returncode == 2
    assert process.stderr.decode().splitlines() == [f"fedsgd: standard output: {os.strerror(errno.ENOSPC)}"]


# ------------------------------------------------------------------------------------------------------------- files of the user


@pytest.mark.slow
def test_scenario_and_methods_with_byte_order_mark_are_read(quick: Scenario) -> None:
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf" + QUICK.replace("\n", "\r\n").encode())
    Path("methods.toml").write_bytes(b'\xef\xbb\xbf[dense]\nuplink.compressor.name = "dense"\n')
    assert load("bom.toml") == quick
    result = fedsgd.sweep("bom.toml", methods="methods.toml", out="s")
    assert [(cell.label, cell.state) for cell in result.cells] == [("dense", "finished")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (QUICK.encode("utf-16"), "is UTF-16, expected UTF-8 text"),
        ('name = "q"\n# caf\xe9\n'.encode("latin-1"), "line 2: byte 0xe9 is not UTF-8, expected UTF-8 text"),
    ],
)
def test_scenario_in_another_encoding_is_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_bytes(data)
    with pytest.raises(ScenarioError, match=message):
        load(path)
    with pytest.raises(ValueError, match=message):
        read_text(path)
    result = invoke("sweep", path, "--methods", path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_home_folder_in_paths_is_expanded(quick: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "q.toml").write_text(QUICK)
    assert fedsgd.run("~/q.toml", out="~/python").out == home / "python"
    assert invoke("run", "~/q.toml", "--quiet", "--out=~/cli").exit_code == 0
    assert fedsgd.sweep("~/q.toml", out="~/sweep").out == home / "sweep"
    assert invoke("compare", "~/cli", "b=~/python", "--out=~/table.csv").exit_code == 0
    assert {path.name for path in home.iterdir()} == {"q.toml", "python", "cli", "sweep", "table.csv"}
    assert not Path("~").exists()
    with pytest.raises(ScenarioError, match="home folder ~nobody-of-this-name does not exist"):
        expand_user_path("~nobody-of-this-name/x")


def test_label_with_equals_sign_is_the_longest_with_an_existing_path(quick: Scenario) -> None:
    for folder in ("runs/x", "b=runs/x", "whole=x"):
        Path(folder).mkdir(parents=True)
    assert _parse_run_spec("a=b=c=runs/x") == ("a=b=c", Path("runs/x"))
    assert _parse_run_spec("a=b=runs/x") == ("a=b", Path("runs/x"))
    assert _parse_run_spec("whole=x") == Path("whole=x")
    assert _parse_run_spec("a=b=nowhere") == ("a", Path("b=nowhere"))
    assert _parse_run_spec("runs/x") == Path("runs/x")


# ------------------------------------------------------------------------------------------------------------------- matplotlib


@pytest.mark.nightly
@pytest.mark.slow
def test_pictures_under_user_settings_have_equal_bytes(quick: Scenario) -> None:
    Path("rc").mkdir()
    Path("rc/matplotlibrc").write_text("font.size: 30\ntext.usetex: True\nsavefig.dpi: 20\nsvg.fonttype: none\n")
    fedsgd.run(quick, out="o")
    backend, folder = "module://no_such_module.backend", str(Path("rc").absolute())
    settings: tuple[dict[str, str], ...] = ({}, {"MPLBACKEND": backend, "MPLCONFIGDIR": folder})
    images = []
    for number, environment in enumerate(settings):
        out = f"figures-{number}"
        picture = ["partition", "q.toml", "--picture", f"{number}.svg"]
        process = run_commands(picture, ["report", "o", "--network", "4g", "--format", "svg", "--out", out], **environment)
        assert process.returncode == 0, process.stderr
        images.append([Path(f"{number}.svg").read_bytes(), *(path.read_bytes() for path in sorted(Path(out).iterdir()))])
    assert len(images[0]) > 3
    assert images[1] == images[0]


@pytest.mark.slow
def test_import_of_pictures_keeps_the_users_backend(quick: Scenario) -> None:
    script = "import fedsgd.analysis.figures.partition, matplotlib, os; print(matplotlib.rcParams['backend'], os.environ['MPLBACKEND'])"
    env = {**os.environ, "MPLBACKEND": "svg"}
    process = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.split() == ["svg", "svg"]


# -------------------------------------------------------------------------------------------------------------------- processes


SCRIPT = """
import fedsgd
from fedsgd.scenario.scenario import load
if __name__ == "__main__":
    print(fedsgd.run(load("q.toml"), execution=fedsgd.ExecutionConfig(workers=2)).summary["params_sha256"])
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_workers_of_a_script_on_standard_input_give_the_same_digest(quick: Scenario) -> None:
    process = subprocess.run([sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [fedsgd.run(quick).summary["params_sha256"]]


def test_main_script_without_a_file_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.touch()
    main_module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main_module)
    for path, expected in ((str(tmp_path / "<stdin>"), None), (str(script), str(script))):
        main_module.__file__ = path
        with hide_missing_main():
            assert get_preparation_data("worker").get("init_main_from_path") == expected
        assert main_module.__file__ == path


@pytest.mark.slow
def test_run_without_a_temporary_folder_stores_states_in_memory(quick: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_without_folder() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", fail_without_folder)
    settings = {"uplink.compressor.name": "top-k", "uplink.error_feedback": "persist"}
    result = fedsgd.run(quick.with_settings(settings))
    assert result.summary["states"]["place"] == "memory"
    with pytest.raises(ScenarioError, match=r"names no folder on disk"):
        fedsgd.run(quick.with_settings({**settings, "state.store": "disk"}))
    monkeypatch.setattr("fedsgd.experiment.runner.run", lambda *_, **__: fail_without_folder())
    result_of_command = invoke("run", "q.toml", "--quiet", "--out", "o")
    assert (result_of_command.exit_code, len(result_of_command.stderr.splitlines())) == (2, 1)
    assert "set TMPDIR" in result_of_command.stderr


def test_kernel_without_a_writable_cache_runs_in_python() -> None:
    def add(x: int) -> int:
        return x + 1

    def fail_to_cache(x: int) -> int:
        raise FULL

    kernel = Kernel(add, add)
    kernel._implementation = fail_to_cache
    assert kernel(1) == 2
    assert kernel(2) == 3


# --------------------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def full_disk_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a disk that is full when tables are merged."""

    def full(path: Path, *_: object, **__: object) -> object:
        path.write_bytes(b"PAR1")
        raise FULL

    monkeypatch.setattr(parquet.pq, "ParquetWriter", full)


@pytest.mark.slow
@pytest.mark.usefixtures("full_disk_at_the_end")
def test_full_disk_at_the_end_saves_parameters_summary_and_segments(quick: Scenario) -> None:
    with pytest.raises(OutputError) as error:
        fedsgd.run(quick, out="o")
    message = str(error.value)
    assert "\n" not in message
    assert "o/ledger.parquet: cannot be written (No space left on device) as one file: it stays a folder" in message
    assert message.endswith("safe in o: params.safetensors, summary.json")
    digest = fedsgd.run(quick).summary["params_sha256"]
    assert json.loads(Path("o/summary.json").read_text())["params_sha256"] == digest
    assert sum(array.size for array in load_file("o/params.safetensors").values()) == 4810
    assert sorted(p.name for p in Path("o").iterdir() if p.name.startswith(".")) == []
    run = load_run(Path("o"))
    assert run.n_rounds == 2
    frames = run.summary["uplink"]["frames"] + run.summary["downlink"]["frames"]
    assert pq.read_table("o/ledger.parquet").num_rows == frames == parquet.count_rows(Path("o/ledger.parquet"))
    assert invoke("price", "o", "--network", "4g").exit_code == 0
    assert invoke("run", "q.toml", "--quiet", "--out", "p").exit_code == 2


def test_full_disk_for_parameters_saves_summary_and_tables(quick: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_fully(file: BinaryIO, data: bytes) -> None:
        if str(file.name).endswith(".params.safetensors.partial"):
            file.write(data[:100])
            raise FULL
        file.write(data)

    monkeypatch.setattr(run_directory, "write_fully", write_fully)
    with pytest.raises(OutputError, match=r"params\.safetensors: cannot be written .*; safe in o: summary\.json, ledger\.parq"):
        fedsgd.run(quick, out="o")
    assert sorted(p.name for p in Path("o").iterdir()) == ["ledger.parquet", "rounds.parquet", "scenario.toml", "summary.json"]


@pytest.mark.slow
def test_full_disk_for_segments_is_an_error_with_the_lost_rows(quick: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table = pq.write_table

    def full_later(table: object, path: Path, **options: object) -> None:
        if path.name != ".segment-000000.parquet":
            raise FULL
        write_table(table, path, **options)

    monkeypatch.setattr(parquet.pq, "write_table", full_later)
    with pytest.raises(OutputError, match=r"it has 1 of 2 rows; safe in o: params\.safetensors, summary\.json"):
        fedsgd.run(quick, out="o")
    with pytest.raises(ReportError, match=r"rounds\.parquet: has 1 rounds, expected 2, as summary\.json says"):
        load_run(Path("o"))
    monkeypatch.setattr(parquet.pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(FULL))
    with pytest.raises(
        OutputError, match=r"^p/ledger\.parquet: cannot be written \(No space left on device\): it has 0 of 6 rows$"
    ):
        fedsgd.run(quick, out="p")


@pytest.mark.usefixtures("full_disk_at_the_end")
def test_error_of_a_run_is_not_replaced_by_that_of_a_full_disk(quick: Scenario) -> None:
    with pytest.raises(RunError, match="round 1, client") as error:
        fedsgd.run(quick.with_settings({"client.optimizer.lr": 1e30}), out="o")
    assert any("ledger.parquet: cannot be written" in note for note in error.value.__notes__)


def test_tracker_thread_on_a_full_disk_prints_no_traceback() -> None:
    def fail(error: Exception) -> None:
        raise error

    for error, shown in ((FULL, False), (ValueError("own"), True)):
        printed: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", printed.append)
            with print_warnings():
                thread = threading.Thread(target=fail, args=(error,))
                thread.start()
                thread.join()
        assert bool(printed) == shown


def test_rows_of_a_failed_segment_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TableWriter(tmp_path / "t.parquet", {"n": int})
    table.append({"n": 1})
    with monkeypatch.context() as full:
        full.setattr(parquet.pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(FULL))
        with pytest.raises(OutputError, match="it has 0 of 1 rows"):
            table.flush(force=True)
    table.append({"n": 2})
    table.close()
    assert pq.read_table(tmp_path / "t.parquet")["n"].to_pylist() == [1, 2]


@pytest.mark.slow
def test_cell_of_a_sweep_without_parameters_is_run_again(quick: Scenario) -> None:
    def states() -> list[str]:
        folders: list[str] = []
        fedsgd.sweep(quick, out="s", callbacks=fedsgd.SweepCallbacks(on_cell=lambda _, cell, __: folders.append(cell.folder)))
        return folders

    assert len(states()) == 1
    assert states() == []
    (folder,) = (path.parent for path in Path("s").rglob("summary.json"))
    (folder / "params.safetensors").unlink()
    assert len(states()) == 1
    TableWriter(folder / "again.parquet", {"round": int}).close()
    (folder / "again.parquet").replace(folder / "ledger.parquet")
    assert len(states()) == 1


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_interrupted_write_leaves_no_partial_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(path: Path, target: Path) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", replace)
    expected = OutputError if error is FULL else KeyboardInterrupt
    with pytest.raises(expected):
        run_directory.write_atomically(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize(
    ("key", "least", "most", "alternative"),
    [
        ("client.batch_size", 1, 2**31 - 1, ' or "full"'),
        ("client.steps", 1, 2**31 - 1, ", or the key left out"),
        ("rounds", 1, 2**31 - 1, ""),
        ("engine.stack", 1, 2**31 - 1, ", or the key left out"),
        ("evaluation.every", 1, 2**31 - 1, ""),
        ("seed", 0, 2**63 - 1, ""),
    ],
)
def test_integer_above_its_bound_is_rejected_with_the_key(key: str, least: int, most: int, alternative: str) -> None:
    quick = parse_scenario({"name": "q"})
    assert quick.with_settings({key: most})
    for value in (most + 1, 10**22):
        with pytest.raises(
            ScenarioError, match=rf"^{key}: expected a whole number from {least} to {most}{alternative}, got {value}$"
        ):
            quick.with_settings({key: value})


@pytest.mark.parametrize("text", ["1" * 5000, "0x" + "f" * 9000, "1" * 400])
def test_integer_with_too_many_digits_is_one_line(text: str, quick: Scenario) -> None:
    Path("long.toml").write_text(f'name = "q"\nrounds = {text}\n')
    for result in (invoke("run", "long.toml"), invoke("run", "q.toml", "--set", f"rounds={text}")):
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "q.toml", "--workers", str(10**22)],
        ["sweep", "q.toml", "--seeds", str(10**22)],
        ["sweep", "q.toml", "--jobs", str(10**22)],
        ["flower", "q.toml", "--nodes", str(10**22)],
        ["flower", "q.toml", "--nodes", "1", "--round-seconds", "inf"],
        ["run", "q.toml", "--seed", str(10**22)],
        ["certify", "top-k", "--data", "gaussian", "--size", str(10**22)],
    ],
)
def test_number_option_out_of_bounds_is_rejected(arguments: list[str], quick: Scenario) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "call",
    [
        lambda q, n: fedsgd.run(q, execution=fedsgd.ExecutionConfig(workers=n)),
        lambda q, n: fedsgd.sweep(q, seeds=n),
        lambda q, n: fedsgd.sweep(q, execution=fedsgd.SweepConfig(jobs=n)),
    ],
)
def test_number_of_processes_in_python_out_of_bounds_is_rejected(
    call: Callable[[Scenario, int], object], quick: Scenario
) -> None:
    number = "10000000000000000000000"
    message = rf"(got {number}, expected .* from 1 to \d+|expected a whole number from 1 to \d+, got {number})$"
    with pytest.raises(ScenarioError, match=message):
        call(quick, 10**22)
