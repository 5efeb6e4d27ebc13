"""The laws of a real federation: clients come and go, replies get lost, memories too; nothing is forgotten or counted twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsgd.compression import COMPRESSORS, CompressionScheme, ErrorFeedback, MemorylessScheme, StaleResidualPolicy
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.sparsifier import encode_sparse
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.compression.schemes.power_sgd import PowerSGD
from fedsgd.compression.schemes.scaffold import Scaffold
from fedsgd.compression.schemes.stc import STC
from fedsgd.errors import RunError, WireError
from fedsgd.federation import broadcast
from fedsgd.federation.downlink import ASSIGN_CODEC, CatchUpPlanner, EncodedFrame, ModelBroadcast
from fedsgd.numerics.arrays import F32
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, decode_frame, encode_frame
from tests.laws.federation import CLIENTS, LAYOUT, Federation, dyadic, plan_of

TOP = TopK(0.1)
LINKS = {
    "model": ModelBroadcast(),
    "difference": ModelBroadcast("difference"),
    "error feedback, ternary": ModelBroadcast("error-feedback", TopK(0.1, "ternary")),
    "error feedback, signs": ModelBroadcast("error-feedback", Sign()),
    "shift": ModelBroadcast("shift", TOP),
    "plain, levels": ModelBroadcast("plain", QSGD()),
    "difference, three rounds": ModelBroadcast("difference", history_rounds=3),
    "error feedback, three rounds": ModelBroadcast("error-feedback", TOP, 3),
}
KEEPING = {
    "top-k": ErrorFeedback(TOP),
    "threshold of what is sent": ErrorFeedback(TopK(0.02)),
    "dgc": DGC(0.1, momentum=0.0),
    "stc": STC(0.1),
    "power-sgd": PowerSGD(1),
}


@dataclass(frozen=True)
class Round:
    """Who is asked, whose reply is lost, who has lost its memory before."""

    cohort: list[int]
    lost: frozenset[int]
    forgotten: frozenset[int]


def rounds(forgetful: bool = True) -> st.SearchStrategy[list[Round]]:
    client = st.integers(0, CLIENTS - 1)
    cohorts = st.lists(client, min_size=1, max_size=CLIENTS, unique=True).map(sorted)
    some = st.frozensets(client, max_size=3)
    none: st.SearchStrategy[frozenset[int]] = st.just(frozenset())
    return st.lists(st.builds(Round, cohorts, some, some if forgetful else none), min_size=1, max_size=14)


def played(scheme: CompressionScheme, link: ModelBroadcast, pattern: list[Round], check: Any = None) -> Federation:
    rng = np.random.default_rng(len(pattern))
    federation = Federation.of(plan_of(scheme, link), dyadic(rng))
    for number, each in enumerate(pattern):
        for client in each.forgotten:
            federation.forget(client)
        public = federation.server.public_model.weights
        before = federation.server
        federation.play(each.cohort, {c: dyadic(np.random.default_rng([number, c])) for c in each.cohort}, list(each.lost))
        for client in each.cohort:
            assert federation.decoded[client].tobytes() == public.tobytes(), f"client {client} in round {number + 1}"
        if check is not None:
            check(federation, before, each)
    return federation


# ------------------------------------------------------------------------------------------------------------------- the downlink


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@settings(max_examples=60)
@given(pattern=rounds())
def test_whoever_was_away_ends_at_the_bits_of_whoever_was_not(link: ModelBroadcast, pattern: list[Round]) -> None:
    """Client 0 of a second federation is there in each round, and nothing of its is ever lost."""
    sparse = ErrorFeedback(TOP)
    played(sparse, link, pattern)
    always = [Round(sorted({0, *r.cohort}), frozenset(r.lost - {0}), frozenset(r.forgotten - {0})) for r in pattern]
    assert played(sparse, link, always).resyncs <= sum(len(r.forgotten) for r in always)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@settings(max_examples=30)
@given(pattern=rounds(forgetful=False))
def test_the_way_that_is_sent_is_the_cheapest_there_is(link: ModelBroadcast, pattern: list[Round]) -> None:
    """Beside each way that is taken stand all others that there are: the whole model, one merged difference, the chain of all
    differences since the beginning, however long that is."""
    chain: list[EncodedFrame] = []
    models: dict[int, F32] = {}

    def check(federation: Federation, before: Any, each: Round) -> None:
        plan, public = federation.plan, before.public_model
        models[before.round] = public.model
        if public.difference_frames and (not chain or chain[-1] is not public.difference_frames[-1]):
            chain.append(public.difference_frames[-1])
        messages, _ = broadcast(plan, before, each.cohort)
        post = CatchUpPlanner(plan.downlink, public, lambda round: plan.make_context(round, ALL_CLIENTS))
        for message in messages.values():
            base, taken = decode_frame(message[0]).header.base, sum(map(len, message[1:]))
            whole = len(post.get_full_model_frame().data)
            assert taken <= whole
            if not base:
                continue
            since = [frame for frame in chain if frame.decoded.header.round > base]
            if since and since[0].decoded.header.base <= base:
                assert taken <= sum(len(frame.data) for frame in since)
            steps = [models[r] != models[r + 1] for r in range(base, before.round)]
            changed = np.flatnonzero(np.any(steps, axis=0))
            sections, _ = encode_sparse(changed, public.model[changed], "float32", plan.make_context(before.round, ALL_CLIENTS))
            merged = Frame(Header(FrameKind.MODEL, before.round, ASSIGN_CODEC, base=base), sections)
            assert taken <= len(encode_frame(merged))

    played(ErrorFeedback(TOP), link, pattern, check)


def test_two_policies_send_the_same_but_for_rounding() -> None:
    """Error feedback on the server's step, and the shift of the public model towards the server's own: where the arithmetic is
    exact, the very same."""
    pattern = [Round([0, 2], frozenset(), frozenset()), Round([1], frozenset(), frozenset())] * 5
    models = [
        played(MemorylessScheme(TopK(1.0)), ModelBroadcast(policy, TOP), pattern).server.public_model.weights.tobytes()
        for policy in ("error-feedback", "shift")
    ]
    assert models[0] == models[1]


def test_feeding_back_what_is_fed_back_already_would_diverge() -> None:
    """Why error feedback takes the server's step and not w − public, which holds the residual already."""
    rng = np.random.default_rng(0)
    own, public, residual, norms = np.zeros(60), np.zeros(60), np.zeros(60), []
    for _ in range(60):
        own += rng.standard_normal(60)
        wanted = residual + (own - public)
        sent = np.where(np.abs(wanted) >= np.sort(np.abs(wanted))[-6], wanted, 0)
        public, residual = public + sent, wanted - sent
        norms.append(float(np.linalg.norm(own - public)))
    assert norms[-1] > 1e3 * norms[5]


