"""Closed forms: what theory or a hand says a compressor does, and what it does."""

from __future__ import annotations

import itertools
import math
import runpy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsgd.compression import (
    AggregationContext,
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    ErrorFeedback,
    StaleResidualPolicy,
    StateArrays,
    WeightedUpdate,
)
from fedsgd.compression.kernels.hadamard import compute_block_ends, rotate, unrotate
from fedsgd.compression.operators.count_sketch import CountSketch, sketch, unsketch
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.drive import Drive
from fedsgd.compression.operators.eden import CENTROIDS, Eden
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.natural import NaturalCompression
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.compression.operators.threshold import Threshold
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.compression.schemes.fetch_sgd import FetchSGD
from fedsgd.compression.schemes.power_sgd import LowRankUpdate, PowerSGD, split_tensors
from fedsgd.errors import ScenarioError
from fedsgd.federation.downlink import ModelBroadcast, initial_public_model, next_public_model
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import ALL_CLIENTS, SectionKind, gap_codec


def gaussian(size: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def at(size: int, round: int = 1, client: int = 0, **more: Any) -> CodecContext:
    return CodecContext(0, round, client, ParameterLayout.from_size(size), **more)


def decoded(op: CompressionOperator, x: F32, ctx: CodecContext) -> np.ndarray:
    sections, _ = op.encode(x, ctx)
    return op.decode(sections, ctx).to_dense().astype(np.float64)


def relative_error(op: CompressionOperator, x: F32, ctx: CodecContext) -> float:
    return float(np.square(x - decoded(op, x, ctx)).sum() / np.square(x, dtype=np.float64).sum())


def dyadic(size: int, seed: int) -> F32:
    """Numbers whose sums are exact in float32."""
    return (np.random.default_rng(seed).integers(-512, 513, size) / 64).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- positions and bits


@pytest.mark.parametrize(
    ("density", "bits", "ratio"), [(1 / 25, 7.08, 113), (1 / 100, 9.11, 351), (1 / 400, 11.11, 1152), (1 / 1000, 12.49, 2563)]
)
def test_stc_bits_per_non_zero(density: float, bits: float, ratio: int) -> None:
    """Sattler et al. 2019, section IV-D: b + 1/(1 − (1 − p)^(2^b)) for a position and 1 for a sign, by formula and by coding two
    million geometric gaps with that one parameter."""
    phi = (1 + math.sqrt(5)) / 2
    b = 1 + math.floor(math.log2(math.log(phi - 1) / math.log(1 - density)))
    formula = b + 1 / (1 - (1 - density) ** (2**b)) + 1
    assert formula == pytest.approx(bits, abs=0.006), "three digits"
    assert 32 / (density * formula) == pytest.approx(ratio, rel=1e-3)
    k = 2_000_000
    drawn = np.random.default_rng(0).geometric(density, k) - 1
    coded = gap_codec.encode_rice(drawn, np.full(-(-k // 128), b))
    measured = 8 * len(coded) / k - 5 / 128 + 1  # without our parameter for each block
    assert measured == pytest.approx(formula, abs=0.005)


def test_a_whole_stc_message_needs_no_more_than_its_paper_says() -> None:
    sections, _ = TopK(1 / 400, "ternary").encode(gaussian(1_000_000), at(1_000_000))
    assert 8 * sum(len(s.data) for s in sections) / 2500 < 1.01 * 11.11


@pytest.mark.parametrize(
    ("network", "megabytes", "ratio"), [("ResNet-50", 0.352, 276.7), ("AlexNet", 0.389, 597.7), ("PTB LSTM", 0.4215, 461.8)]
)
def test_dgcs_published_ratios_by_encoding(network: str, megabytes: float, ratio: float, root: Path) -> None:
    """Lin et al. 2018, tables 2 to 4, under the wire of that paper; and in our frames the same coordinates weigh less."""
    ratios = runpy.run_path(str(root / "scenarios" / "dgc" / "ratios.py"))["ratios"](network)
    assert ratios["DGC"] == (pytest.approx(megabytes, abs=5e-4), pytest.approx(ratio, rel=1e-3))
    assert ratios["float32"][0] < 0.87 * ratios["DGC"][0]
    assert ratios["bfloat16"][0] < 0.45 * ratios["DGC"][0]


# ------------------------------------------------------------------------------------------------------- unbiased: exact variance


@pytest.mark.parametrize(
    "op",
    [QSGD(), QSGD(3, 16), QSGD(norm="max"), TernGrad(), NaturalCompression(), Integer(), Integer(4, bucket=16), RandK(0.25)],
    ids=str,
)
def test_the_variance_is_the_stated_one(op: CompressionOperator) -> None:
    x = gaussian(48) * np.exp(gaussian(48, 1))
    off = [np.square(decoded(op, x, at(48, r)) - x).sum() for r in range(1, 6001)]
    stated = op.variance(x)
    assert stated is not None
    assert np.mean(off) == pytest.approx(stated, abs=5 * np.std(off) / math.sqrt(len(off)))


def test_variances_by_hand() -> None:
    x = np.array([3, -4, 0, 1.5], dtype=np.float32)
    norm, energy = math.sqrt(27.25), 27.25
    fractions = [3 * 2 / norm % 1, 4 * 2 / norm % 1, 1.5 * 2 / norm % 1]
    assert QSGD(2).variance(x) == pytest.approx(sum((norm / 2) ** 2 * f * (1 - f) for f in fractions), rel=1e-6)
    assert TernGrad().variance(x) == pytest.approx(3 * (4 - 3) + 1.5 * (4 - 1.5))
    assert NaturalCompression().variance(x) == pytest.approx(4 * 0.5 * 0.5 + 1 * 0.5 * 0.5), (
        "3 = 2 · 1.5, 4 and 0 are powers, 1.5 = 1 · 1.5"
    )
    assert RandK(0.25).variance(x) == pytest.approx(3 * energy)


def test_variances_stay_under_their_papers_bounds() -> None:
    for seed in range(20):
        x = (gaussian(512, seed) ** 5).astype(np.float32)
        energy = float(np.square(x, dtype=np.float64).sum())
        for s in (1, 4, 16):
            assert QSGD(s, 512).variance(x) <= min(512 / s**2, math.sqrt(512) / s) * energy
        assert NaturalCompression().variance(x) <= energy / 8


def test_qsgd_gives_each_level_its_probability() -> None:
    """s = 2 on (.6, .8): 2·.6 = 1.2 goes up to 2 in a fifth of the draws, 1.6 in three fifths."""
    x = np.array([0.6, 0.8], dtype=np.float32)
    drawn = np.array([decoded(QSGD(2), x, at(2, r)) for r in range(1, 4001)])
    assert {round(v, 5) for v in drawn.ravel()} == {0.5, 1.0}
    assert (drawn > 0.75).mean(axis=0) == pytest.approx([0.2, 0.6], abs=0.04)


def test_a_lone_coordinate_and_a_bucket_of_zeros_are_exact() -> None:
    x = np.zeros(1024, dtype=np.float32)
    x[7] = -0.1
    for op in (QSGD(127), QSGD(1, norm="max"), TernGrad(), Integer(), Integer(4, "nearest")):
        assert decoded(op, x, at(1024)).tolist() == x.astype(np.float64).tolist()


def scale_of(op: CompressionOperator, x: F32, layout: ParameterLayout | None = None) -> list[float]:
    """The scales in the frame, one for each tensor that is a vector of its own."""
    sections, _ = op.encode(x, CodecContext(0, 1, 0, layout or ParameterLayout.from_size(len(x))))
    (scales,) = [s.data for s in sections if s.kind == SectionKind.SCALE]
    return np.frombuffer(scales, "<f4").tolist()


def test_terngrad_clips_at_the_deviation_about_the_mean() -> None:
    """(2, 4): the mean is 3, σ = 1 and the root mean square √10. Wen et al. 2017 clip at 2.5 σ."""
    x = np.array([2, 4], dtype=np.float32)
    assert scale_of(TernGrad(2.5, "std"), x) == [2.5]
    assert scale_of(TernGrad(1.0), x) == [np.float32(math.sqrt(10))]
    assert scale_of(TernGrad(2.5), x) == [4.0], "2.5 √10 = 7.9 is above both"


def test_terngrad_on_a_shifted_gaussian_gives_the_papers_scale() -> None:
    x = np.random.default_rng(0).normal(3, 1, 4096).astype(np.float32)
    assert scale_of(TernGrad(2.5), x) == [x.max()] == pytest.approx([6.2572], abs=1e-4)
    assert scale_of(TernGrad(2.5, "std"), x) == pytest.approx([2.5 * statistics.pstdev(x.tolist())], rel=1e-6)
    assert scale_of(TernGrad(2.5, "std"), x) == pytest.approx([2.4939], abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-45, -0.1, 3e38])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_terngrad_leaves_equal_coordinates_as_they_are(size: int, value: float) -> None:
    """Their σ is 0: a limit of 0 would send a tensor of one coordinate as zero for ever."""
    x = np.full(size, value, dtype=np.float32)
    assert decoded(TernGrad(2.5, "std"), x, at(size)).tolist() == x.astype(np.float64).tolist()


def test_terngrads_limit_survives_the_ends_of_float32() -> None:
    largest, smallest = float(np.finfo(np.float32).max), 2.0**-149
    assert scale_of(TernGrad(0.5, "std"), np.array([largest, -largest], np.float32)) == [np.float32(largest / 2)]
    assert scale_of(TernGrad(2.5, "std"), np.array([largest, -largest], np.float32)) == [largest], "the limit is infinite"
    assert scale_of(TernGrad(2.0, "std"), np.array([smallest, -smallest], np.float32)) == [smallest]
    shifted = np.array([2.0**20, 2.0**20 + 1], dtype=np.float32)
    assert scale_of(TernGrad(2.0, "std"), shifted) == [1.0], "σ = 1/2, though the squares of 2²⁰ swallow it in float32"


def test_terngrads_deviation_is_each_tensors_own_only_where_tensors_are_separate() -> None:
    layout = ParameterLayout(("a", "b"), ((2,), (2,)))
    x = np.array([2, 4, 20, 40], dtype=np.float32)
    clipped = TernGrad(1.0, "std")
    assert scale_of(PerLayer(clipped, separate=True), x, layout) == [1.0, 10.0]
    whole = [np.float32(statistics.pstdev(x.tolist()))]
    assert scale_of(PerLayer(clipped), x, layout) == scale_of(clipped, x, layout) == whole


# --------------------------------------------------------------------------------------------------------------- contractive


def test_signs_keep_two_over_pi_of_a_gaussian() -> None:
    x = gaussian(1_000_000)
    l1, l2 = np.abs(x.astype(np.float64)).sum(), np.square(x, dtype=np.float64).sum()
    assert 1 - relative_error(Sign(), x, at(len(x))) == pytest.approx(l1**2 / (len(x) * l2), rel=1e-6)
    assert l1**2 / (len(x) * l2) == pytest.approx(2 / math.pi, abs=1e-3)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.571), (2, 0.133), (3, 0.0358), (4, 0.0096)])
