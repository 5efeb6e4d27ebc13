"""Trial of compressors before round 1: every built-in one passes, and each breach of the contract is named in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from fedsgd.aggregation import select_aggregator
from fedsgd.certification.operator_laws import draw_gaussian, example_layout
from fedsgd.certification.simulate_rounds import as_scheme
from fedsgd.compression import COMPRESSORS, CodecContext, CompressionOperator, CompressionScheme, Compressor, EncodedUpdate
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.error_feedback import ErrorFeedback
from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.compression.schemes.stale_residuals import StaleResidualPolicy
from fedsgd.compression.trial import VECTOR_SCALE, check_compressor, try_compressor
from fedsgd.compression.updates import DenseUpdate, SparseUpdate
from fedsgd.config.registry import is_builtin
from fedsgd.config.user_errors import find_user_class
from fedsgd.errors import NonFiniteError, ScenarioError, WireError
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Section, SectionKind
from tests.laws.members import operators, schemes

SIZE = 650
KEY = "uplink.compressor"


@dataclass(frozen=True)
class ScriptedOperator(CompressionOperator):
    """Operator that sends float32, except in the part named `fault`."""

    name: ClassVar[str] = "scripted"

    fault: str = ""

    @property
    def kind(self) -> Any:
        return "contractve" if self.fault == "kind" else "contractive"

    def encode(self, x: Any, ctx: CodecContext) -> Any:
        if self.fault == "write":
            x[0] = 5
        data: Any = {"array": x, "str": "abc"}.get(self.fault, x.tobytes())
        kind: Any = 77 if self.fault == "section kind" else SectionKind.VALUE
        sections: Any = (Section(kind, data),)
        sections = {"list": [*sections], "bytes": data, "tuple of bytes": (data,)}.get(self.fault, sections)
        results = {"none": None, "three": (sections, DenseUpdate(x), 1), "no update": (sections, x)}
        if self.fault == "overflow":
            raise NonFiniteError(1, 0, "too large")
        return results.get(self.fault, (sections, DenseUpdate(x * 0 if self.fault == "zero" else x)))

    def decode(self, sections: Any, ctx: CodecContext) -> Any:
        values, size = np.frombuffer(sections[0].data, np.float32), ctx.layout.size
        if self.fault == "wire":
            raise WireError(3, "bad byte")
        if self.fault == "missing attribute":
            return values.undefined  # type: ignore[attr-defined]
        positions = {
            "unequal lengths": np.arange(size),
            "float positions": np.arange(2.0),
            "position P": np.array([0, size]),
            "negative position": np.array([-1, 2]),
            "unsorted positions": np.array([5, 1]),
        }
        if self.fault in positions:
            return SparseUpdate(positions[self.fault], np.ones(2, np.float32), size)  # type: ignore[arg-type]
        return {
            "no decoded update": values,
            "short": DenseUpdate(values[:-1]),
            "integers": DenseUpdate(values.astype(int)),  # type: ignore[arg-type]
            "nan": DenseUpdate(np.where(np.arange(size) < 2, np.float32(np.nan), values)),
        }.get(self.fault, DenseUpdate(values))

    def max_bytes(self, layout: ParameterLayout) -> Any:
        return {"max none": None, "max float": 4.0 * layout.size, "max small": 10}.get(self.fault, 4 * layout.size)

    def contraction(self, layout: ParameterLayout) -> float:
        return 1.0


@dataclass(frozen=True)
class ScriptedScheme(CompressionScheme):
    """Scheme that sends float32, except in the part named `fault`."""

    name: ClassVar[str] = "scripted-scheme"

    fault: str = ""

    def send(self, x: Any, state: Any, ctx: CodecContext) -> Any:
        sections, _ = ScriptedOperator(self.fault).encode(x, ctx)
        new_state: Any = {"state list": [1], "state entry": {"a": 1}}.get(self.fault, {"a": x})
        return sections if self.fault == "sections" else EncodedUpdate(sections, new_state, {})

    def decode(self, sections: Any, ctx: CodecContext) -> Any:
        return ScriptedOperator(self.fault).decode(sections, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return 4 * layout.size

    def undelivered_update(self, state: Any, layout: ParameterLayout) -> None:
        return None


def try_it(compressor: Compressor, layout: ParameterLayout | None = None) -> None:
    layout = example_layout(SIZE) if layout is None else layout
    aggregator = select_aggregator(None, as_scheme(compressor))
    try_compressor(KEY, compressor, CodecContext(0, 1, 0, layout), aggregator.init_state(layout))


def as_user_class(cls: type[Compressor]) -> type[Any]:
    """Return a subclass that counts as a user's class."""
    return dataclass(frozen=True)(type(f"User{cls.__name__}", (cls,), {"__module__": __name__, "__doc__": "Subclass."}))


def wrap(compressor: Compressor) -> Iterator[Compressor]:
    """Yield a compressor, and the built-in compressors that can contain it."""
    yield compressor
    if isinstance(compressor, CompressionOperator):
        yield MemorylessScheme(compressor)
        if compressor.kind == "contractive":
            yield ErrorFeedback(compressor)
            yield StaleResidualPolicy(ErrorFeedback(compressor))
        if not isinstance(compressor, PerLayer):
            yield PerLayer(TopK(), biases=compressor)
            yield PerLayer(TopK(), rules=(LayerRule("m*", compressor),), separate=True)
        if hasattr(compressor, "density"):
            yield Scheduled(compressor)
    elif compressor.residual_entries:  # type: ignore[attr-defined]
        yield StaleResidualPolicy(compressor)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 7, SIZE])
