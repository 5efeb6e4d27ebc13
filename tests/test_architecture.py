"""The house: who may import whom, one door per dependency, and modules that fit in a head."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedsgd"

# Lowest first. A module may import from its own floor's package and from floors below.
FLOORS = [
    ["errors", "_version"],
    ["system"],
    ["numerics", "config"],
    ["storage", "data", "optim", "wire"],
    ["models", "network", "sampling", "compression"],
    ["training"],
    ["federation"],
    ["runtime", "scenario"],
    ["trackers"],
    ["experiment"],
    ["sweeps", "certification", "flower"],
    ["analysis"],
    ["cli"],
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

# The few modules that may import each dependency; anything not named here may not be imported at all.
DOORS = {
    "numpy": None,
    "numba": {"numerics"},
    "torch": {"system", "models", "optim", "training", "experiment", "storage"},
    "msgspec": {"config"},
    "tomli_w": {"scenario"},
    "click": {"cli"},
    "rich": {"cli"},
    "pyarrow": {"storage", "experiment", "data"},
    "PIL": {"data"},
    "matplotlib": {"analysis"},
    "jinja2": {"analysis"},
    "pint": {"config"},
    "safetensors": {"storage"},
    "sklearn": {"data"},
    "flwr": {"flower"},
    "cryptography": {"flower"},
    "psutil": {"flower"},
    "datasets": {"data"},
    "flwr_datasets": {"data"},
    "tensorboard": {"trackers"},
    "mlflow": {"trackers"},
}
EXTRAS = {"datasets": "huggingface", "flwr-datasets": "huggingface", "tensorboard": "tensorboard", "mlflow": "mlflow"}
MAX_LINES = 320
MAX_FUNCTION_LINES = 45
EXEMPT = {"__init__", "__main__"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        yield name, path, ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute, so that floors can be read off them"
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"fedsgd.{a.name}" for a in node.names] if node.module == "fedsgd" else [node.module]
            yield from ((name, node.lineno) for name in names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need":
            yield ast.literal_eval(node.args[0]), node.lineno


MODULES = list(modules())


@pytest.mark.parametrize(
    ("name", "path", "tree"), MODULES, ids=lambda v: str(v.relative_to(PACKAGE)) if isinstance(v, Path) else ""
)
def test_a_module_imports_only_from_floors_below(name: str, path: Path, tree: ast.Module) -> None:
    if name in EXEMPT:
        return
    assert name in FLOOR, f"{path}: give {name} a floor"
    for imported, line in imports(tree):
        if imported.split(".")[0] == "fedsgd" and len(imported.split(".")) > 1:
            other = imported.split(".")[1]
            heights = f"{path}:{line}: {name} (floor {FLOOR[name]}) imports {other} (floor {FLOOR[other]})"
            assert other == name or FLOOR[other] < FLOOR[name], heights


@pytest.mark.parametrize(
    ("name", "path", "tree"), MODULES, ids=lambda v: str(v.relative_to(PACKAGE)) if isinstance(v, Path) else ""
)
def test_each_dependency_has_its_doors(name: str, path: Path, tree: ast.Module) -> None:
    for imported, line in imports(tree):
        top = imported.split(".")[0]
        if top == "fedsgd" or top in sys.stdlib_module_names:
            continue
        assert top in DOORS, f"{path}:{line}: {top} has no door"
        doors = DOORS[top]
        assert doors is None or name in doors, f"{path}:{line}: {top} is imported by {name}, its doors are {doors}"


def test_the_dependencies_are_those_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {d.split(">")[0].split("<")[0].split("=")[0].strip() for d in project["dependencies"]}
    for library, extra in EXTRAS.items():
        assert any(declared.startswith(library) for declared in project["optional-dependencies"][extra])
    imported = {{"sklearn": "scikit-learn", "PIL": "pillow"}.get(top, top.replace("_", "-")) for top in DOORS} - {*EXTRAS}
    assert names == imported, "everything that is declared is used, and the other way round"


@pytest.mark.parametrize(
    ("name", "path", "tree"), MODULES, ids=lambda v: str(v.relative_to(PACKAGE)) if isinstance(v, Path) else ""
)
def test_modules_and_functions_fit_in_a_head(name: str, path: Path, tree: ast.Module) -> None:
    assert len(path.read_text().splitlines()) - docstring_lines(tree) <= MAX_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node)
            lines = (node.end_lineno or 0) - node.lineno + 1 - (len(docstring.splitlines()) + 1 if docstring else 0)
            assert lines <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize(
    ("name", "path", "tree"), MODULES, ids=lambda v: str(v.relative_to(PACKAGE)) if isinstance(v, Path) else ""
)
def test_everything_public_is_documented(name: str, path: Path, tree: ast.Module) -> None:
    assert ast.get_docstring(tree), path
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name}"


def docstring_lines(tree: ast.Module) -> int:
    """Number of lines of all docstrings in a module."""
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [docstring for node in documented if (docstring := ast.get_docstring(node, clean=False))]
    return sum(len(docstring.split("\n")) for docstring in docstrings)


def test_no_module_draws_from_a_global_generator() -> None:
    for _, path, tree in MODULES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                assert name not in ("torch.manual_seed", "np.random.seed", "random.seed"), f"{path}:{node.lineno}"
                assert not name.startswith("np.random.") or name.split(".")[2] in ("Generator", "Philox", "SeedSequence"), (
                    f"{path}:{node.lineno}: {name}"
                )


def example(cls: type) -> object:
    """A member at its defaults; keys without one get a word."""
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return cls(**dict.fromkeys(required, "word"))


def test_components_are_frozen() -> None:
    from fedsgd.scenario.parsing import REGISTRIES

    for registry in REGISTRIES.values():
        for name in registry:
            member = example(registry[name])
            for field in fields(member):
                with pytest.raises(FrozenInstanceError):
                    setattr(member, field.name, None)