# ------------------------------------------------------------------------------------------------------------ two-phase commit


@pytest.mark.parametrize("scheme", KEEPING.values(), ids=KEEPING.keys())
@settings(max_examples=60)
@given(pattern=rounds(forgetful=False))
def test_what_was_trained_is_delivered_or_held_back_whichever_replies_are_lost(
    scheme: CompressionScheme, pattern: list[Round]
) -> None:
    """By client and unweighted. Where all arithmetic is exact, so is the law."""
    federation = played(scheme, ModelBroadcast("difference"), pattern)
    for client in range(CLIENTS):
        withheld = scheme.undelivered_update(federation.settled(client), LAYOUT)
        assert withheld is not None
        off = np.abs(federation.given[client] - federation.delivered[client] - withheld).max()
        assert off <= (0.0 if isinstance(scheme, ErrorFeedback | DGC) else 1e-4), f"client {client}: {off}"


@settings(max_examples=60)
@given(pattern=rounds(forgetful=False))
def test_a_lost_reply_gives_the_masked_momentum_back(pattern: list[Round]) -> None:
    """DGC: after a loss u and v are what they would be had nothing been chosen: u ← βu + g, v ← v + u."""
    scheme, beta = DGC(0.1, momentum=0.5), np.float32(0.5)
    federation = Federation.of(plan_of(scheme, ModelBroadcast()), np.zeros(LAYOUT.size, dtype=np.float32))
    for number, each in enumerate(pattern):
        before = {client: federation.settled(client) for client in each.cohort}
        updates = {c: dyadic(np.random.default_rng([number, c])) for c in each.cohort}
        federation.play(each.cohort, updates, list(each.lost))
        for client in each.lost & set(each.cohort):
            zero = np.zeros(LAYOUT.size, dtype=np.float32)
            u = beta * before[client].get("u", zero) + updates[client]
            after = federation.settled(client)
            assert (after["u"] == u).all()
            assert (after["v"] == before[client].get("v", zero) + u).all()


