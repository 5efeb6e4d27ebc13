"""Source files of user modules: imports from the same folder, and folders that every process searches."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import py_compile
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fedsgd
from fedsgd.config.source_files import find_root, is_on_every_path, list_source_files
from fedsgd.errors import ScenarioError
from fedsgd.system.user_files import search_folders, search_scenario_folder


def write_files(folder: Path, **sources: str) -> None:
    """Write sources by name; "__" in a name stands for a folder."""
    for name, source in sources.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_single_file_has_the_modules_that_it_imports(user_folder: Path) -> None:
    write_files(
        user_folder,
        rules="import helper, json, numpy\nfrom tools.first import f\nfrom fedsgd.errors import WireError",
        helper="def f():\n    from deeper import *",
        deeper="import rules",
        unrelated="",
        json="",
        fedsgd__errors="",
        tools__first="from . import second\nfrom .third.inner import x",
        tools__second="import syntax_error",
        tools__third__inner="from ..fourth import y",
        tools__fourth="",
        tools__unused="",
        syntax_error="def",
    )
    (user_folder / "tools" / "__init__.py").touch()
    assert find_root("rules") == user_folder
    assert list(list_source_files("rules", user_folder)) == [
        "deeper.py",
        "helper.py",
        "rules.py",
        "syntax_error.py",
        "tools/__init__.py",
        "tools/first.py",
        "tools/fourth.py",
        "tools/second.py",
        "tools/third/inner.py",
    ]


def test_installed_package_has_only_its_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "site-packages"
    write_files(packages, mine__rules="import mine.other, theirs", mine__other="", theirs="")
    (packages / "mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(packages)
    assert find_root("mine.rules") == packages
    assert list(list_source_files("mine.rules", packages)) == ["mine/__init__.py", "mine/other.py", "mine/rules.py"]
    assert is_on_every_path(packages)


def test_module_without_a_file_has_no_root() -> None:
    assert find_root("sys") is None
    assert find_root("no_such_module_of_a_user") is None


def test_folder_in_pythonpath_is_on_every_path(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_on_every_path(user_folder)
    monkeypatch.setenv("PYTHONPATH", f"/nowhere:{user_folder}/")
    assert is_on_every_path(user_folder)


def test_scenario_folder_is_searched_last_and_removed(tmp_path: Path) -> None:
    path = list(sys.path)
    with search_scenario_folder(tmp_path / "mine.toml"), search_scenario_folder(str(tmp_path / "other.toml")):
        assert sys.path == [*path, str(tmp_path), str(tmp_path)]
    assert sys.path == path
    with search_scenario_folder(None):
        assert sys.path == path


HALF = """
from dataclasses import dataclass
from typing import ClassVar
from fedsgd.compression.operators.topk import TopK

@dataclass(frozen=True)
class Half(TopK):
    name: ClassVar[str] = "half"
    density: float = {density}
"""
SCENARIO = """
name = "own"
rounds = 1
uplink = {{ compressor = "{module}:Half", error_feedback = "persist" }}
data.partition = {{ name = "iid", clients = 2 }}
server.cohort = 2
"""


@pytest.fixture
def write_scenario(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that writes a scenario and its module into a folder; modules are removed at the end."""
    modules = set(sys.modules)

    def write(folder: str, module: str, density: float = 0.5) -> Path:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{module}.py").write_text(HALF.format(density=density))
        (tmp_path / folder / "own.toml").write_text(SCENARIO.format(module=module))
        return tmp_path / folder / "own.toml"

    search_path = list(sys.path)
    yield write
    sys.path[:] = search_path
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["load", "run", "build", "sweep", "plan"])
def test_module_next_to_a_scenario_is_imported(way: str, write_scenario: Callable[..., Path], tmp_path: Path) -> None:
    search_path, scenario = list(sys.path), write_scenario("one", "own_part")
    if way == "load":
        assert type(fedsgd.load(scenario).uplink.compressor).__name__ == "Half"
    elif way == "run":
        assert len(fedsgd.run(scenario).history) == 1
    elif way == "build":
        with fedsgd.build(scenario) as federation:
            assert federation.step(federation.initial_state())[1].round == 1
    elif way == "sweep":
        assert [cell.state for cell in fedsgd.sweep(scenario, out=tmp_path / "sweep").cells] == ["finished"]
    else:
        assert fedsgd.plan(scenario).calibrated_rounds == 1
    assert sys.path == [*search_path, str(scenario.parent)], "the folder stays, because functions may import more later"


