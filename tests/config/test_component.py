"""Components: import by path, validation of fields, and suggestions of names."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedsgd.compression.operators.topk import TopK
from fedsgd.config.component import FieldError, ValidatedConfig, field_types, validate_value
from fedsgd.config.registry import import_by_path
from fedsgd.data import Dataset, Examples
from fedsgd.data.partitioners.iid import Iid
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.models.custom import CustomModule
from fedsgd.scenario.parsing import REGISTRIES
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import DataConfig
from fedsgd.system.user_files import search_folders


def test_suggestion_for_a_missing_attribute_names_callables_only() -> None:
    with pytest.raises(ScenarioError, match='"math" has no "sqroot", did you mean "sqrt"'):
        import_by_path("math:sqroot")
    with pytest.raises(ScenarioError) as error:
        import_by_path("torch.nn:zzz")
    assert "__" not in str(error.value)
    assert len(str(error.value)) < 1000
    with pytest.raises(ScenarioError, match=r"expected one of: .*acos.* and \d+ more$"):
        import_by_path("math:p")  # a constant of the module is not suggested


@pytest.mark.parametrize(
    ("word", "options", "hint"),
    [
        ("noniid", ["iid", "dirichlet"], ', expected one of: "dirichlet", "iid"'),
        ("quick.toml", ["div.toml"], ', expected one of: "div.toml"'),
        ("quick.toml", ["div.toml", "quickstart.toml"], ', did you mean "quickstart.toml"?'),
        ("TopK", ["top-k", "dense"], ', did you mean "top-k"?'),
        ("otpk", ["top-k", "topk"], ', did you mean "topk"?'),
    ],
)
def test_suggestion_is_a_similar_name(word: str, options: list[str], hint: str) -> None:
    assert suggest_name(word, options) == hint


def test_missing_module_is_reported_with_the_searched_folder() -> None:
    with pytest.raises(ScenarioError) as error:
        import_by_path("nowhere_at_all:make")
    assert f"searched the current folder {Path.cwd()} and Python's path; run from its folder" in str(error.value)
    with pytest.raises(ScenarioError) as error, search_folders(["/a", Path.cwd()]), search_folders(["/a"]):
        import_by_path("nowhere_at_all:make")
    assert f"searched /a, the current folder {Path.cwd()} and Python's path" in str(error.value)


INSTANCE = nn.Identity()


def test_instance_in_place_of_a_factory_is_refused() -> None:
    with pytest.raises(FieldError, match=f'"{__name__}:INSTANCE" is an instance, an Identity, expected a function or class'):
        CustomModule(module=f"{__name__}:INSTANCE").build((4,), 2)


WRONG_VALUES: dict[str, Any] = {
    "word": "huge",
    "number": 1.5,
    "negative": -1,
    "flag": True,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "list": [None],
    "list of lists": [[1], ["a"]],
    "table": {"a": None},
    "lines": np.zeros((3, 3)),
    "bytes": b"\n",
    "long": "x" * 1000,
}


JARGON = re.compile(
    r"\b(null|int|float|str|bool|array|object|Literal|enum|Invalid|NoneType|dict|tuple)\b|[<>]=|Annotated|msgspec"
)


def validated_classes() -> list[type[ValidatedConfig]]:
    """Return every registered component, every table of a scenario, and every other validated class of fedsgd."""
    members = [registry[name] for registry in REGISTRIES.values() for name in registry]
    classes, queue = dict.fromkeys(members), [ValidatedConfig]
    while queue:
        subclasses = queue.pop().__subclasses__()
        queue += subclasses
        classes.update(dict.fromkeys(cls for cls in subclasses if cls.__module__.startswith("fedsgd.")))
    return [cls for cls in classes if not inspect.isabstract(cls)]


@pytest.mark.slow
def test_invalid_value_for_any_field_is_refused_in_plain_words() -> None:
    n_refused, kinds = 0, set()
    for cls in validated_classes():
        for key, annotation in field_types(cls).items():
            for value in WRONG_VALUES.values():
                try:
                    validate_value(value, annotation)
                except ValueError as problem:
                    message, n_refused = str(FieldError(cls.__name__, key, str(problem))), n_refused + 1
                    kinds.add(str(annotation))
                    expectation = message.rpartition(", got ")[0] or message  # without the value
                    assert message.startswith(f"{cls.__name__}.{key}: "), message
                    assert "expected " in expectation, message
                    assert not JARGON.search(expectation), message
                    assert "\n" not in message, message
                    assert len(message) < 260, message
    assert n_refused > 1000
    assert {str(annotation) for cls in validated_classes() for annotation in field_types(cls).values()} == kinds


def test_numpy_numbers_are_numbers() -> None:
    density = TopK(density=np.float64(0.1)).density  # type: ignore[arg-type]
    assert type(density) is float
    assert type(Iid(clients=np.int64(3)).clients) is int  # type: ignore[arg-type]
    with pytest.raises(FieldError, match=r"expected a whole number of at least 1, got 2\.5"):
        Iid(clients=np.float64(2.5))  # type: ignore[arg-type]


def test_own_objects_in_place_of_components_are_answered_with_their_argument() -> None:
    x, y = np.zeros((4, 2), np.float32), np.arange(4)
    with pytest.raises(
        FieldError, match=r"model: expected a Model, got Linear.*; pass a module of your own to fedsgd.run\(scenario, model="
    ):
        Scenario(name="s", model=nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(
        FieldError, match=r"source: expected a DatasetSource, got Dataset\(train=Examples\(4 examples of x: float32\[4, 2\]"
    ):
        DataConfig(Dataset(Examples(x, y), Examples(x, y), 4))  # type: ignore[arg-type]
