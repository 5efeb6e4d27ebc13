"""Structure of the package: floors, cycles, libraries, lengths, frozen components."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, FrozenInstanceError, fields
from inspect import isfunction, signature

import pytest

import fedsgd
from fedsgd.scenario.parsing import REGISTRIES
from tests import structure
from tests.structure import FLOORS, Module

LIBRARIES: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "numba": ("numerics.kernels",),
    "torch": (
        "aggregation.server_step",
        "compression.kernels.tensor_forms",
        "experiment.builder",
        "experiment.federation",
        "experiment.final_model",
        "experiment.options",
        "experiment.result",
        "experiment.resume",
        "experiment.run_identity",
        "experiment.runner",
        "experiment.summary",
        "experiment.trained_model",
        "models",
        "optim",
        "runtime.ranks",
        "storage.run_directory",
        "system.compute_device",
        "system.torch_determinism",
        "system.torch_threads",
        "testing",
        "training",
    ),
    "msgspec": ("config.component",),
    "tomli_w": ("scenario.scenario",),
    "click": ("cli",),
    "rich": ("cli.terminal",),
    "pyarrow": ("data.datasets", "experiment.ledger", "storage.parquet", "storage.table_recovery"),
    "PIL": ("data.datasets",),
    "pandas": ("storage.run_directory", "experiment.result", "analysis.runs"),
    "matplotlib": ("analysis.figures",),
    "scipy": ("analysis.seed_statistics",),
    "jinja2": ("analysis.page.html",),
    "pint": ("config.quantities",),
    "safetensors": ("experiment.checkpoints.tensor_file", "storage.run_directory"),
    "flwr": ("flower",),
    "cryptography": ("flower.deployment.tls",),
    "psutil": ("flower.deployment",),
    "datasets": ("data",),
    "flwr_datasets": ("data.partitioners.flwr_datasets",),
    "submitit": ("sweeps.launcher",),
    "tensorboard": ("trackers.tensorboard",),
    "mlflow": ("trackers.mlflow",),
    "pytest": ("testing.suite",),
}
"""Library → modules and packages of fedsgd that may import it. No other library may be imported."""
EXTRAS = {
    "datasets": "huggingface",
    "flwr-datasets": "huggingface",
    "pandas": "pandas",
    "submitit": "slurm",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "pytest": "test",
}
DISTRIBUTIONS = {"PIL": "pillow"}
MAX_TOP_ENTRIES = 30
MAX_FLOORS = 14
MAX_LINES = 320
MAX_FUNCTION_LINES = 45
"""Limits of a module and of a function, docstrings not counted."""
MAX_PARAMETERS = 8
"""Limit of a function that fedsgd exports."""


@pytest.mark.slow
def test_package_has_few_entries_and_floors() -> None:
    assert len(structure.top_entries()) <= MAX_TOP_ENTRIES
    assert len(FLOORS) <= MAX_FLOORS
    assert {module.entry for module in structure.modules()} == {name for floor in FLOORS for name in floor}


def test_page_on_the_architecture_has_the_floors() -> None:
    docs = structure.PACKAGE / "docs"
    rows = re.findall(
        r"^\| (\d+) \| ((?:`\w+`(?:, )?)+) \|", (docs / "design" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [(int(number), re.findall(r"\w+", names)) for number, names in rows] == [
        (number, [*names]) for number, names in enumerate(FLOORS, start=1)
    ]
    labels = re.findall(r">(\w+)</text>", (docs / "figures" / "layers.svg").read_text(encoding="utf-8"))
    assert [label for label in labels if not label.isdecimal()] == [name for names in reversed(FLOORS) for name in names]


@pytest.mark.slow
def test_module_imports_only_its_package_and_lower_floors() -> None:
    assert structure.upward_imports() == []


@pytest.mark.slow
def test_functions_outside_cli_import_no_own_modules() -> None:
    assert structure.inner_imports() == []


def test_only_validation_assigns_fields_of_frozen_objects() -> None:
    """Settings and user data are converted when they are validated; a proxy of Flower's strategies assigns to the strategy."""
    names = {module.name for module in structure.modules() if "object.__setattr__(" in module.path.read_text(encoding="utf-8")}
    assert names == {"fedsgd.config.component", "fedsgd.data.base", "fedsgd.flower.app.inner_strategy"}


