"""Compressors on torch tensors: the bytes, states and patches of arrays with the same numbers, for every member that accepts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.compression import CodecContext, CompressionOperator, CompressionScheme, EntryPatch
from fedsgd.compression.kernels import tensor_forms
from fedsgd.compression.kernels.top_k import chunk_top_k, select_above, top_k
from fedsgd.compression.operators.drive import Drive
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.natural import NaturalCompression
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.compression.operators.threshold import Threshold
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.compression.schemes.error_feedback import ErrorFeedback
from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.compression.schemes.stale_residuals import StaleResidualPolicy
from fedsgd.compression.schemes.stc import STC
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import counter_hash
from fedsgd.numerics.vectors import is_finite, is_tensor
from tests.effort import examples

LAYOUT = ParameterLayout(("a", "b", "c"), ((30, 20), (20,), (7, 11)))
SIZE = LAYOUT.size
SCHEMES: dict[str, CompressionScheme] = {
    "top-k": MemorylessScheme(TopK(density=0.03)),
    "threshold": ErrorFeedback(Threshold(threshold=0.5)),
    "error feedback": ErrorFeedback(TopK(density=0.05)),
    "decayed": ErrorFeedback(TopK(density=0.05, values="bfloat16"), decay=0.95),
    "ternary": ErrorFeedback(TopK(density=0.05, values="ternary")),
    "natural": ErrorFeedback(TopK(density=0.05, values="natural")),
    "chunks": ErrorFeedback(TopK(density=0.1, chunk=64, values="2bit", scales="chunk")),
    "stc": STC(density=0.05),
    "rand-k": MemorylessScheme(RandK(density=0.05)),
    "rand-k, error feedback": ErrorFeedback(RandK(density=0.05, scaled=False)),
    "stale": StaleResidualPolicy(ErrorFeedback(TopK(density=0.05)), factor=0.5),
    "qsgd": MemorylessScheme(QSGD(levels=4, bucket=100)),
    "qsgd, long buckets": MemorylessScheme(QSGD(levels=7, bucket=512)),
    "qsgd, max": MemorylessScheme(QSGD(levels=15, bucket=64, norm="max")),
    "terngrad": MemorylessScheme(TernGrad()),
    "eden": MemorylessScheme(Eden()),
    "eden, 4 bits": MemorylessScheme(Eden(bits=4)),
    "drive": ErrorFeedback(Drive(scale="least-squares")),
    "dgc": DGC(density=0.02, momentum=0.9),
    "dgc, all parts": DGC(density=0.02, momentum=0.7, nesterov=True, clip=0.1, warm_up_rounds=1, per_layer=True),
    "dgc, no masking": DGC(density=0.02, momentum=0.9, masking=False, values="float16"),
}


def draw_update(seed: int) -> F32:
    """Return an update with ties, zeros of both signs and subnormal numbers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(SIZE).astype(np.float32)
    x[rng.integers(0, SIZE, 60)] = np.float32(1.5)
    x[rng.integers(0, SIZE, 60)] = np.float32(-1.5)
    x[rng.integers(0, SIZE, 40)] = np.float32(-0.0)
    x[rng.integers(0, SIZE, 40)] *= np.float32(1e-40)
    return x


