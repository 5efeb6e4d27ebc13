"""DeMo: cosine transform, momentum by hand, largest coefficients of each block, and the sign step of the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft

from fedsgd.compression import COMPRESSORS, StateArrays
from fedsgd.compression.kernels.cosine import cosine_basis, from_coefficients, to_coefficients
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.schemes.demo import DeMo
from fedsgd.config.component import FieldError
from fedsgd.errors import NonFiniteError, ScenarioError, WireError
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim.adaptive import FedAdam
from fedsgd.wire import Section, SectionKind, encode_values
from fedsgd.wire.chunk_codec import Chunks, encode_chunk_indices
from tests.compression.helpers import draw_gaussian, make_context


@pytest.mark.parametrize("length", [1, 2, 5, 64, 100])
def test_cosine_transform_equals_scipy(length: int) -> None:
    x = draw_gaussian(3 * length)
    expected = fft.dct(x.reshape(3, length).astype(np.float64), type=2, norm="ortho", axis=1).ravel()
    coefficients = to_coefficients(x, length)
    assert coefficients == pytest.approx(expected, abs=1e-6)
    assert from_coefficients(coefficients, length) == pytest.approx(x, abs=1e-6)


def test_shorter_last_block_has_its_own_transform() -> None:
    x = draw_gaussian(150)
    parts = [fft.dct(part.astype(np.float64), type=2, norm="ortho") for part in (x[:64], x[64:128], x[128:])]
    assert to_coefficients(x, 64) == pytest.approx(np.concatenate(parts), abs=1e-6)
    assert from_coefficients(to_coefficients(x, 64), 64) == pytest.approx(x, abs=1e-6)


def test_cosine_basis_is_orthonormal() -> None:
    basis = cosine_basis(64)
    assert basis @ basis.T == pytest.approx(np.eye(64), abs=1e-11)
    assert (basis * 2.0**40 == np.rint(basis * 2.0**40)).all()


def largest(coefficients: np.ndarray, k: int) -> np.ndarray:
    """Return the coefficients with all but the k largest set to zero."""
    order = np.argsort(-np.abs(coefficients), kind="stable")
    return np.where(np.isin(np.arange(len(coefficients)), order[:k]), coefficients, 0)


def test_momentum_and_messages_equal_a_plain_loop_with_scipy() -> None:
    scheme, state, rng = DeMo(0.9, 16, 4), dict[str, Any](), np.random.default_rng(0)
    momentum = np.zeros(40)
    for t in range(12):
        g, ctx = rng.standard_normal(40).astype(np.float32), make_context(40, round=t + 1)
        momentum = 0.9 * momentum + g
        parts = [fft.idct(largest(fft.dct(momentum[s : s + 16], norm="ortho"), 4), norm="ortho") for s in range(0, 40, 16)]
        momentum = momentum - np.concatenate(parts)
        sent = scheme.send(g, state, ctx)
        decoded = scheme.decode(sent.sections, ctx)
        assert decoded.n_coordinates == 12
        assert decoded.to_dense() == pytest.approx(np.concatenate(parts), abs=1e-5)
        state = dict(sent.state)
        assert state["momentum"] == pytest.approx(momentum, abs=1e-5)


@pytest.mark.parametrize("values", ["float32", "bfloat16", "2bit"])
def test_weighted_sum_of_updates_is_delivered_or_in_the_momentum(values: Any) -> None:
    scheme, rng = DeMo(0.95, 64, 8, values), np.random.default_rng(1)
    state: StateArrays = {}
    updates, delivered = np.zeros(200), np.zeros(200)
    for t in range(30):
        x, ctx = rng.standard_normal(200).astype(np.float32), make_context(200, round=t + 1)
        sent = scheme.send(x, state, ctx)
        is_lost = t % 5 == 2
        state = sent.state_if_lost if is_lost else sent.state
        updates, delivered = 0.95 * updates + x, 0.95 * delivered
        if not is_lost:
            delivered += scheme.decode(sent.sections, ctx).to_dense()
        assert updates == pytest.approx(delivered + state["momentum"], abs=1e-4)
    assert scheme.undelivered_update(state, ParameterLayout.from_size(200)) is None


def test_message_of_a_smooth_momentum_has_almost_all_of_its_energy() -> None:
    """A cosine of low frequency has few coefficients, whereas top-k of the coordinates would need nearly all of them."""
    x = np.cos(np.linspace(0, 3, 640)).astype(np.float32)
    scheme = DeMo(block=64, k=3)
    update = scheme.decode(scheme.send(x, {}, make_context(640)).sections, make_context(640)).to_dense()
    assert np.square(x - update).sum() < 1e-3 * np.square(x).sum()


def test_positions_of_demo_take_their_entropy() -> None:
    """log₂C(64, 32) / 32 is 1.896 bits."""
    sections = DeMo().send(draw_gaussian(64 * 300), {}, make_context(64 * 300)).sections
    assert 8 * len(sections[0].data) / (32 * 300) == pytest.approx(1.896, abs=0.003)


def test_sign_step_of_the_paper_is_fedadam_without_memory() -> None:
    mean, w = torch.tensor([3e-6, -2.0, 0.0, 1e-3, -1e-4]), torch.ones(5)
    optimizer = FedAdam(lr=0.01, beta1=0.0, beta2=0.0, tau=1e-12)
    buffers = optimizer.init(w)
    for _ in range(2):
        step = optimizer.update_rule(-mean, buffers, 0.01)
        assert (step.direction * step.alpha).numpy() == pytest.approx(0.01 * torch.sign(mean).numpy(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 65}, r"^demo\.k: got 65, expected at most 64, the number of coordinates of a block"),
        ({"block": 8192}, r"^demo\.block: got 8192, expected at most 4096"),
        ({"momentum": 1.5}, r"^demo\.momentum: expected a number from 0 to 1"),
    ],
)
def test_invalid_settings_of_demo_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        COMPRESSORS["demo"](**options)


def test_block_longer_than_the_vector_is_rejected() -> None:
    with pytest.raises(FieldError, match=r"^demo\.block: got 64, expected at most 50, the number of coordinates"):
        DeMo().check_layout(ParameterLayout.from_size(50))


def test_coefficients_beyond_float32_are_rejected_at_both_ends() -> None:
    x = np.full(64, 3e38, np.float32)
    with pytest.raises(NonFiniteError, match="cosine coefficient"):
        DeMo().send(x, {}, make_context(64))
    chunks = Chunks(4, 4, 2, 2)
    index = Section(SectionKind.INDEX, encode_chunk_indices(np.array([0, 2]), np.array([2]), chunks))
    sections = index, *encode_values(np.array([3.4e38, 3.4e38], np.float32), "float32")[0]
    assert DeMo(block=4, k=2).decode(sections, make_context(4)).n_coordinates == 2, "0.5 and 0.5 of the largest number"
    chunks = Chunks(2, 2, 2, 2)
    index = Section(SectionKind.INDEX, encode_chunk_indices(np.array([0, 1]), np.array([2]), chunks))
    with pytest.raises(WireError, match="a coordinate is not finite"):
        DeMo(block=2, k=2).decode((index, *sections[1:]), make_context(2))


def test_second_momentum_is_warned_of() -> None:
    run = RunConfig("uplink.compressor", ParameterLayout.from_size(1000), 10, 10, 10, server_momentum=0.9)
    (line,) = DeMo().find_warnings(run)
    assert line.startswith("uplink.compressor.momentum = 0.999: DeMo's momentum takes the place of any other")