@settings(max_examples=60)
@given(pattern=rounds(forgetful=False))
def test_the_server_has_the_mean_of_all_clients_estimates(pattern: list[Round]) -> None:
    """EF21: after any pattern of losses both ends agree, bit for bit in dyadic arithmetic."""
    federation = played(EF21(TOP), ModelBroadcast(), pattern)
    own = sum(federation.settled(client).get("estimate", np.zeros(LAYOUT.size)) for client in range(CLIENTS))
    theirs = federation.server.scheme_state.get("estimate", np.zeros(LAYOUT.size))
    assert theirs == pytest.approx(own / CLIENTS, abs=1e-12)


@settings(max_examples=60)
@given(pattern=rounds(forgetful=False))
def test_the_servers_control_variate_is_the_mean_of_all_clients(pattern: list[Round]) -> None:
    """SCAFFOLD: c = Σ c_i / N after any pattern of losses."""
    federation = played(Scaffold(), ModelBroadcast(), pattern)
    own = sum(federation.settled(client).get("control", np.zeros(LAYOUT.size)) for client in range(CLIENTS))
    theirs = federation.server.scheme_state.get("reference", np.zeros(LAYOUT.size))
    assert theirs == pytest.approx(own / CLIENTS, abs=1e-12)


@pytest.mark.parametrize("scheme", [EF21(TOP), Scaffold()], ids=str)
def test_who_lost_what_the_server_has_the_sum_of_cannot_go_on(scheme: CompressionScheme) -> None:
    federation = Federation.of(plan_of(scheme), np.zeros(LAYOUT.size, dtype=np.float32))
    x = dyadic(np.random.default_rng(0))
    federation.play([0, 1], {0: x, 1: x})
    federation.forget(1)
    with pytest.raises(RunError, match=r"round 2, client 1: the server accepted a reply of round 1, .* cannot be restored"):
        federation.play([1], {1: x})


@pytest.mark.parametrize(
    "name", [n for n in COMPRESSORS if issubclass(COMPRESSORS[n], CompressionScheme) and COMPRESSORS[n].server_mirrors_clients]
)
def test_schemes_whose_state_is_mirrored_say_so(name: str) -> None:
    """What a client remembers and the server sums up: bfloat16 states and lost states are refused by it."""
    assert COMPRESSORS[name].needs_normalized_weights


def test_a_message_that_arrives_again_is_answered_with_the_same_bytes() -> None:
    """Also if what the client remembered before is gone by then: the reply is kept instead."""
    federation = Federation.of(
        plan_of(ErrorFeedback(TOP), ModelBroadcast("difference")), np.zeros(LAYOUT.size, dtype=np.float32)
    )
    x = dyadic(np.random.default_rng(0))
    for _ in range(3):
        federation.play([0], {0: x})
    messages, _ = broadcast(federation.plan, federation.server, [0])
    first = federation._answer(0, messages[0], x)
    state = federation.states[0]
    second = federation._answer(0, messages[0], x)
    assert first.frames == second.frames
    assert federation.states[0] is state


def test_a_message_that_comes_late_is_refused_and_nothing_is_undone_by_it() -> None:
    """A TASK of round 1, again after round 3: it does not know of the replies that were accepted since."""
    federation = Federation.of(
        plan_of(ErrorFeedback(TOP), ModelBroadcast("difference")), np.zeros(LAYOUT.size, dtype=np.float32)
    )
    x = dyadic(np.random.default_rng(0))
    messages, _ = broadcast(federation.plan, federation.server, [0])
    for _ in range(3):
        federation.play([0], {0: x})
    state = federation.states[0]
    with pytest.raises(WireError, match="byte 6: round is 1, but this client already replied in round 3"):
        federation._answer(0, messages[0], x)
    assert federation.states[0] is state
    federation.play([0], {0: x})
    withheld = ErrorFeedback(TOP).undelivered_update(federation.settled(0), LAYOUT)
    assert (federation.given[0] - federation.delivered[0] == withheld).all()


def test_an_old_residual_shrinks_or_goes_and_its_client_catches_up_all_the_same() -> None:
    for policy, kept in (("decay", 0.5**4), ("reset", 0.0)):
        scheme = StaleResidualPolicy(ErrorFeedback(TopK(0.02)), policy, factor=0.5, rounds=3)
        federation = Federation.of(plan_of(scheme, ModelBroadcast("difference")), np.zeros(LAYOUT.size, dtype=np.float32))
        x = dyadic(np.random.default_rng(1))
        federation.play([0, 1], {0: x, 1: x})
        for _ in range(4):
            federation.play([1], {1: x})
        residual = federation.settled(0)["residual"].copy()
        federation.play([0, 1], {0: np.zeros_like(x), 1: x}, lost=[0])
        assert (federation.settled(0)["residual"] == residual * np.float32(kept)).all()
