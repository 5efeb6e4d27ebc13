"""Laws that reject nothing prove nothing: each planted bug must fall, and by the law that is meant for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsgd.compress import Ageing, ErrorFeedback, Operator, Plain, Scheme, suite
from fedsgd.compress.independence import independence
from fedsgd.compress.per_layer import PerLayer
from fedsgd.compress.randk import RandK
from fedsgd.compress.scheduled import Scheduled
from fedsgd.compress.topk import TopK
from fedsgd.errors import LawError, ScenarioError
from tests.laws import planted, planted_bytes, planted_rounds
from tests.laws.test_ledger_laws import accounts_for_every_byte


@pytest.mark.parametrize(("op", "law"), planted.OPERATORS, ids=lambda v: getattr(v, "name", v))
def test_a_planted_operator_is_rejected(op: Operator, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        suite.check(op)


@pytest.mark.parametrize(("scheme", "law"), planted.SCHEMES, ids=lambda v: getattr(v, "name", v))
def test_a_planted_scheme_is_rejected(scheme: Scheme, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        suite.check(scheme)


@pytest.mark.parametrize(("compressor", "law"), planted_rounds.REJECTED, ids=lambda v: getattr(v, "name", v))
def test_planted_fault_of_rounds_is_rejected(compressor: Operator | Scheme, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        suite.check(compressor)


@pytest.mark.parametrize(("compressor", "check", "law"), planted_bytes.REJECTED, ids=lambda v: getattr(v, "name", ""))
def test_fault_planted_without_sight_of_the_laws_is_rejected(
    compressor: Operator | Scheme, check: Callable[..., None], law: str
) -> None:
    with pytest.raises(LawError, match=rf"^{law}: "):
        check(compressor)


@pytest.mark.parametrize("scheme", planted_rounds.ACCEPTED, ids=lambda v: v.name)
def test_planted_scheme_without_fault_is_accepted(scheme: Scheme) -> None:
    suite.check(scheme)


@pytest.mark.parametrize("key", planted.KEYS)
def test_support_that_contexts_share_is_rejected(key: str) -> None:
    with pytest.raises(LawError, match=r"^independence: "):
        independence(planted.SharedSupport(density=0.1, key=key))


def test_clients_in_pairs_whose_errors_cancel_are_accepted() -> None:
    suite.check(planted.SharedRounding("pair"))


def test_stated_shared_support_is_accepted_and_stated_by_composed_compressors() -> None:
    op = planted.StatedSharedSupport(density=0.1, scaled=False)
    suite.check(op)
    feedback = ErrorFeedback(op)
    for composed in (Plain(op), feedback, Ageing(feedback), Scheduled(op), PerLayer(op), PerLayer(TopK(), biases=op)):
        assert not composed.independent
    assert PerLayer(TopK(), biases=RandK()).independent


def test_a_ledger_that_leaves_out_the_header_is_rejected() -> None:
    with pytest.raises(LawError, match="every byte"):
        accounts_for_every_byte(planted.LedgerWithoutHeaders())


def test_error_feedback_itself_refuses_scaled_rand_k() -> None:
    with pytest.raises(ScenarioError, match="grow without bound"):
        ErrorFeedback(RandK(scaled=True))