def test_module_of_another_scenario_with_the_same_name_is_refused(write_scenario: Callable[..., Path], tmp_path: Path) -> None:
    first, second = write_scenario("one", "own_twin"), write_scenario("two", "own_twin", 0.25)
    fedsgd.load(first)
    with pytest.raises(ScenarioError) as error:
        fedsgd.load(second)
    assert str(error.value) == (
        f'{second}: uplink.compressor.name: cannot import "own_twin": {tmp_path}/two/own_twin.py has the name of '
        f"{tmp_path}/one/own_twin.py, which is imported in its place; rename one of them, or use a process for each"
    )
    fedsgd.load(first)


@pytest.mark.parametrize("module", ["own_shared", "own_package.shared"])
def test_module_of_another_scenario_that_a_module_imports_is_refused(
    module: str, write_scenario: Callable[..., Path], tmp_path: Path
) -> None:
    scenarios = write_scenario("one", "own_first"), write_scenario("two", "own_second")
    shared_file = Path(*module.split(".")).with_suffix(".py")  # own_package has no __init__.py
    for scenario, name, density in zip(scenarios, ("own_first", "own_second"), (0.5, 0.25), strict=True):
        shared = scenario.parent / shared_file
        shared.parent.mkdir(exist_ok=True)
        shared.write_text(HALF.format(density=density))
        (scenario.parent / f"{name}.py").write_text(f"from {module} import Half\n")
    assert fedsgd.load(scenarios[0]).uplink.compressor.density == 0.5  # type: ignore[attr-defined]
    with pytest.raises(ScenarioError) as error:
        fedsgd.load(scenarios[1])
    assert str(error.value) == (
        f'{scenarios[1]}: uplink.compressor.name: cannot import "own_second": {tmp_path}/two/{shared_file} has the name of '
        f"{tmp_path}/one/{shared_file}, which is imported in its place; rename one of them, or use a process for each"
    )