def test_edens_error_on_a_gaussian(bits: int, error: float) -> None:
    x = gaussian(200_000)
    assert relative_error(Eden(bits), x, at(len(x))) == pytest.approx(error, rel=0.01)


def test_edens_projection_is_exact_and_its_mean_nearly() -> None:
    """⟨C(x), x⟩ = |x|² on every call; over many rotations C(x) averages to a long x."""
    x = np.exp(2 * gaussian(8192))
    energy = np.square(x, dtype=np.float64).sum()
    draws = [decoded(Eden(1), x, at(8192, r)) for r in range(1, 201)]
    for draw in draws[:20]:
        assert draw @ x == pytest.approx(energy, rel=1e-5)
    mean = np.mean(draws, axis=0)
    assert np.square(mean - x).sum() / energy < 1.5 * 0.571 / 200


def test_errors_of_many_clients_average_out_only_because_each_has_its_own_rotation() -> None:
    x = gaussian(4096)
    mean = np.mean([decoded(Eden(1), x, at(4096, 1, c)) for c in range(50)], axis=0)
    assert np.square(mean - x).sum() / np.square(x).sum() == pytest.approx(0.571 / 50, rel=0.25)


def test_drive_is_one_bit_eden_and_least_squares_keeps_two_over_pi() -> None:
    x = gaussian(100_000)
    assert relative_error(Drive(), x, at(len(x))) == pytest.approx(math.pi / 2 - 1, rel=0.01)
    assert relative_error(Drive("least-squares"), x, at(len(x))) == pytest.approx(1 - 2 / math.pi, rel=0.01)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_centroids_are_lloyd_and_maxs(bits: int) -> None:
    from scipy.stats import norm

    c = np.array(CENTROIDS[bits])
    edges = np.concatenate([[0], (c[1:] + c[:-1]) / 2, [np.inf]])
    means = (norm.pdf(edges[:-1]) - norm.pdf(edges[1:])) / (norm.cdf(edges[1:]) - norm.cdf(edges[:-1]))
    assert means == pytest.approx(c, abs=1e-9)