def assert_equal_arrays(tensors: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        value = tensors[name]
        if name != "round":
            assert isinstance(value, torch.Tensor), name
        assert np.asarray(value).tobytes() == array.tobytes(), name


def assert_equal_patches(tensors: Mapping[str, Any], arrays: Mapping[str, EntryPatch | None]) -> None:
    assert tensors.keys() == arrays.keys()
    for name, patch in arrays.items():
        assert patch is not None
        np.testing.assert_array_equal(tensors[name].indices, patch.indices)
        assert np.asarray(tensors[name].values).tobytes() == patch.values.tobytes()


@pytest.mark.parametrize("name", SCHEMES)
def test_scheme_on_tensors_sends_the_bytes_of_arrays(name: str) -> None:
    scheme = SCHEMES[name]
    assert scheme.accepts_tensors
    array_state: Mapping[str, Any] = {}
    tensor_state: Mapping[str, Any] = {}
    for round, is_lost in ((1, False), (2, True), (5, False), (6, True), (9, False)):
        x = draw_update(round)
        ctx = CodecContext(3, round, 1, LAYOUT, cohort=4)
        tensor = torch.from_numpy(x.copy())
        expected, encoded = scheme.send(x, array_state, ctx), scheme.send(tensor, tensor_state, ctx)  # type: ignore[arg-type]
        assert [(s.kind, bytes(s.data)) for s in encoded.sections] == [(s.kind, bytes(s.data)) for s in expected.sections]
        assert_equal_arrays(encoded.state, expected.state)
        assert_equal_patches(encoded.rollback, expected.rollback)
        assert_equal_arrays(encoded.state_if_lost, expected.state_if_lost)
        assert tensor.numpy().tobytes() == x.tobytes(), "the update is not written to"
        array_state = expected.state_if_lost if is_lost else expected.state
        tensor_state = encoded.state_if_lost if is_lost else encoded.state


def test_residual_of_a_long_vector_is_not_copied() -> None:
    layout, scheme = ParameterLayout.from_size(2**17), ErrorFeedback(TopK(density=0.01))
    x = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    states: list[Mapping[str, Any]] = [{}, {}]
    for round in (1, 2, 3):
        ctx = CodecContext(0, round, 0, layout)
        sent = [scheme.send(v, state, ctx) for v, state in zip((x, torch.from_numpy(x)), states, strict=True)]  # type: ignore[arg-type]
        assert bytes(sent[0].sections[0].data) == bytes(sent[1].sections[0].data)
        states = [encoded.state for encoded in sent]
    assert_equal_arrays(states[1], states[0])


@examples(30)
@given(st.integers(0, 10**6), st.integers(1, SIZE + 5), st.integers(1, 80), st.floats(1e-30, 3.0))
def test_selections_are_those_of_arrays(seed: int, k: int, length: int, threshold: float) -> None:
    x = draw_update(seed)
    tensor: Any = torch.from_numpy(x)
    limits = np.full(-(-SIZE // length), min(3, length), dtype=np.int64)
    limits[-1] = min(limits[-1], (SIZE - 1) % length + 1)
    for on_tensor, on_array in (
        (top_k(tensor, min(k, SIZE)), top_k(x, min(k, SIZE))),
        (select_above(tensor, threshold), select_above(x, threshold)),
        (chunk_top_k(tensor, length, limits), chunk_top_k(x, length, limits)),
    ):
        for a, b in zip(on_tensor, on_array, strict=True):
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def test_zeros_are_never_selected() -> None:
    positions, values = tensor_forms.top_k(torch.tensor([0.0, -0.0, 0.0]), 2)
    assert (len(positions), len(values)) == (0, 0)


@pytest.mark.parametrize("op", [QSGD(bucket=4096), QSGD(bucket=8192), Eden(bits=3), Drive()], ids=str)
def test_vector_of_many_buckets_and_blocks_has_the_bytes_of_an_array(op: CompressionOperator) -> None:
    layout = ParameterLayout.from_size(3 * 4096 + 777)
    x = np.random.default_rng(1).standard_normal(layout.size).astype(np.float32)
    x[4096:8192] = 0
    for client in range(3):
        ctx = CodecContext(1, 1, client, layout)
        (on_array, _), (on_tensor, _) = op.encode(x, ctx), op.encode(torch.from_numpy(x), ctx)  # type: ignore[arg-type]
        assert [bytes(section.data) for section in on_tensor] == [bytes(section.data) for section in on_array]


@examples(20)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_random_words_are_those_of_arrays(key: int, counters: list[int]) -> None:
    expected = counter_hash(key, np.array(counters, dtype=np.uint64))
    words = tensor_forms.counter_hash(key, torch.tensor(counters))
    assert words.numpy().astype(np.uint64).tolist() == expected.tolist()


def test_class_of_a_user_that_replaces_a_method_accepts_no_tensors() -> None:
    class OwnTopK(TopK):
        def encode(self, x: F32, ctx: CodecContext) -> Any:
            return super().encode(np.abs(x), ctx)

    class Renamed(TopK):
        """Has the methods of top-k."""

    class Careful(OwnTopK):
        accepts_tensors = True

        def encode(self, x: F32, ctx: CodecContext) -> Any:
            return TopK.encode(self, x, ctx)

    assert [cls().accepts_tensors for cls in (OwnTopK, Renamed, Careful)] == [False, True, True]


def test_number_of_numpy_is_no_tensor() -> None:
    assert not is_tensor(np.float32(3))
    assert is_finite(np.float32(3))


def test_operators_without_a_form_for_tensors_say_so() -> None:
    for op in (NaturalCompression(), Sign(), TernGrad(clip=2.5)):
        assert not op.accepts_tensors
        assert not MemorylessScheme(op).accepts_tensors
