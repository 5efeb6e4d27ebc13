"""Deep Gradient Compression: published ratios, momentum, masking, clipping and warm-up."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsgd.compression import (
    CodecContext,
    CompressionScheme,
    ErrorFeedback,
    StateArrays,
)
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.compression.helpers import (
    draw_dyadic,
    draw_gaussian,
    make_context,
)
from tests.effort import nightly_unless


def send_updates(scheme: CompressionScheme, updates: list[F32], layout: ParameterLayout) -> tuple[list[F32], StateArrays]:
    """Send one update a round and return the decoded updates and the last state."""
    state: StateArrays = {}
    decoded = []
    for r, x in enumerate(updates, 1):
        ctx = CodecContext(0, r, 0, layout)
        update = scheme.send(x, state, ctx)
        decoded.append(scheme.decode(update.sections, ctx).to_dense())
        state = update.state
    return decoded, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "megabytes", "ratio"),
    nightly_unless(
        lambda row: row[0] == "ResNet-50",
        [("ResNet-50", 0.352, 276.7), ("AlexNet", 0.389, 597.7), ("PTB LSTM", 0.4215, 461.8)],
    ),
)
def test_dgc_compression_ratios_equal_the_paper(network: str, megabytes: float, ratio: float, root: Path) -> None:
    """Lin et al. 2018, tables 2 to 4, with the paper's encoding; frames of fedsgd need fewer bytes."""
    ratios = runpy.run_path(str(root / "scenarios" / "dgc" / "ratios.py"))["ratios"](network)
    assert ratios["DGC"] == (pytest.approx(megabytes, abs=5e-4), pytest.approx(ratio, rel=1e-3))
    assert ratios["float32"][0] < 0.87 * ratios["DGC"][0]
    assert ratios["bfloat16"][0] < 0.45 * ratios["DGC"][0]


def test_dgc_at_density_one_equals_sgd_with_masking_and_momentum_sgd_without() -> None:
    updates = [draw_gaussian(50, r) for r in range(12)]
    masked, _ = send_updates(DGC(1.0, momentum=0.9), updates, ParameterLayout.from_size(50))
    for decoded, x in zip(masked, updates, strict=True):
        assert decoded.tobytes() == x.tobytes()
    unmasked, _ = send_updates(DGC(1.0, momentum=0.9, masking=False), updates, ParameterLayout.from_size(50))
    u = np.zeros(50, dtype=np.float32)
    for decoded, x in zip(unmasked, updates, strict=True):
        u = np.float32(0.9) * u + x
        assert decoded.tobytes() == u.tobytes()


def test_dgc_with_nesterov_at_density_one_equals_nesterov_sgd() -> None:
    updates = [draw_gaussian(50, r) for r in range(6)]
    all_decoded, _ = send_updates(DGC(1.0, momentum=0.5, masking=False, nesterov=True), updates, ParameterLayout.from_size(50))
    u = np.zeros(50, dtype=np.float32)
    for decoded, x in zip(all_decoded, updates, strict=True):
        u = np.float32(0.5) * (u + x)
        assert decoded.tobytes() == (u + x).tobytes()


def test_dgc_without_momentum_equals_error_feedback_over_top_k() -> None:
    updates = [draw_gaussian(200, r) for r in range(20)]
    dgc, state = send_updates(DGC(0.05, momentum=0.0), updates, ParameterLayout.from_size(200))
    feedback, feedback_state = send_updates(ErrorFeedback(TopK(0.05)), updates, ParameterLayout.from_size(200))
    assert np.array(dgc).tobytes() == np.array(feedback).tobytes()
    assert state["v"].tobytes() == feedback_state["residual"].tobytes()