@pytest.mark.parametrize("density", [0.5, 0.25])
def test_installed_package_comes_before_its_source_and_has_to_equal_it(
    density: float, write_scenario: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, scenario = write_scenario("site-packages", "own_installed"), write_scenario("two", "own_installed", density)
    monkeypatch.syspath_prepend(installed.parent)
    if density == 0.5:
        loaded = fedsgd.load(scenario).uplink.compressor
        assert inspect.getfile(type(loaded)) == str(installed.parent / "own_installed.py")
    else:
        with pytest.raises(ScenarioError, match=r"imported in its place; rename one of them, or install the package again$"):
            fedsgd.load(scenario)


def test_module_that_a_function_would_import_from_another_folder_is_refused(write_scenario: Callable[..., Path]) -> None:
    first, second = write_scenario("one", "own_first"), write_scenario("two", "own_later")
    for folder, density in ((first.parent, 0.5), (second.parent, 0.25)):
        (folder / "own_lazy.py").write_text(f"DENSITY = {density}\n")
    fedsgd.load(first)
    (second.parent / "own_later.py").write_text(HALF.format(density=0.5) + "def read():\n    import own_lazy\n")
    with pytest.raises(ScenarioError, match=r"two/own_lazy\.py has the name of .*/one/own_lazy\.py"):
        fedsgd.load(second)
    assert "own_lazy" not in sys.modules


def test_compiled_module_is_the_module_of_the_source_next_to_it(write_scenario: Callable[..., Path]) -> None:
    scenario = write_scenario("one", "own_compiled")
    source = scenario.parent / "own_compiled.py"
    compiled = Path(py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")), doraise=True))
    spec = importlib.util.spec_from_file_location("own_compiled", compiled)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["own_compiled"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert type(fedsgd.load(scenario).uplink.compressor).__module__ == "own_compiled"


def test_folder_of_a_module_stays_on_the_path_after_contexts_that_overlap(tmp_path: Path) -> None:
    (tmp_path / "own_overlap.py").write_text("")
    search_path = list(sys.path)
    first, second = search_folders([tmp_path]), search_folders([tmp_path])
    first.__enter__()
    importlib.import_module("own_overlap")
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert sys.path == [*search_path, str(tmp_path)]
    sys.path[:] = search_path
    del sys.modules["own_overlap"]


def test_module_of_another_scenario_is_refused_during_a_run_of_the_first(write_scenario: Callable[..., Path]) -> None:
    first, second = write_scenario("one", "own_twin"), write_scenario("two", "own_twin", 0.25)
    errors = []

    def load_second(record: object) -> None:
        with pytest.raises(ScenarioError, match="which is imported in its place") as error:
            fedsgd.load(second)
        errors.append(error)

    fedsgd.run(first, on_round=load_second)
    assert len(errors) == 1


def test_folders_with_the_same_file_under_two_paths_are_the_same(write_scenario: Callable[..., Path], tmp_path: Path) -> None:
    scenario = write_scenario("one", "own_linked")
    (tmp_path / "two").mkdir()
    for name in ("own.toml", "own_linked.py"):
        os.link(tmp_path / "one" / name, tmp_path / "two" / name)
    assert fedsgd.load(scenario) == fedsgd.load(tmp_path / "two" / "own.toml")


@pytest.mark.slow
def test_scenario_that_was_loaded_from_a_file_keeps_its_module(write_scenario: Callable[..., Path], tmp_path: Path) -> None:
    scenario = fedsgd.load(write_scenario("one", "own_kept")).with_settings({"rounds": 2, "checkpoint.every": 1})
    assert "own_kept:Half" in scenario.to_toml()
    result = fedsgd.run(scenario, out=tmp_path / "run", execution=fedsgd.ExecutionConfig(workers=2))
    assert [cell.state for cell in fedsgd.sweep(scenario, out=tmp_path / "sweep").cells] == ["finished"]
    assert len(result.history) == 2
    assert len(fedsgd.resume(tmp_path / "run", rounds=3).history) == 3


@pytest.mark.parametrize("folders", [1, 4])
def test_threads_that_load_scenarios_find_the_modules_of_their_folders(
    tmp_path: Path, write_scenario: Callable[..., Path], folders: int
) -> None:
    before, paths = sys.path.copy(), []
    for name in range(folders):
        write_scenario(str(name), "own_start")
    for i in range(40):
        folder = tmp_path / str(i % folders)
        (folder / f"own_thread{folders}_{i}.py").write_text(HALF.format(density=0.5))
        paths.append(folder / f"{i}.toml")
        paths[-1].write_text(SCENARIO.format(module=f"own_thread{folders}_{i}"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(fedsgd.load, paths))) == 40
    finally:
        sys.setswitchinterval(interval)
    new = [entry for entry in sys.path if entry not in before]
    assert sorted(new) == sorted(str(tmp_path / str(i)) for i in range(folders))


@pytest.mark.slow
def test_threads_leave_the_path_as_it_was() -> None:
    def search(i: int) -> None:
        with search_folders([f"/absent/{i % 2}"] * 3):
            pass

    before, interval = sys.path.copy(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(search, range(1500)))
    finally:
        sys.setswitchinterval(interval)
    assert sys.path == before