@pytest.mark.parametrize("size", [1, 63, 64, 100, 4096, 4097, 10_000])
def test_a_rotation_is_orthogonal_and_wastes_little(size: int) -> None:
    x, ends = gaussian(size), compute_block_ends(size)
    y = rotate(x, ends, 5)
    assert np.square(y, dtype=np.float64).sum() == pytest.approx(np.square(x, dtype=np.float64).sum(), rel=1e-5)
    assert unrotate(y, ends, 5, size) == pytest.approx(x, abs=1e-5)
    assert size <= ends[-1] < size + 64


def test_a_threshold_is_inclusive_and_bounds_the_residual() -> None:
    x = np.array([0.5, -0.5, 0.49999997, 0, 2], dtype=np.float32)
    assert np.flatnonzero(decoded(Threshold(0.5), x, at(5))).tolist() == [0, 1, 4]
    scheme, state = ErrorFeedback(Threshold(1.0)), {}
    for r in range(1, 50):
        state = dict(scheme.send(gaussian(100, r) / 3, state, at(100, r)).state)
        assert np.abs(state["residual"]).max() < 1


def test_float16_with_a_scale_does_not_lose_small_updates() -> None:
    x = gaussian(10_000) * np.float32(1e-9)
    assert relative_error(Dense("float16"), x, at(len(x))) < 2**-21
    assert (x.astype(np.float16) == 0).all(), "without one all of it is gone"


