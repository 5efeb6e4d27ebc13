"""Modules of the user that travel in the app: their files, and the modules that are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.flower.deployment import app_bundle
from fedsgd.flower.deployment.app_bundle import MODULE_FOLDER
from fedsgd.flower.deployment.user_modules import read_user_modules
from fedsgd.scenario.scenario import Scenario
from tests.flower.user_source import write_rules

Make = Callable[..., Scenario]


def write_package(folder: Path, name: str) -> dict[str, Any]:
    """Write a package with data around the rules, and return settings of a scenario with its classes."""
    settings = write_rules(folder / name, "rules")
    (folder / name / "rules.py").write_text(
        (folder / name / "rules.py").read_text().replace("from rules_helper", "from .inner.helper")
    )
    (folder / name / "inner").mkdir()
    (folder / name / "rules_helper.py").rename(folder / name / "inner" / "helper.py")
    for file in ("__init__.py", "unused.py", "table.json", "notes.txt", ".hidden.py", "test_rules.py", "inner/__init__.py"):
        (folder / name / file).write_text("")
    return {key: f"{name}.{path}" for key, path in settings.items()}


def test_scenario_of_fedsgds_classes_has_no_user_modules(scenario: Make) -> None:
    assert read_user_modules(scenario()) == {}
    assert read_user_modules(scenario({"model.module": "torch.nn:Identity"})) == {}


def test_single_file_travels_with_the_files_that_it_imports(scenario: Make, user_folder: Path) -> None:
    settings = write_rules(user_folder, "bundled_rules")
    (user_folder / "unrelated.py").touch()
    modules = read_user_modules(scenario(settings))
    assert modules == {name: (user_folder / name).read_bytes() for name in ("bundled_rules.py", "bundled_rules_helper.py")}


def test_package_travels_with_its_whole_folder(scenario: Make, user_folder: Path) -> None:
    modules = read_user_modules(scenario(write_package(user_folder, "bundled_package")))
    assert sorted(modules) == [
        f"bundled_package/{name}"
        for name in ("__init__.py", "inner/__init__.py", "inner/helper.py", "rules.py", "table.json", "unused.py")
    ]


def test_module_that_every_process_can_import_does_not_travel(
    scenario: Make, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scenario(write_rules(user_folder, "shared_rules"))
    assert read_user_modules(s) != {}
    monkeypatch.setenv("PYTHONPATH", str(user_folder))
    assert read_user_modules(s) == {}


def link_to_folder(folder: Path, outside: Path) -> None:
    (folder / "data").symlink_to(outside)


def link_to_file(folder: Path, outside: Path) -> None:
    (folder / "linked.py").symlink_to(outside / "linked.py")


def write_large_file(folder: Path, outside: Path) -> None:
    (folder / "large.json").write_bytes(bytes(2**20 + 1))


def write_many_files(folder: Path, outside: Path) -> None:
    for number in range(9):
        (folder / f"{number}.json").write_bytes(bytes(2**20))


def import_omitted_file(folder: Path, outside: Path) -> None:
    (folder / "unused.py").write_text("import broken_package.test_rules")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_to_folder, r"broken_package/data: this link to \S+outside cannot travel in the app; copy its target, or install"),
        (link_to_file, r"broken_package/linked.py: this link to \S+outside/linked.py cannot travel in the app"),
        (
            write_large_file,
            r"broken_package/large.json: got 1,048,577 bytes, expected at most 1,048,576 for a file that travels",
        ),
        (
            write_many_files,
            r"modules that travel in the app: got 9,\d+,\d+ bytes, expected at most 8,388,608; install the package",
        ),
        (import_omitted_file, r"broken_package/test_rules.py: Flower's app omits files with such a name; rename the module"),
    ],
)
def test_file_that_cannot_travel_is_an_error_of_one_line(
    scenario: Make, user_folder: Path, tmp_path: Path, change: Callable[[Path, Path], None], message: str
) -> None:
    settings = write_package(user_folder, "broken_package")
    rules = user_folder / "broken_package" / "rules.py"
    rules.write_text(f"{rules.read_text()}\nfrom . import unused\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "linked.py").touch()
    s = scenario(settings)
    change(user_folder / "broken_package", tmp_path / "outside")
    with pytest.raises(ScenarioError, match=message) as caught:
        read_user_modules(s)
    assert "\n" not in str(caught.value)


def test_linked_module_is_refused_and_link_within_a_package_travels(scenario: Make, user_folder: Path, tmp_path: Path) -> None:
    settings = write_package(user_folder, "linking_package")
    (user_folder / "linking_package" / "again.json").symlink_to(user_folder / "linking_package" / "table.json")
    assert "linking_package/again.json" in read_user_modules(scenario(settings))
    shutil.move(user_folder / "linking_package", tmp_path / "elsewhere")
    (user_folder / "linking_package").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ScenarioError, match=r"linking_package: this link to \S+elsewhere cannot travel"):
        read_user_modules(scenario(settings))


def test_module_without_a_source_is_refused(scenario: Make, user_folder: Path) -> None:
    settings = write_rules(user_folder, "compiled_rules")
    s = scenario(settings)
    (user_folder / "compiled_rules.py").unlink()
    with pytest.raises(ScenarioError, match=r"compiled_rules: its source is not in .*, so it cannot travel in the app"):
        read_user_modules(s)


@pytest.mark.slow
def test_files_in_the_app_are_imported_after_installed_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"app_rules.py": b"VALUE = 3", "json.py": b"", "app_package/deep/inner.py": b"VALUE = 4"}
    app = app_bundle.write_app(tmp_path / "app", {"a": 1}, modules)
    assert tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"] == {"a": 1}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fedsgd.flower.state_directory import add_user_folders_to_path\n"
        "add_user_folders_to_path(); add_user_folders_to_path()\n"
        "import json, app_rules\nfrom app_package.deep import inner\n"
        "print(json.dumps([app_rules.VALUE, inner.VALUE, sys.path.count(sys.argv[2])]))"
    )
    command = [sys.executable, "-c", code, str(app), str(app / MODULE_FOLDER)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "FEDSGD_FOLDER": ""})
    assert json.loads(result.stdout) == [3, 4, 1]
