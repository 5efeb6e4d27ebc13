"""Laws of federations in which clients miss rounds, replies are lost and clients lose their state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.aggregation import select_aggregator
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
from tests.effort import examples
from tests.laws.federation import CLIENTS, LAYOUT, Federation, make_plan, sample_dyadic_vector

TOP = TopK(0.1)
LINKS = {
    "model": ModelBroadcast(),
    "difference": ModelBroadcast("difference"),
    "error feedback, ternary": ModelBroadcast("error-feedback", TopK(0.1, "ternary")),
    "error feedback, signs": ModelBroadcast("error-feedback", Sign()),
    "EF21-P": ModelBroadcast("ef21-p", TOP),
    "unbiased, levels": ModelBroadcast("unbiased", QSGD()),
    "difference, three rounds": ModelBroadcast("difference", history_rounds=3),
    "error feedback, three rounds": ModelBroadcast("error-feedback", TOP, 3),
}
SCHEMES_WITH_RESIDUAL = {
    "top-k": ErrorFeedback(TOP),
    "top-k of density 0.02": ErrorFeedback(TopK(0.02)),
    "dgc": DGC(0.1, momentum=0.0),
    "stc": STC(0.1),
    "power-sgd": PowerSGD(1),
}


@dataclass(frozen=True)
class RoundPlan:
    """Plan of one round.

    Attributes:
        cohort: clients of the round, ascending.
        lost: clients whose reply is lost.
        without_state: clients that lose their state before the round.
    """

    cohort: list[int]
    lost: frozenset[int]
    without_state: frozenset[int]


def round_plans(loses_state: bool = True) -> st.SearchStrategy[list[RoundPlan]]:
    client = st.integers(0, CLIENTS - 1)
    cohorts = st.lists(client, min_size=1, max_size=CLIENTS, unique=True).map(sorted)
    subsets = st.frozensets(client, max_size=3)
    no_client: st.SearchStrategy[frozenset[int]] = st.just(frozenset())
    return st.lists(st.builds(RoundPlan, cohorts, subsets, subsets if loses_state else no_client), min_size=1, max_size=14)


def play_rounds(scheme: CompressionScheme, link: ModelBroadcast, plans: list[RoundPlan], check: Any = None) -> Federation:
    rng = np.random.default_rng(len(plans))
    federation = Federation.of(make_plan(scheme, link), sample_dyadic_vector(rng))
    for number, round_plan in enumerate(plans):
        for client in round_plan.without_state:
            federation.lose_state(client)
        public = federation.server.public_model.weights
        server = federation.server
        federation.play(
            round_plan.cohort,
            {c: sample_dyadic_vector(np.random.default_rng([number, c])) for c in round_plan.cohort},
            list(round_plan.lost),
        )
        for client in round_plan.cohort:
            assert federation.decoded[client].tobytes() == public.tobytes(), f"client {client} in round {number + 1}"
        if check is not None:
            check(federation, server, round_plan)
    return federation


# ----------------------------------------------------------------------------------------------------------------------- downlink


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@examples(15)
@given(pattern=round_plans())
def test_client_that_missed_rounds_decodes_the_same_bits(link: ModelBroadcast, pattern: list[RoundPlan]) -> None:
    """Client 0 of a second federation is in each cohort and loses neither a reply nor its state."""
    scheme = ErrorFeedback(TOP)
    play_rounds(scheme, link, pattern)
    with_client_0 = [
        RoundPlan(sorted({0, *r.cohort}), frozenset(r.lost - {0}), frozenset(r.without_state - {0})) for r in pattern
    ]
    assert play_rounds(scheme, link, with_client_0).resyncs <= sum(len(r.without_state) for r in with_client_0)


@pytest.mark.sampled
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@examples(10)
@given(pattern=round_plans(loses_state=False))
def test_catch_up_frames_are_the_smallest_candidate(link: ModelBroadcast, pattern: list[RoundPlan]) -> None:
    """The sent frames are compared with the full model, one merged difference, and the chain of all differences since the first
    round.
    """
    chain: list[EncodedFrame] = []
    models: dict[int, F32] = {}

    def check(federation: Federation, server: Any, round_plan: RoundPlan) -> None:
        plan, public = federation.plan, server.public_model
        models[server.round] = public.weights
        if public.difference_frames and (not chain or chain[-1] is not public.difference_frames[-1]):
            chain.append(public.difference_frames[-1])
        messages, _ = broadcast(plan, server, round_plan.cohort)
        planner = CatchUpPlanner(plan.downlink, public, lambda round: plan.make_context(round, ALL_CLIENTS))
        for message in messages.values():
            base, n_bytes = decode_frame(message[0]).header.base, sum(map(len, message[1:]))
            full_model_bytes = len(planner.get_full_model_frame().data)
            assert n_bytes <= full_model_bytes
            if not base:
                continue
            later_frames = [frame for frame in chain if frame.decoded.header.round > base]
            if later_frames and later_frames[0].decoded.header.base <= base:
                assert n_bytes <= sum(len(frame.data) for frame in later_frames)
            steps = [models[r] != models[r + 1] for r in range(base, server.round)]
            changed = np.flatnonzero(np.any(steps, axis=0))
            sections, _ = encode_sparse(
                changed, public.weights[changed], "float32", plan.make_context(server.round, ALL_CLIENTS)
            )
            merged = Frame(Header(FrameKind.MODEL, server.round, ASSIGN_CODEC, base=base), sections)
            assert n_bytes <= len(encode_frame(merged))

    play_rounds(ErrorFeedback(TOP), link, pattern, check)


def test_error_feedback_and_ef21_p_send_the_same_without_rounding() -> None:
    """Where the arithmetic is exact, both policies give the same public model."""
    pattern = [RoundPlan([0, 2], frozenset(), frozenset()), RoundPlan([1], frozenset(), frozenset())] * 5
    models = [
        play_rounds(MemorylessScheme(TopK(1.0)), ModelBroadcast(policy, TOP), pattern).server.public_model.weights.tobytes()
        for policy in ("error-feedback", "ef21-p")
    ]
    assert models[0] == models[1]


def test_feeding_the_residual_back_twice_diverges() -> None:
    """Error feedback on the downlink compresses the server's step and not w − public, which contains the residual already."""
    rng = np.random.default_rng(0)
    w, public, residual, norms = np.zeros(60), np.zeros(60), np.zeros(60), []
    for _ in range(60):
        w += rng.standard_normal(60)
        delta = residual + (w - public)
        sent = np.where(np.abs(delta) >= np.sort(np.abs(delta))[-6], delta, 0)
        public, residual = public + sent, delta - sent
        norms.append(float(np.linalg.norm(w - public)))
    assert norms[-1] > 1e3 * norms[5]