@pytest.mark.parametrize("values", ["float32", "bfloat16", "ternary"])
def test_dgc_sent_sum_plus_v_equals_sum_of_u(values: Any) -> None:
    """Σ sent + v = Σ u in exact binary fractions; rounded values leave their error in v."""
    scheme = DGC(0.1, momentum=0.5, values=values)
    state: StateArrays = {}
    sent_sum, u_sum = np.zeros((2, 40))
    for r in range(1, 7):
        x = draw_dyadic(40, r)
        previous_u = state["u"] if state else np.zeros(40, dtype=np.float32)
        u_sum += 0.5 * previous_u + x
        update = scheme.send(x, state, make_context(40, r))
        sent_sum += scheme.decode(update.sections, make_context(40, r)).to_dense()
        state = update.state
        if values != "ternary":  # the mean magnitude of four is not a short binary fraction
            assert (sent_sum + state["v"]).tolist() == u_sum.tolist()
        assert sent_sum + state["v"] == pytest.approx(u_sum, abs=1e-4)


def test_dgc_masking_clears_sent_entries_and_a_lost_reply_restores_them() -> None:
    scheme, x = DGC(0.25, momentum=0.9), np.array([1, -5, 2, 0], dtype=np.float32)
    update = scheme.send(x, {}, make_context(4))
    assert (update.state["u"].tolist(), update.state["v"].tolist()) == ([1, 0, 2, 0], [1, 0, 2, 0])
    assert (update.state_if_lost["u"].tolist(), update.state_if_lost["v"].tolist()) == (x.tolist(), x.tolist())
    assert scheme.send(x, {}, make_context(4)).state["u"].tolist() == [1, 0, 2, 0]
    assert replace(scheme, masking=False).send(x, {}, make_context(4)).state["u"].tolist() == x.tolist()


@pytest.mark.slow
def test_dgc_clip_grows_with_the_root_of_the_cohort() -> None:
    """|x| = 5, clip 1 and four clients: the clipped norm is 2."""
    x = np.array([3, 4], dtype=np.float32)
    clipped = DGC(1.0, clip=1.0).send(x, {}, make_context(2, cohort=4))
    assert DGC(1.0).decode(clipped.sections, make_context(2)).to_dense() == pytest.approx([1.2, 1.6])
    unclipped = DGC(1.0, clip=1.0).send(x, {}, make_context(2, cohort=25))
    assert DGC(1.0).decode(unclipped.sections, make_context(2)).to_dense().tolist() == [3, 4]


def test_dgc_with_clipping_states_no_undelivered_update() -> None:
    layout = ParameterLayout.from_size(4)
    assert DGC(momentum=0.0, clip=1.0).undelivered_update({}, layout) is None
    assert DGC(momentum=0.0).undelivered_update({}, layout) is not None


def test_dgc_warm_up_equals_the_paper() -> None:
    scheme = DGC(0.001, warm_up_rounds=2)
    sparsities = [round(100 * (1 - scheme.density_in_round(r)), 4) for r in range(1, 11)]
    assert sparsities == [75, 75, 93.75, 93.75, 98.4375, 98.4375, 99.6, 99.6, 99.9, 99.9]
    assert DGC(0.001).density_in_round(1) == 0.001


def test_dgc_per_layer_sends_a_share_of_each_matrix_and_all_of_each_vector() -> None:
    layout = ParameterLayout(("a", "bias", "b"), ((10, 10), (5,), (40, 10)))
    x = np.concatenate([np.full(100, 1e-3), np.full(5, 1e-6), np.arange(400) + 1]).astype(np.float32)
    update = DGC(0.05, per_layer=True).send(x, {}, CodecContext(0, 1, 0, layout))
    positions = np.flatnonzero(DGC(0.05, per_layer=True).decode(update.sections, CodecContext(0, 1, 0, layout)).to_dense())
    assert [int(((positions >= a) & (positions < b)).sum()) for a, b in ((0, 100), (100, 105), (105, 505))] == [5, 5, 20]


def test_dgc_subnormal_momentum_becomes_zero() -> None:
    """0.9^t is subnormal from about t = 830 on. It is cleared, because subnormal arithmetic has a hundredth of the speed."""
    scheme = DGC(0.5, momentum=0.9, masking=False)
    state: StateArrays = {"u": np.full(4, 2e-38, dtype=np.float32), "v": np.zeros(4, dtype=np.float32)}
    for r in range(1, 12):
        state = scheme.send(np.zeros(4, dtype=np.float32), state, make_context(4, r)).state
    assert state["u"].tolist() == [0, 0, 0, 0]