# ------------------------------------------------------------------------------------------------------------------ error feedback


@pytest.mark.parametrize(("policy", "expected"), [("persist", 2.0), ("decay", 0.5), ("reset", 0.0)])
def test_what_becomes_of_a_residual_while_its_client_is_away(policy: Any, expected: float) -> None:
    """2 is left in round 1; the client is back in round 4, two rounds missed, with an update of 0."""
    feedback = ErrorFeedback(TopK(1 / 2))
    scheme = feedback if policy == "persist" else StaleResidualPolicy(feedback, policy, factor=0.5, rounds=1)
    first = scheme.send(np.array([3, 2], dtype=np.float32), {}, at(2, 1))
    back = scheme.send(np.zeros(2, dtype=np.float32), first.state, at(2, 4))
    assert scheme.decode(back.sections, at(2, 4)).to_dense().tolist() == [0, expected]
    next_round = scheme.send(np.zeros(2, dtype=np.float32), first.state, at(2, 2))
    assert scheme.decode(next_round.sections, at(2, 2)).to_dense().tolist() == [0, 2], "no round was missed"


# ------------------------------------------------------------------------------------------------------------------------- DGC


def sent_by(scheme: CompressionScheme, updates: list[F32], layout: ParameterLayout) -> tuple[list[F32], StateArrays]:
    """What arrives in each round, and the last state."""
    state: StateArrays = {}
    out = []
    for r, x in enumerate(updates, 1):
        ctx = CodecContext(0, r, 0, layout)
        sent = scheme.send(x, state, ctx)
        out.append(scheme.decode(sent.sections, ctx).to_dense())
        state = sent.state
    return out, state


def test_dgc_with_everything_sent_is_sgd_and_without_masking_momentum_sgd() -> None:
    updates = [gaussian(50, r) for r in range(12)]
    masked, _ = sent_by(DGC(1.0, momentum=0.9), updates, ParameterLayout.from_size(50))
    for got, x in zip(masked, updates, strict=True):
        assert got.tobytes() == x.tobytes()
    unmasked, _ = sent_by(DGC(1.0, momentum=0.9, masking=False), updates, ParameterLayout.from_size(50))
    u = np.zeros(50, dtype=np.float32)
    for got, x in zip(unmasked, updates, strict=True):
        u = np.float32(0.9) * u + x
        assert got.tobytes() == u.tobytes()


def test_nesterov_dgc_with_everything_sent_is_nesterovs_step() -> None:
    updates = [gaussian(50, r) for r in range(6)]
    got, _ = sent_by(DGC(1.0, momentum=0.5, masking=False, nesterov=True), updates, ParameterLayout.from_size(50))
    u = np.zeros(50, dtype=np.float32)
    for sent, x in zip(got, updates, strict=True):
        u = np.float32(0.5) * (u + x)
        assert sent.tobytes() == (u + x).tobytes()


def test_dgc_without_momentum_is_error_feedback_over_top_k() -> None:
    updates = [gaussian(200, r) for r in range(20)]
    dgc, state = sent_by(DGC(0.05, momentum=0.0), updates, ParameterLayout.from_size(200))
    feedback, other = sent_by(ErrorFeedback(TopK(0.05)), updates, ParameterLayout.from_size(200))
    assert np.array(dgc).tobytes() == np.array(feedback).tobytes()
    assert state["v"].tobytes() == other["residual"].tobytes()


