"""Names that users import from fedsgd, and its errors."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import fedsgd
from fedsgd import errors


def test_exported_names_are_sorted_and_exist() -> None:
    assert fedsgd.__all__ == sorted(fedsgd.__all__)
    for name in fedsgd.__all__:
        assert getattr(fedsgd, name) is not None
    assert set(fedsgd._EXPORT_MODULES) == set(fedsgd.__all__) <= set(dir(fedsgd))


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = fedsgd.nope


def test_package_import_loads_no_large_dependency() -> None:
    code = "import sys, fedsgd; assert not {'numpy', 'torch', 'click', 'msgspec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


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
