"""Completion in shells: what is offered, that nothing is printed on errors, and the installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from fedsgd.cli import main


def complete(line: str) -> list[str]:
    """Return the completions of a command line in bash, without their types."""
    result = CliRunner(env={"_FEDSGD_COMPLETE": "bash_complete", "COMP_WORDS": line}).invoke(main, prog_name="fedsgd")
    assert (result.exit_code, result.stderr) == (0, "")
    return [item.partition(",")[2] for item in result.stdout.splitlines() if item]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a finished run, a sweep, an unfinished run, and scenarios."""
    for name in ("runs/a-1/summary.json", "runs/a-1/scenario.toml", "runs/b-sweep/sweep.json", "runs/c-1/scenario.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("one.toml", "notes.txt", ".hidden.toml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedsgd expl", ["explain"]),
        ("fedsgd list par", ["participation", "partitioners"]),
        ("fedsgd list [par", ["[participation]"]),
        ("fedsgd explain uplink.err", ["uplink.error_feedback"]),
        ("fedsgd explain top", ["top-k"]),
        ("fedsgd explain fedav", ["fedavg", "fedavgm"]),
        ("fedsgd run x.toml --set upl", ["uplink."]),
        ("fedsgd run x.toml --set uplink.com", ["uplink.compressor=", "uplink.compressor."]),
        ("fedsgd run x.toml --set=data.partition.al", ["data.partition.alpha="]),
        ("fedsgd run x.toml --set uplink.error_feedback=p", ["uplink.error_feedback=persist"]),
        ("fedsgd run x.toml --set evaluation.clients=", ["evaluation.clients=true", "evaluation.clients=false"]),
        ("fedsgd run x.toml --set uplink.compressor.name=to", ["uplink.compressor.name=top-k"]),
        ("fedsgd run x.toml --set uplink.compressor.rules.pat", ["uplink.compressor.rules.pattern="]),
        ("fedsgd sweep x.toml --grid uplink.compressor.values=int8,b", ["uplink.compressor.values=int8,bfloat16"]),
        ("fedsgd certify top-k --set warm_up_", ["warm_up_rounds="]),
        ("fedsgd certify drive --set scale=l", ["scale=least-squares"]),
        ("fedsgd certify power", ["power-sgd"]),
        ("fedsgd price a --network 4g,wi", ["4g,wifi"]),
        ("fedsgd price a --network 4g,4", []),
        ("fedsgd price a --device ras", ["raspberry-pi"]),
        ("fedsgd compare a --tune client.optimizer.l", ["client.optimizer.lr"]),
        ("fedsgd run x.toml --track ml", ["mlflow"]),
        ("fedsgd completion z", ["zsh"]),
        ("fedsgd run ", ["one.toml", "runs/"]),
        ("fedsgd price ", ["runs/a-1", "runs/b-sweep", "runs/c-1/", "runs/"]),
        ("fedsgd price label=runs/a", ["label=runs/a-1"]),
        ("fedsgd price runs/b", ["runs/b-sweep"]),
        ("fedsgd price runs/c-1/", []),
        ("fedsgd price nowhere/", []),
        ("fedsgd explain nothing.here.", []),
        ("fedsgd run x.toml --set nothing=", []),
        ('fedsgd run x.toml --set "uplink.res', ["uplink.residual_factor=", "uplink.residual_rounds="]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_completions_continue_the_last_word(line: str, expected: list[str]) -> None:
    assert sorted(complete(line)) == sorted(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    ["fedsgd explain ", "fedsgd run x.toml --set uplink.compressor.", "fedsgd price a --network ", "fedsgd compare runs/"],
)
def test_completion_imports_no_large_module(line: str, folder: Path) -> None:
    code = """
import atexit, os, sys
atexit.register(lambda: os._exit(3) if {"torch", "flwr", "pyarrow", "rich", "numba"} & set(sys.modules) else None)
from fedsgd.cli import main
main(prog_name="fedsgd")
"""
    environment = {**os.environ, "_FEDSGD_COMPLETE": "bash_complete", "COMP_WORDS": line}
    process = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.strip()


def test_failing_completer_has_no_completions_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        print("text", file=sys.stderr)
        raise OSError("the folder cannot be read")

    monkeypatch.setattr(Path, "iterdir", fail)
    monkeypatch.setattr("fedsgd.scenario.key_search.list_next_keys", fail)
    assert complete("fedsgd run s") == []
    assert complete("fedsgd explain uplink.") == []


def test_completions_in_zsh_and_fish_have_meanings() -> None:
    zsh, fish = (get_completion_class(shell) for shell in ("zsh", "fish"))
    assert zsh is not None
    assert fish is not None
    words = ["run", "x.toml", "--set"]
    (item,) = zsh(main, {}, "fedsgd", "_FEDSGD_COMPLETE").get_completions(words, "uplink.residual_f")
    text = 'factor of the residual for each missed round, under "decay"'
    assert zsh(main, {}, "fedsgd", "_FEDSGD_COMPLETE").format_completion(item) == f"nospace\nuplink.residual_factor=:{text}"
    assert fish(main, {}, "fedsgd", "_FEDSGD_COMPLETE").format_completion(item) == f"nospace,uplink.residual_factor=\t{text}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_valid_in_its_shell(shell: str, tmp_path: Path) -> None:
    script = CliRunner().invoke(main, ["completion", shell]).stdout
    assert f"_FEDSGD_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script)
    process = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_bash_replaces_only_what_follows_the_equals_sign(tmp_path: Path) -> None:
    """bash splits `--set key=val` at "=", so the replies have to leave out the key."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    (tmp_path / "script").write_text(CliRunner().invoke(main, ["completion", "bash"]).stdout)
    program = tmp_path / "fedsgd"
    program.write_text(f'#!{sys.executable}\nprint("plain," + {"uplink.error_feedback=persist"!r})\n')
    program.chmod(0o755)
    line = "fedsgd run x.toml --set uplink.error_feedback=per"
    code = f'. ./script; COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; _fedsgd_completion ./fedsgd; echo "${{COMPREPLY[@]}}"'
    process = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("persist\n", "")


@pytest.mark.parametrize(("shell", "start_file"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_installation_appends_one_line_once(
    shell: str, start_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    (tmp_path / start_file).write_text("alias l=ls")
    script = tmp_path / ".local" / "share" / "fedsgd" / f"completion.{shell}"
    for _ in range(2):
        assert CliRunner().invoke(main, ["completion", shell, "--install"]).exit_code == 0
        assert (tmp_path / start_file).read_text() == f"alias l=ls\n. {script}\n"
    assert script.read_text() == CliRunner().invoke(main, ["completion", shell]).stdout


def test_installation_for_fish_writes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert CliRunner().invoke(main, ["completion", "fish", "--install"]).exit_code == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["fedsgd.fish"]


def test_installation_without_write_access_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    result = CliRunner().invoke(main, ["completion", "bash", "--install"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "cannot be written" in result.stderr