@pytest.mark.parametrize("values", ["float32", "bfloat16", "ternary"])
def test_dgc_telescopes_exactly(values: Any) -> None:
    """Σ sent + v = Σ u in exact binary fractions; rounded values leave their error in v."""
    scheme = DGC(0.1, momentum=0.5, values=values)
    state: StateArrays = {}
    sent_sum, u_sum = np.zeros((2, 40))
    for r in range(1, 7):
        x = dyadic(40, r)
        u_before = state["u"] if state else np.zeros(40, dtype=np.float32)
        u_sum += 0.5 * u_before + x
        sent = scheme.send(x, state, at(40, r))
        sent_sum += scheme.decode(sent.sections, at(40, r)).to_dense()
        state = sent.state
        if values != "ternary":  # the mean magnitude of four is not a short binary fraction
            assert (sent_sum + state["v"]).tolist() == u_sum.tolist()
        assert sent_sum + state["v"] == pytest.approx(u_sum, abs=1e-4)


def test_masking_clears_both_where_something_was_sent_and_a_lost_reply_brings_both_back() -> None:
    scheme, x = DGC(0.25, momentum=0.9), np.array([1, -5, 2, 0], dtype=np.float32)
    sent = scheme.send(x, {}, at(4))
    assert (sent.state["u"].tolist(), sent.state["v"].tolist()) == ([1, 0, 2, 0], [1, 0, 2, 0])
    assert (sent.state_if_lost["u"].tolist(), sent.state_if_lost["v"].tolist()) == (x.tolist(), x.tolist())
    assert scheme.send(x, {}, at(4)).state["u"].tolist() == [1, 0, 2, 0]
    assert replace(scheme, masking=False).send(x, {}, at(4)).state["u"].tolist() == x.tolist()


def test_dgc_clips_at_the_root_of_the_cohort() -> None:
    """|x| = 5 with clip 1 and four clients: to a norm of 2."""
    x = np.array([3, 4], dtype=np.float32)
    sent = DGC(1.0, clip=1.0).send(x, {}, at(2, cohort=4))
    assert DGC(1.0).decode(sent.sections, at(2)).to_dense() == pytest.approx([1.2, 1.6])
    untouched = DGC(1.0, clip=1.0).send(x, {}, at(2, cohort=25))
    assert DGC(1.0).decode(untouched.sections, at(2)).to_dense().tolist() == [3, 4]


def test_what_dgc_holds_back_is_not_claimed_where_clipping_has_changed_it() -> None:
    layout = ParameterLayout.from_size(4)
    assert DGC(momentum=0.0, clip=1.0).undelivered_update({}, layout) is None
    assert DGC(momentum=0.0).undelivered_update({}, layout) is not None


def test_natural_values_of_subnormal_numbers_are_zero() -> None:
    x = np.full(8, 1e-40, dtype=np.float32)
    assert not decoded(NaturalCompression(), x, at(8)).any()
    assert NaturalCompression().variance(x) == pytest.approx(8 * float(x[0]) ** 2)


def test_dgcs_warm_up_is_the_published_one() -> None:
    scheme = DGC(0.001, warm_up_rounds=2)
    sparsities = [round(100 * (1 - scheme.density_in_round(r)), 4) for r in range(1, 11)]
    assert sparsities == [75, 75, 93.75, 93.75, 98.4375, 98.4375, 99.6, 99.6, 99.9, 99.9]
    assert DGC(0.001).density_in_round(1) == 0.001


def test_dgc_per_layer_keeps_its_share_of_each_matrix_and_all_vectors() -> None:
    layout = ParameterLayout(("a", "bias", "b"), ((10, 10), (5,), (40, 10)))
    x = np.concatenate([np.full(100, 1e-3), np.full(5, 1e-6), np.arange(400) + 1]).astype(np.float32)
    sent = DGC(0.05, per_layer=True).send(x, {}, CodecContext(0, 1, 0, layout))
    kept = np.flatnonzero(DGC(0.05, per_layer=True).decode(sent.sections, CodecContext(0, 1, 0, layout)).to_dense())
    assert [int(((kept >= a) & (kept < b)).sum()) for a, b in ((0, 100), (100, 105), (105, 505))] == [5, 5, 20]


def test_a_momentum_that_dies_away_becomes_zero() -> None:
    """0.9^t is subnormal from about t = 830 on; it is cleared, not carried on at a hundredth of the speed."""
    scheme = DGC(0.5, momentum=0.9, masking=False)
    state: StateArrays = {"u": np.full(4, 2e-38, dtype=np.float32), "v": np.zeros(4, dtype=np.float32)}
    for r in range(1, 12):
        state = scheme.send(np.zeros(4, dtype=np.float32), state, at(4, r)).state
    assert state["u"].tolist() == [0, 0, 0, 0]


# ---------------------------------------------------------------------------------------------------- memory at the server, or both


