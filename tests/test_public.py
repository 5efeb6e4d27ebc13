"""Names that users import from fedsgd, and its errors."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fedsgd
from fedsgd import errors
from fedsgd.aggregation import AGGREGATORS
from fedsgd.compression import COMPRESSORS
from fedsgd.data import DATASETS, PARTITIONERS
from fedsgd.models import MODELS
from fedsgd.optim import OPTIMIZERS, SCHEDULES
from fedsgd.sampling import DURATIONS, SAMPLERS


def test_exported_names_are_sorted_and_exist() -> None:
    assert fedsgd.__all__ == sorted(fedsgd.__all__)
    for name in fedsgd.__all__:
        assert getattr(fedsgd, name) is not None
    assert {*fedsgd._EXPORT_MODULES, *fedsgd._NAMESPACES} == set(fedsgd.__all__) <= set(dir(fedsgd))


REGISTRIES = {
    "aggregators": AGGREGATORS,
    "compressors": COMPRESSORS,
    "datasets": DATASETS,
    "durations": DURATIONS,
    "models": MODELS,
    "optim": OPTIMIZERS,
    "partitioners": PARTITIONERS,
    "samplers": SAMPLERS,
    "schedules": SCHEDULES,
}


def test_namespaces_are_the_families_and_networks() -> None:
    assert set(fedsgd._NAMESPACES) == {*REGISTRIES, "networks"}


@pytest.mark.parametrize("name", REGISTRIES)
def test_namespace_has_exactly_the_components_of_its_registry(name: str) -> None:
    namespace, registry = getattr(fedsgd, name), REGISTRIES[name]
    members = {member for member in namespace.__all__ if is_component(getattr(namespace, member), registry.base)}
    assert members == {registry[key].__name__ for key in registry}
    assert all(getattr(namespace, registry[key].__name__) is registry[key] for key in registry)
    assert namespace.register == registry.register
    assert namespace.__doc__


def is_component(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)


def test_namespace_has_the_objects_of_networks() -> None:
    for name in fedsgd.networks.__all__:
        assert callable(getattr(fedsgd.networks, name))


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = fedsgd.nope


def test_package_import_loads_no_large_dependency() -> None:
    code = """
import sys, fedsgd
assert {name for name in sys.modules if name.startswith("fedsgd.")} == {"fedsgd._version"}
assert not {"numpy", "torch", "click", "msgspec"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_namespaces_load_no_large_dependency() -> None:
    code = f"""
import sys, fedsgd
for name in {[*REGISTRIES, "networks"]!r}:
    getattr(fedsgd, name)
assert not {{"torch", "pyarrow", "sklearn", "datasets", "pandas", "pint"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_quickstart_imports_what_it_uses(root: Path) -> None:
    code = """
import sys, fedsgd
fedsgd.run(fedsgd.load("scenarios/quickstart.toml", {"rounds": 2}))
unused = {"numba", "sympy", "scipy", "sklearn", "pandas", "matplotlib", "torch._dynamo", "torch._inductor", "flwr", "rich", "mlflow", "tensorboard"}
print(sorted(unused & set(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert process.stdout == "[]\n"


def test_every_error_is_a_fedsgd_error_and_in_the_docstring() -> None:
    candidates = (member for member in vars(errors).values() if isinstance(member, type))
    for error in (cls for cls in candidates if issubclass(cls, Exception) and not issubclass(cls, Warning)):
        assert issubclass(error, errors.FedsgdError)
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    "error",
    [
        errors.WireError(3, "x"),
        errors.RunError(1, 2, "x"),
        errors.NonFiniteError(1, None, "x"),
        importlib.import_module("fedsgd.config.component").FieldError("top-k", "density", "x"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_error_pickled_keeps_message_and_fields(error: Exception) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_suggested_name_is_the_nearest_or_a_list() -> None:
    assert errors.suggest_name("topk", ["top-k", "dense"]) == ', did you mean "top-k"?'
    assert errors.suggest_name("dirichletpartitoner", ["DirichletPartitioner"]) == ', did you mean "DirichletPartitioner"?'
    assert errors.suggest_name("?", [f"name-{i:02}" for i in range(50)]).endswith('"name-29" and 20 more')
    assert errors.suggest_name("zip", ["top-k", "dense"]) == ', expected one of: "dense", "top-k"'
    assert errors.suggest_name("zip", []) == ""
