"""Laws of all registered compressors: a new compressor is tested without a change here."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fedsgd.compression
from fedsgd.certification import operator_laws as compressor_laws
from fedsgd.certification import scheme_laws
from fedsgd.certification.decoding_laws import DECODING_LAWS
from fedsgd.certification.independence_law import independence
from fedsgd.certification.law_suite import SAMPLED_VECTOR_LAWS
from fedsgd.certification.round_laws import ROUND_LAWS
from fedsgd.certification.scale_law import SIZE, build_hard_vectors, is_in_range
from fedsgd.certification.statistical_laws import mean_error
from fedsgd.compression import (
    COMPRESSORS,
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    Compressor,
    ErrorFeedback,
    MemorylessScheme,
    StaleResidualPolicy,
)
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.updates import SparseUpdate, Update
from fedsgd.errors import LawError, NonFiniteError
from fedsgd.federation.downlink import ASSIGN_CODEC
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.testing import check_compressor
from fedsgd.wire import Sections
from tests.effort import examples, nightly_unless, slow_unless
from tests.laws.members import is_default, is_plain, is_routine, name_of, operators, schemes

OPERATORS = nightly_unless(is_routine, slow_unless(is_default, operators()))
SCHEMES = nightly_unless(is_plain, slow_unless(is_default, schemes()))
PLAIN_MEMBERS = nightly_unless(is_plain, slow_unless(is_default, [*operators(), *schemes()]))
"""Compressors whose laws of rounds and of decoding are tested; by day, one for each class."""
SAMPLED_NAMES = ("top-k", "rand-k", "qsgd", "sign", "eden")
SAMPLED_OPERATORS = nightly_unless(lambda op: is_default(op) and op.name in SAMPLED_NAMES, slow_unless(is_default, operators()))
"""Operators whose laws of many draws are tested, most of them at night; each setting has the laws of single vectors by day."""

# From the smallest subnormal number to a number whose product with 300 is still a float32; ties and zeros are common.
MAGNITUDES = st.one_of(
    st.just(0.0),
    st.sampled_from([1.0, -1.0, 0.5]),
    st.floats(-(2.0**119), 2.0**119, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32),
)
VECTORS = hnp.arrays(np.float32, st.integers(1, 300), elements=MAGNITUDES, fill=MAGNITUDES)
DYADIC = hnp.arrays(np.float32, 24, elements=st.integers(-4096, 4096).map(lambda n: n / 64))


@pytest.mark.sampled
@pytest.mark.parametrize("law", compressor_laws.INPUT_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("op", OPERATORS, ids=name_of)
@examples(2, nightly=15)
@given(x=VECTORS, round=st.integers(1, 2**32 - 1), client=st.integers(0, 2**32 - 2))
def test_operator_obeys_its_laws_on_random_vectors(
    law: Callable[..., None], op: CompressionOperator, x: F32, round: int, client: int
) -> None:
    law(op, x, CodecContext(3, round, client, compressor_laws.example_layout(len(x))))


@pytest.mark.parametrize("op", OPERATORS, ids=name_of)
def test_operator_at_the_largest_float32_obeys_its_laws_or_raises(op: CompressionOperator) -> None:
    """The law allows operators that scale up to overflow; registered operators raise NonFiniteError instead."""
    vectors = [x for _, x in build_hard_vectors() if not is_in_range(x)]
    assert len(vectors) == 2
    for law, x in product(compressor_laws.INPUT_LAWS, vectors):
        with contextlib.suppress(NonFiniteError):
            law(op, x, CodecContext(0, 1, 0, compressor_laws.example_layout(SIZE)))


@pytest.mark.sampled
@pytest.mark.parametrize("law", SAMPLED_VECTOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("op", SAMPLED_OPERATORS, ids=name_of)
def test_operator_obeys_the_statistical_laws(law: Callable[..., None], op: CompressionOperator) -> None:
    law(op)


SCHEME_LAWS = [
    scheme_laws.round_trip,
    scheme_laws.deterministic_send,
    scheme_laws.lost_replies,
    scheme_laws.check_telescoping_on_samples,
    scheme_laws.scale,
    independence,
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
@examples(2, nightly=15)
@given(updates=st.lists(DYADIC, min_size=1, max_size=12), data=st.data())
def test_scheme_telescopes_over_random_updates_and_lost_replies(
    scheme: CompressionScheme, updates: list[F32], data: st.DataObject
) -> None:
    lost_mask = data.draw(st.lists(st.booleans(), min_size=len(updates), max_size=len(updates)))
    scheme_laws.telescoping(scheme, updates, lost_mask)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_scheme_has_a_bounded_residual(scheme: CompressionScheme) -> None:
    scheme_laws.bounded_residual(scheme)


@pytest.mark.sampled
@pytest.mark.parametrize("law", SCHEME_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_scheme_obeys_the_scheme_laws(law: Callable[..., None], scheme: CompressionScheme) -> None:
    law(scheme)


@pytest.mark.sampled
@pytest.mark.parametrize("law", [*ROUND_LAWS, *DECODING_LAWS], ids=lambda law: law.__name__)
@pytest.mark.parametrize("member", PLAIN_MEMBERS, ids=name_of)
def test_compressor_obeys_the_round_and_decoding_laws(
    law: Callable[..., None], member: CompressionOperator | CompressionScheme
) -> None:
    law(member)


@pytest.mark.parametrize("member", [*OPERATORS, *SCHEMES], ids=name_of)
def test_compressor_is_an_immutable_value(member: CompressionOperator | CompressionScheme) -> None:
    copy = pickle.loads(pickle.dumps(member))
    assert copy == member
    assert hash(copy) == hash(member)
    with pytest.raises(AttributeError):
        member.op = None


def test_codec_ids_are_unique_and_nonzero() -> None:
    codecs = [COMPRESSORS[name]().codec for name in COMPRESSORS]
    assert len({*codecs, ASSIGN_CODEC}) == len(codecs) + 1
    assert all(0 < codec < 256 for codec in codecs)


def test_every_compressor_is_registered() -> None:
    for module in pkgutil.walk_packages(fedsgd.compression.__path__, "fedsgd.compression."):
        importlib.import_module(module.name)

    def list_subclasses(cls: type) -> set[type]:
        return {cls}.union(*(list_subclasses(subclass) for subclass in cls.__subclasses__()))

    classes = {c for c in list_subclasses(Compressor) if c.__module__.startswith("fedsgd.") and not inspect.isabstract(c)}
    assert classes - {MemorylessScheme, ErrorFeedback, StaleResidualPolicy} == {COMPRESSORS[name] for name in COMPRESSORS}


@pytest.mark.slow
def test_law_suite_accepts_a_correct_scheme() -> None:
    check_compressor(MemorylessScheme(RandK()))


def test_bias_of_three_percent_breaks_the_mean_law() -> None:
    @dataclass(frozen=True)
    class BiasedRandK(RandK):
        def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
            return super().encode(x * np.float32(1.03), ctx)

    assert isinstance(
        BiasedRandK(density=0.5).encode(np.ones(4, np.float32), CodecContext(0, 1, 0, ParameterLayout.from_size(4)))[1],
        SparseUpdate,
    )
    with pytest.raises(LawError, match="mean_error"):
        mean_error(BiasedRandK(density=0.9))