def fold(
    scheme: CompressionScheme, server: StateArrays, updates: list[F32], states: list[StateArrays], round: int, clients: int
) -> tuple[F32, StateArrays]:
    """One round of all given clients, each with its own state, which is replaced; equal weights."""
    layout = ParameterLayout.from_size(len(updates[0]))
    shared = scheme.encode_reference(server, CodecContext(0, round, 0, layout))
    reference = scheme.decode_reference(shared, CodecContext(0, round, 0, layout)) if shared else None
    replies = []
    for client, x in enumerate(updates):
        ctx = CodecContext(0, round, client, layout, reference)
        sent = scheme.send(x, states[client], ctx)
        states[client] = sent.state
        replies.append(WeightedUpdate(sent.sections, 1 / len(updates), replace(ctx, reference=None)))
    return scheme.aggregate(server, replies, AggregationContext(0, round, layout, clients))


def test_ef21s_server_holds_the_mean_of_its_clients_estimates() -> None:
    scheme, states, server = EF21(TopK(0.1)), [{}, {}, {}], {}
    for r in range(1, 30):
        update, server = fold(scheme, server, [gaussian(60, c) for c in range(3)], states, r, 4)
        mean = sum(state["estimate"].astype(np.float64) for state in states) / 4
        assert update == pytest.approx(mean, abs=1e-6)
    target = sum(gaussian(60, c).astype(np.float64) for c in range(3)) / 4
    assert np.square(update - target).sum() < 1e-9, "on constant updates the estimates arrive"


def test_ef21s_two_ends_do_not_drift_apart() -> None:
    """Updates that shrink a thousandfold over five hundred rounds: what adds up in float32 would be off by more than is left."""
    scheme, states, server = EF21(TopK(0.1)), [{}], {}
    for r in range(1, 501):
        update, server = fold(scheme, server, [gaussian(50, r) * np.float32(10 ** (-r / 100))], states, r, 1)
    assert np.abs(server["estimate"] - states[0]["estimate"]).max() < 1e-13
    assert update == pytest.approx(states[0]["estimate"], rel=1e-6)


def test_ef21_forgets_nothing_and_invents_nothing_when_a_reply_is_lost() -> None:
    scheme = EF21(TopK(0.5))
    x = np.array([4, 1], dtype=np.float32)
    first = scheme.send(x, {}, at(2))
    assert first.state["estimate"].tolist() == [4, 0]
    assert "estimate" not in first.state_if_lost
    second = scheme.send(np.array([9, 1], dtype=np.float32), first.state, at(2, 2))
    assert second.state_if_lost["estimate"].tolist() == [4, 0]


def test_ef21_wants_equal_weights_and_says_so(scenario: Any) -> None:
    with pytest.raises(ScenarioError, match=r'server\.weighting: got "examples", expected "uniform": ef21 averages'):
        scenario({"uplink.compressor.name": "ef21", "uplink.error_feedback": "none"})


def test_cafe_sends_the_difference_and_adds_it_back() -> None:
    """Without loss the update is the mean; with loss the reference moves towards constant updates and gets there."""
    updates = [gaussian(30, c) for c in range(3)]
    mean = np.mean(np.array(updates, dtype=np.float64), axis=0)
    exact, server = fold(CAFe(Dense()), {}, updates, [{}, {}, {}], 1, 3)
    assert exact == pytest.approx(mean, abs=1e-6)
    again, _ = fold(CAFe(Dense()), server, updates, [{}, {}, {}], 2, 3)
    assert again == pytest.approx(mean, abs=1e-6)
    server, states = {}, [{}]
    for r in range(1, 12):
        update, server = fold(CAFe(TopK(0.1)), server, updates[:1], states, r, 1)
        assert np.count_nonzero(update) == min(30, 3 * r)
    assert update.tobytes() == updates[0].tobytes()
    assert states == [{}], "clients remember nothing"


def test_cafes_reference_crosses_without_loss() -> None:
    server = {"reference": gaussian(500)}
    sections = CAFe().encode_reference(server, at(500))
    assert CAFe().decode_reference(sections, at(500)).tobytes() == server["reference"].tobytes()
    assert sum(len(s.data) for s in sections) <= CAFe().max_reference_bytes(ParameterLayout.from_size(500))
    assert CAFe().encode_reference({}, at(500)) == ()


def test_stcs_server_changes_k_coordinates_and_keeps_the_rest() -> None:
    """Sattler et al. 2019, at the server: the step and the residual compressed, the rest kept."""
    link, layout = ModelBroadcast("error-feedback", TopK(0.05, "ternary")), ParameterLayout.from_size(100)
    public = initial_public_model(link, np.zeros(100, dtype=np.float32), lambda r: CodecContext(0, r, ALL_CLIENTS, layout))
    given, weights = np.zeros(100), public.weights
    for r in range(1, 20):
        step = dyadic(100, r)
        given += step
        before = weights
        weights, public = next_public_model(
            link, public, weights + step, step, lambda r: CodecContext(0, r, ALL_CLIENTS, layout)
        )
        change = weights - before
        assert np.count_nonzero(change) == 5
        assert weights.tobytes() == public.weights.tobytes(), "the server goes on from what its clients have"
    assert public.residual is not None
    assert weights + public.residual == pytest.approx(given, abs=1e-4)


