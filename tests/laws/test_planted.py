"""Planted faults: each must break the law that is meant for it. Laws that reject nothing prove nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsgd.certification.independence_law import independence
from fedsgd.certification.law_suite import applicable_laws
from fedsgd.compression import CompressionOperator, CompressionScheme, ErrorFeedback, MemorylessScheme, StaleResidualPolicy
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import LawError, ScenarioError
from fedsgd.testing import check_compressor
from tests.effort import EFFORT
from tests.laws import planted, planted_bytes, planted_rounds
from tests.laws.test_ledger_laws import check_every_byte


def check_law(compressor: CompressionOperator | CompressionScheme, name: str) -> None:
    """Check one law, then all. The nightly workflow checks all at once: those before this one must not find the fault."""
    for law in applicable_laws(compressor):
        if law.name == name and EFFORT == 1:
            law()
    check_compressor(compressor)


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize(("op", "law"), planted.OPERATORS, ids=lambda v: getattr(v, "name", v))
def test_planted_operator_breaks_its_law(op: CompressionOperator, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        check_law(op, law)


@pytest.mark.parametrize(("scheme", "law"), planted.SCHEMES, ids=lambda v: getattr(v, "name", v))
def test_planted_scheme_breaks_its_law(scheme: CompressionScheme, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        check_law(scheme, law)


@pytest.mark.parametrize(("compressor", "law"), planted_rounds.REJECTED, ids=lambda v: getattr(v, "name", v))
def test_planted_fault_of_rounds_breaks_its_law(compressor: CompressionOperator | CompressionScheme, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        check_law(compressor, law)


@pytest.mark.sampled
@pytest.mark.parametrize(("compressor", "check", "law"), planted_bytes.REJECTED, ids=lambda v: getattr(v, "name", ""))
def test_fault_by_an_independent_author_breaks_its_law(
    compressor: CompressionOperator | CompressionScheme, check: Callable[..., None], law: str
) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        check(compressor)


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", planted_rounds.ACCEPTED, ids=lambda v: v.name)
def test_planted_scheme_without_fault_is_accepted(scheme: CompressionScheme) -> None:
    check_compressor(scheme)


@pytest.mark.parametrize("key", planted.KEYS)
def test_support_shared_by_contexts_breaks_independence(key: str) -> None:
    with pytest.raises(LawError, match=r"^independence: "):
        independence(planted.SharedSupport(density=0.1, key=key))


@pytest.mark.nightly
def test_client_pairs_with_cancelling_errors_are_accepted() -> None:
    check_compressor(planted.SharedRounding("pair"))


@pytest.mark.slow
def test_stated_shared_support_is_accepted_and_stated_by_composed_compressors() -> None:
    op = planted.StatedSharedSupport(density=0.1, scaled=False)
    check_compressor(op)
    feedback = ErrorFeedback(op)
    for compressor in (
        MemorylessScheme(op),
        feedback,
        StaleResidualPolicy(feedback),
        Scheduled(op),
        PerLayer(op),
        PerLayer(TopK(), biases=op),
    ):
        assert not compressor.has_independent_errors
    assert PerLayer(TopK(), biases=RandK()).has_independent_errors


def test_ledger_without_header_bytes_is_rejected() -> None:
    with pytest.raises(LawError, match="every byte"):
        check_every_byte(planted.LedgerWithoutHeaders())


def test_error_feedback_rejects_scaled_rand_k() -> None:
    with pytest.raises(ScenarioError, match="grow without bound"):
        ErrorFeedback(RandK(scaled=True))