def test_modules_have_no_import_cycle() -> None:
    assert structure.cycles() == []


@pytest.mark.slow
def test_class_names_are_unique() -> None:
    assert structure.duplicate_classes() == {}


def imported_libraries(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and the line of each import, `require_extra("name", ...)` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import, expected an absolute one"
            yield str(node.module).split(".")[0], node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require_extra":
            yield ast.literal_eval(node.args[0]).split(".")[0], node.lineno


@pytest.mark.slow
def test_library_is_imported_by_few_modules() -> None:
    for module in structure.modules():
        check_imports(module)


def check_imports(module: Module) -> None:
    name = module.name.removeprefix("fedsgd").removeprefix(".")
    for library, line in imported_libraries(module.tree):
        if library == "fedsgd" or library in sys.stdlib_module_names:
            continue
        assert library in LIBRARIES, f"{module.path}:{line}: {library} is not in the table of libraries"
        allowed = LIBRARIES[library]
        assert any(not part or f"{name}.".startswith(f"{part}.") for part in allowed), (
            f"{module.path}:{line}: imports {library}, expected only in {', '.join(allowed)}"
        )


def test_dependencies_of_the_project_are_the_imported_libraries() -> None:
    project = tomllib.loads((structure.ROOT / "pyproject.toml").read_text())["project"]
    declared = {dependency.split(">")[0].split("<")[0].split("=")[0].strip() for dependency in project["dependencies"]}
    for library, extra in EXTRAS.items():
        assert any(entry.startswith(library) for entry in project["optional-dependencies"][extra])
    assert declared == {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in LIBRARIES} - {*EXTRAS}


@pytest.mark.slow
def test_module_and_its_functions_are_short() -> None:
    for module in structure.modules():
        check_lengths(module)


def check_lengths(module: Module) -> None:
    lines = len(module.path.read_text(encoding="utf-8").splitlines()) - docstring_lines(module.tree)
    assert lines <= MAX_LINES, f"{module.path} has {lines} lines"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)
            assert lines <= MAX_FUNCTION_LINES, f"{module.path}:{node.lineno}: {node.name} has {lines} lines"


def docstring_lines(tree: ast.AST) -> int:
    """Return the number of lines of the docstrings in a tree."""
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [text for node in documented if (text := ast.get_docstring(node, clean=False))]
    return sum(len(text.split("\n")) for text in docstrings)


@pytest.mark.slow
def test_code_uses_no_global_generator() -> None:
    for module in structure.modules():
        check_generators(module)


def check_generators(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert name not in ("torch.manual_seed", "np.random.seed", "random.seed"), f"{module.path}:{node.lineno}"
            assert not name.startswith("np.random.") or name.split(".")[2] in ("Generator", "Philox", "SeedSequence"), (
                f"{module.path}:{node.lineno}: {name}"
            )


def create_example(cls: type) -> object:
    """Create a component with its defaults, and a word for each key without a default."""
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return cls(**dict.fromkeys(required, "word"))


def test_components_are_frozen() -> None:
    for registry in REGISTRIES.values():
        for name in registry:
            component = create_example(registry[name])
            for field in fields(component):
                with pytest.raises(FrozenInstanceError):
                    setattr(component, field.name, None)


def test_exported_functions_have_few_parameters() -> None:
    functions = {name: getattr(fedsgd, name) for name in fedsgd.__all__ if isfunction(getattr(fedsgd, name))}
    assert {"run", "sweep", "deploy"} <= set(functions)
    counts = {name: len(signature(function).parameters) for name, function in functions.items()}
    assert {name: count for name, count in counts.items() if count > MAX_PARAMETERS} == {}