def test_sketches_add_up_and_are_read_where_something_stands_out() -> None:
    x, y = gaussian(2000) * np.float32(0.01), np.zeros(2000, dtype=np.float32)
    y[[5, 77, 1999]] = [10, -20, 5]
    tables = [sketch(v, 5, 300, 9) for v in (x, y, x + y)]
    assert tables[0] + tables[1] == pytest.approx(tables[2], abs=1e-6)
    read = unsketch(tables[2], 2000, 9)
    assert read[[5, 77, 1999]] == pytest.approx([10, -20, 5], abs=0.5)
    assert sorted(np.argsort(-np.abs(read))[:3].tolist()) == [5, 77, 1999]


def test_one_row_of_a_sketch_has_the_variance_of_its_docstring() -> None:
    x, op = gaussian(40), CountSketch(0.25, rows=1)
    off = np.mean([np.square(decoded(op, x, at(40, r)) - x) for r in range(1, 5001)], axis=0)
    expected = (np.square(x).sum() - np.square(x)) / 10
    assert off.sum() == pytest.approx(expected.sum(), rel=0.05)


def test_fetch_sgd_with_a_wide_table_is_momentum_and_error_feedback_at_the_server() -> None:
    """A table without collisions: by hand in vectors, u ← ρu + mean, e ← e + u, the largest of e out, u cleared there."""
    scheme = FetchSGD(density=1.0, rows=1, kept_share=0.125, momentum=0.5)
    cell = np.array([np.flatnonzero(sketch(np.eye(8, dtype=np.float32)[i], 1, 8, key_of(scheme)).ravel())[0] for i in range(8)])
    alone = [i for i in range(8) if (cell == cell[i]).sum() == 1]
    assert len(alone) >= 3
    u, e, server = np.zeros(8), np.zeros(8), {}
    for r in range(1, 8):
        x = np.zeros(8, dtype=np.float32)
        x[alone] = dyadic(len(alone), r)
        update, server = fold(scheme, server, [x], [{}], r, 1)
        u = 0.5 * u + x
        e = e + u
        best = int(np.abs(e).argmax())
        assert update[best] == e[best]
        assert np.count_nonzero(update) == 1
        e[best] = u[best] = 0


def key_of(scheme: FetchSGD) -> int:
    from fedsgd.numerics.rng import shared_key

    return shared_key(0, "fetch-sgd")


# --------------------------------------------------------------------------------------------------------------------- PowerSGD

LAYOUT = ParameterLayout(("w", "bias", "conv"), ((12, 9), (7,), (8, 2, 3, 3)))


def power(scheme: PowerSGD, x: F32, state: StateArrays, round: int = 1) -> tuple[F32, StateArrays]:
    ctx = CodecContext(0, round, 0, LAYOUT)
    sent = scheme.send(x, state, ctx)
    return scheme.decode(sent.sections, ctx).to_dense(), sent.state


def test_power_sgd_is_exact_on_low_rank_and_on_vectors() -> None:
    rng = np.random.default_rng(0)
    w, conv = (rng.standard_normal((n, 2)) @ rng.standard_normal((2, m)) for n, m in ((12, 9), (8, 18)))
    x = np.concatenate([w.ravel(), rng.standard_normal(7), conv.ravel()]).astype(np.float32)
    got, state = power(PowerSGD(2), x, {})
    assert got == pytest.approx(x, abs=1e-4)
    assert got[108:115].tobytes() == x[108:115].tobytes()
    assert np.abs(state["residual"]).max() < 1e-4


def test_power_sgds_error_is_what_the_projection_leaves() -> None:
    """|M − P̂Qᵀ|² = |M|² − |P̂ᵀM|² for the orthonormal factor that was sent."""
    x = gaussian(LAYOUT.size)
    sent = PowerSGD(2).send(x, {}, CodecContext(0, 1, 0, LAYOUT))
    update: Any = PowerSGD(2).decode(sent.sections, CodecContext(0, 1, 0, LAYOUT))
    assert isinstance(update, LowRankUpdate)
    for matrix in split_tensors(LAYOUT, 2)[0]:
        m = x[matrix.flat_slice].reshape(matrix.n, matrix.m).astype(np.float64)
        left = matrix.view_factors(update.factors)[0].astype(np.float64)
        error = np.square(m - update.to_dense()[matrix.flat_slice].reshape(m.shape)).sum()
        assert left.T @ left == pytest.approx(np.eye(2), abs=1e-6)
        assert error == pytest.approx(np.square(m).sum() - np.square(left.T @ m).sum(), rel=1e-5)