# ------------------------------------------------------------------------------------------------------------ two-phase commit


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES_WITH_RESIDUAL.values(), ids=SCHEMES_WITH_RESIDUAL.keys())
@examples(15)
@given(pattern=round_plans(loses_state=False))
def test_trained_sum_equals_delivered_plus_undelivered_for_any_lost_replies(
    scheme: CompressionScheme, pattern: list[RoundPlan]
) -> None:
    """The law holds for each client, without weights. Where all arithmetic is exact, it holds exactly."""
    federation = play_rounds(scheme, ModelBroadcast("difference"), pattern)
    for client in range(CLIENTS):
        undelivered = scheme.undelivered_update(federation.resolved_state(client), LAYOUT)
        assert undelivered is not None
        error = np.abs(federation.trained[client] - federation.delivered[client] - undelivered).max()
        assert error <= (0.0 if isinstance(scheme, ErrorFeedback | DGC) else 1e-4), f"client {client}: {error}"


@pytest.mark.slow
@examples(15)
@given(pattern=round_plans(loses_state=False))
def test_lost_reply_restores_masked_momentum(pattern: list[RoundPlan]) -> None:
    """After a lost reply, DGC's u and v are those of a round without selection: u ← βu + g, v ← v + u."""
    scheme, beta = DGC(0.1, momentum=0.5), np.float32(0.5)
    federation = Federation.of(make_plan(scheme, ModelBroadcast()), np.zeros(LAYOUT.size, dtype=np.float32))
    for number, round_plan in enumerate(pattern):
        states = {client: federation.resolved_state(client) for client in round_plan.cohort}
        updates = {c: sample_dyadic_vector(np.random.default_rng([number, c])) for c in round_plan.cohort}
        federation.play(round_plan.cohort, updates, list(round_plan.lost))
        for client in round_plan.lost & set(round_plan.cohort):
            zero = np.zeros(LAYOUT.size, dtype=np.float32)
            u = beta * states[client].get("u", zero) + updates[client]
            state = federation.resolved_state(client)
            assert (state["u"] == u).all()
            assert (state["v"] == states[client].get("v", zero) + u).all()