@pytest.mark.parametrize("name", [*COMPRESSORS])
def test_user_subclass_of_each_compressor_passes_in_every_wrapper(name: str, size: int) -> None:
    user_compressor = as_user_class(COMPRESSORS[name])()
    assert not is_builtin(type(user_compressor))
    for compressor in wrap(user_compressor):
        assert find_user_class(compressor) == f"{__name__}:User{COMPRESSORS[name].__name__}"
        try_it(compressor, example_layout(size))


@pytest.mark.slow
def test_every_setting_of_built_in_compressors_passes() -> None:
    layout = example_layout(SIZE)
    x = draw_gaussian(np.random.default_rng(0), SIZE) * VECTOR_SCALE
    for compressor in (*operators(), *schemes()):
        aggregator = select_aggregator(None, as_scheme(compressor))
        check_compressor(compressor, x, CodecContext(0, 1, 0, layout), aggregator.init_state(layout))


def test_right_user_compressors_pass() -> None:
    for compressor in (ScriptedOperator(), ScriptedScheme()):
        for wrapped in wrap(compressor):
            try_it(wrapped)


FAULTS = {
    "kind": "kind is str 'contractve', expected one of 'unbiased', 'contractive', 'neither'",
    "write": "encode wrote to its argument x, expected x unchanged",
    "array": "encode returned a section with data ndarray, expected bytes",
    "str": "encode returned a section with data str, expected bytes",
    "section kind": "encode returned a section with kind int 77, expected a SectionKind",
    "list": "encode returned list as sections, expected a tuple of Section",
    "bytes": "encode returned bytes as sections, expected a tuple of Section",
    "tuple of bytes": "encode returned (bytes) as sections, expected a tuple of Section",
    "none": "encode returned None, expected (tuple of Section, Update)",
    "three": "encode returned (tuple, DenseUpdate, int), expected (tuple of Section, Update)",
    "no update": "encode returned (tuple, ndarray), expected (tuple of Section, Update)",
    "max none": "max_bytes returned None, expected int",
    "max float": "max_bytes returned float 2600.0, expected int",
    "max small": "encode returned sections of 2,600 bytes, expected at most max_bytes = 10",
    "no decoded update": "decode returned ndarray of float32 and shape [650], expected an Update",
    "short": "decode returned an update whose dense form is ndarray of float32 and shape [649], expected float32 and shape [650]",
    "integers": "decode returned an update whose dense form is ndarray of int64 and shape [650], expected float32 and shape [650]",
    "nan": "decode returned an update with 2 of 650 coordinates that are not finite, expected finite numbers",
}


def error_of(compressor: Compressor) -> str:
    with pytest.raises(ScenarioError) as error:
        try_it(compressor)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("fault", [*FAULTS])
def test_operator_with_a_fault_is_refused_with_key_class_and_method(fault: str) -> None:
    assert error_of(ScriptedOperator(fault)) == f"{KEY} ({__name__}:ScriptedOperator): {FAULTS[fault]}"


def test_update_that_differs_from_the_decoded_one_is_refused_with_the_first_coordinate() -> None:
    text = error_of(ScriptedOperator("zero"))
    assert text.startswith(f"{KEY} ({__name__}:ScriptedOperator): decode returned another update than encode: coordinate 0 is ")
    assert text.endswith(", expected 0 as encode returned; 650 of 650 differ")


@pytest.mark.parametrize(
    ("fault", "problem", "method"),
    [
        ("wire", "byte 3: bad byte", "decode"),
        ("overflow", "round 1, client 0: too large", "encode"),
        (
            "unequal lengths",
            "ValueError: a sparse update needs positions [k] int64 and values [k], got positions int64",
            "decode",
        ),
        (
            "float positions",
            "ValueError: a sparse update needs positions [k] int64 and values [k], got positions float64",
            "decode",
        ),
        ("position P", "ValueError: a sparse update needs strictly ascending positions from 0 to 649", "decode"),
        ("negative position", "ValueError: a sparse update needs strictly ascending positions from 0 to 649", "decode"),
        ("unsorted positions", "ValueError: a sparse update needs strictly ascending positions from 0 to 649", "decode"),
        ("missing attribute", "AttributeError: 'numpy.ndarray' object has no attribute 'undefined'", "decode"),
    ],
)
def test_operator_that_raises_is_refused_with_file_and_method(fault: str, problem: str, method: str) -> None:
    text = error_of(ScriptedOperator(fault))
    assert text.startswith(f"{KEY} ({__name__}:ScriptedOperator): {problem}")
    assert " (test_trial.py:" in text
    assert text.endswith(f", in {method})")


def test_faulty_operator_is_found_in_every_wrapper() -> None:
    for compressor in wrap(ScriptedOperator("zero")):
        assert error_of(compressor).startswith(f"{KEY} ({__name__}:ScriptedOperator): decode returned another update")


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("sections", "send returned (Section), expected EncodedUpdate"),
        ("list", "send returned list as sections, expected a tuple of Section"),
        ("write", "send wrote to its argument x, expected x unchanged"),
        ("state list", "send returned an EncodedUpdate with state list, expected a dict"),
        ("state entry", "send returned an EncodedUpdate with state entry 'a' int 1, expected an array"),
        ("nan", "decode returned an update with 2 of 650 coordinates that are not finite, expected finite numbers"),
    ],
)
def test_scheme_with_a_fault_is_refused_with_key_class_and_method(fault: str, problem: str) -> None:
    assert error_of(ScriptedScheme(fault)) == f"{KEY} ({__name__}:ScriptedScheme): {problem}"


def test_built_in_compressors_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandK, "encode", lambda *_: pytest.fail("encoded"))
    try_it(ErrorFeedback(RandK(scaled=False)))
    with pytest.raises(pytest.fail.Exception):
        try_it(ErrorFeedback(as_user_class(RandK)(scaled=False)))