def test_power_sgd_warm_starts_into_the_best_factors() -> None:
    """On the same matrix again and again the product tends to the best approximation of its rank, the truncated SVD."""
    x, state = gaussian(LAYOUT.size), {}
    singular = np.linalg.svd(x[:108].reshape(12, 9).astype(np.float64), compute_uv=False)
    best, errors = np.square(singular[2:]).sum(), []
    for r in range(1, 60):
        got, after = power(PowerSGD(2), x, state, r)
        errors.append(np.square(x[:108].astype(np.float64) - got[:108]).sum())
        state = {"factors": after["factors"]}
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_a_zero_matrix_stays_finite_and_is_not_zero_for_ever() -> None:
    zero = np.zeros(LAYOUT.size, dtype=np.float32)
    got, state = power(PowerSGD(2), zero, {})
    assert got.tolist() == zero.tolist()
    x = zero.copy()
    x[3] = 1
    got, _ = power(PowerSGD(2), x, {"factors": state["factors"]}, 2)
    assert got == pytest.approx(x, abs=1e-6)


def test_tensors_that_factors_would_make_larger_are_sent_whole() -> None:
    found, rest = split_tensors(ParameterLayout(("small", "big"), ((2, 2), (40, 30))), 1)
    assert [(m.n, m.m) for m in found] == [(40, 30)]
    assert rest == [slice(0, 4)]


# ------------------------------------------------------------------------------------------------------------------- composition


def test_per_layer_is_each_operator_on_its_own_tensors() -> None:
    layout = ParameterLayout(("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"), ((8, 10), (8,), (5, 8), (5,)))
    op = PerLayer(TopK(0.1), biases=Dense(), rules=(LayerRule("fc2.w*", Sign()),))
    x = gaussian(layout.size)
    got = decoded(op, x, CodecContext(0, 1, 0, layout))
    assert np.flatnonzero(got[:80]).tolist() == sorted(np.argsort(-np.abs(x[:80]))[:8].tolist())
    assert got[80:88].tolist() == x[80:88].tolist()
    assert set(np.round(np.abs(got[88:128]), 6)) == {round(float(np.abs(x[88:128]).mean()), 6)}
    assert got[128:].tolist() == x[128:].tolist()


def test_per_layer_nested_in_per_layer_is_rejected() -> None:
    with pytest.raises(ScenarioError, match=r"per-layer\.op: per-layer cannot be nested in per-layer"):
        PerLayer(biases=PerLayer())


def test_separate_tensors_have_their_own_k() -> None:
    layout = ParameterLayout(("a", "b"), ((10, 10), (10, 10)))
    x = np.concatenate([gaussian(100), 1000 * gaussian(100, 1)]).astype(np.float32)
    together, apart = (decoded(PerLayer(TopK(0.1), separate=s), x, CodecContext(0, 1, 0, layout)) for s in (False, True))
    assert [np.count_nonzero(v[:100]) for v in (together, apart)] == [0, 10]
    assert np.count_nonzero(together) == np.count_nonzero(apart) == 20


def test_groups_of_one_size_do_not_share_their_randomness() -> None:
    layout = ParameterLayout(("a", "b"), ((20, 20), (20, 20)))
    got = decoded(PerLayer(RandK(0.1), separate=True), np.ones(800, dtype=np.float32), CodecContext(0, 1, 0, layout))
    assert np.flatnonzero(got[:400]).tolist() != np.flatnonzero(got[400:]).tolist()


def test_a_schedule_has_its_density_in_its_round() -> None:
    op = Scheduled(TopK(0.01), (0.5, 0.1), rounds=3)
    kept = [np.count_nonzero(decoded(op, gaussian(1000), at(1000, r))) for r in range(1, 9)]
    assert kept == [500, 500, 500, 100, 100, 100, 10, 10]
    with pytest.raises(ScenarioError, match=r"scheduled\.op: sign has no density"):
        Scheduled(Sign())


def test_every_value_format_goes_with_every_sparsifier() -> None:
    x = gaussian(400)
    for form, make in itertools.product(
        ("float32", "bfloat16", "float16", "natural", "int8", "int4"), (TopK, RandK, lambda **v: Threshold(1.0, **v))
    ):
        op = make(values=form)
        assert relative_error(op, x, at(400)) >= 0
        assert op.decode(op.encode(x, at(400))[0], at(400)).n_coordinates > 0