@examples(15)
@given(pattern=round_plans(loses_state=False))
def test_ef21_server_estimate_is_the_mean_of_client_estimates(pattern: list[RoundPlan]) -> None:
    """After any lost replies, both ends agree bit for bit in dyadic arithmetic."""
    federation = play_rounds(EF21(TOP), ModelBroadcast(), pattern)
    client_sum = sum(federation.resolved_state(client).get("estimate", np.zeros(LAYOUT.size)) for client in range(CLIENTS))
    server_estimate = federation.server.aggregator_state.get("estimate", np.zeros(LAYOUT.size))
    assert server_estimate == pytest.approx(client_sum / CLIENTS, abs=1e-12)


@examples(15)
@given(pattern=round_plans(loses_state=False))
def test_scaffold_server_control_variate_is_the_mean_of_client_control_variates(pattern: list[RoundPlan]) -> None:
    """c = Σ c_i / N after any lost replies."""
    federation = play_rounds(Scaffold(), ModelBroadcast(), pattern)
    client_sum = sum(federation.resolved_state(client).get("control", np.zeros(LAYOUT.size)) for client in range(CLIENTS))
    server_estimate = federation.server.aggregator_state.get("reference", np.zeros(LAYOUT.size))
    assert server_estimate == pytest.approx(client_sum / CLIENTS, abs=1e-12)


@pytest.mark.parametrize("scheme", [EF21(TOP), Scaffold()], ids=str)
def test_client_with_lost_mirrored_state_raises_run_error(scheme: CompressionScheme) -> None:
    federation = Federation.of(make_plan(scheme), np.zeros(LAYOUT.size, dtype=np.float32))
    x = sample_dyadic_vector(np.random.default_rng(0))
    federation.play([0, 1], {0: x, 1: x})
    federation.lose_state(1)
    with pytest.raises(RunError, match=r"round 2, client 1: the server accepted a reply of round 1, .* cannot be restored"):
        federation.play([1], {1: x})


@pytest.mark.parametrize(
    "name", [n for n in COMPRESSORS if issubclass(COMPRESSORS[n], CompressionScheme) and COMPRESSORS[n].server_mirrors_clients]
)
def test_scheme_with_mirrored_state_needs_normalized_weights(name: str) -> None:
    """The server has the sum of the clients' states, so bfloat16 states and lost states are rejected."""
    assert select_aggregator(None, COMPRESSORS[name]()).accepted_weights in ("normalized", "equal")


def test_repeated_message_gets_the_same_bytes() -> None:
    """The stored reply is sent again, because the state before it may be gone."""
    federation = Federation.of(
        make_plan(ErrorFeedback(TOP), ModelBroadcast("difference")), np.zeros(LAYOUT.size, dtype=np.float32)
    )
    x = sample_dyadic_vector(np.random.default_rng(0))
    for _ in range(3):
        federation.play([0], {0: x})
    messages, _ = broadcast(federation.plan, federation.server, [0])
    first = federation.answer(0, messages[0], x)
    state = federation.states[0]
    second = federation.answer(0, messages[0], x)
    assert first.frames == second.frames
    assert federation.states[0] is state


def test_late_message_is_rejected_and_changes_nothing() -> None:
    """A TASK of round 1 arrives again after round 3. It does not acknowledge later replies."""
    federation = Federation.of(
        make_plan(ErrorFeedback(TOP), ModelBroadcast("difference")), np.zeros(LAYOUT.size, dtype=np.float32)
    )
    x = sample_dyadic_vector(np.random.default_rng(0))
    messages, _ = broadcast(federation.plan, federation.server, [0])
    for _ in range(3):
        federation.play([0], {0: x})
    state = federation.states[0]
    with pytest.raises(WireError, match="byte 6: round is 1, but this client already replied in round 3"):
        federation.answer(0, messages[0], x)
    assert federation.states[0] is state
    federation.play([0], {0: x})
    undelivered = ErrorFeedback(TOP).undelivered_update(federation.resolved_state(0), LAYOUT)
    assert (federation.trained[0] - federation.delivered[0] == undelivered).all()


def test_stale_residual_policy_scales_the_residual_of_an_absent_client() -> None:
    for policy, factor in (("decay", 0.5**4), ("reset", 0.0)):
        scheme = StaleResidualPolicy(ErrorFeedback(TopK(0.02)), policy, factor=0.5, rounds=3)
        federation = Federation.of(make_plan(scheme, ModelBroadcast("difference")), np.zeros(LAYOUT.size, dtype=np.float32))
        x = sample_dyadic_vector(np.random.default_rng(1))
        federation.play([0, 1], {0: x, 1: x})
        for _ in range(4):
            federation.play([1], {1: x})
        residual = federation.resolved_state(0)["residual"].copy()
        federation.play([0, 1], {0: np.zeros_like(x), 1: x}, lost=[0])
        assert (federation.resolved_state(0)["residual"] == residual * np.float32(factor)).all()
