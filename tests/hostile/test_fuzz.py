"""Mutated frames: every decoder raises WireError or returns a finite vector of the right size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.compression import CompressionOperator, CompressionScheme
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.drive import Drive
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.compression.schemes.fetch_sgd import FetchSGD
from fedsgd.compression.schemes.scaffold import Scaffold
from fedsgd.compression.schemes.stc import STC
from fedsgd.data import Examples
from fedsgd.errors import NonFiniteError, WireError
from fedsgd.federation import Reply, ServerState, aggregate, broadcast, decode_task
from fedsgd.federation.client_state import ClientState, UncommittedState
from fedsgd.federation.server import decode_resync
from fedsgd.numerics.reductions import first_non_finite
from fedsgd.wire import Frame, FrameKind, Header, Section, SectionKind, decode_values, encode_frame, encode_values, floats
from fedsgd.wire.bits import pack_varint
from tests import fuzz
from tests.effort import examples, nightly_unless
from tests.hostile.basis import CLIENT, ROUND, Target, ViolationError, context, vectors
from tests.hostile.mutators import EDITS, mutant
from tests.hostile.rounds import build_server, encode_reply
from tests.hostile.targets import targets

SIZE = 64
TARGETS = [build() for size in (7, SIZE) for build in targets(size)]
LARGEST = np.finfo(np.float32).max


@pytest.mark.sampled
@pytest.mark.slow
@examples(2, nightly=15)
@pytest.mark.parametrize("target", nightly_unless(lambda t: t.size == SIZE, TARGETS), ids=lambda t: f"{t.name}-{t.size}")
@given(r=st.randoms(use_true_random=False), donor=st.sampled_from(TARGETS))
def test_mutated_frame_is_rejected_or_harmless_with_both_kernels(target: Target, r: Random, donor: Target) -> None:
    data = mutant(r, r.choice(target.frames), donor.frames, target.size)
    fuzz.compare(target, data, fuzz.evaluate(target, data))


@pytest.mark.nightly
@pytest.mark.slow
def test_fuzzing_for_two_seconds_finds_no_violation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seconds", "2", "--seed", "5", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == figures["refused"] + figures["harmless"] > 100
    assert figures["refused"] > 0 < figures["harmless"]
    assert "0 violations" in capsys.readouterr().out


@pytest.mark.slow
def test_frame_is_determined_by_seed_and_number() -> None:
    frames = [fuzz.draw_frame(3, n)[1] for n in range(8)]
    assert frames == [fuzz.draw_frame(3, n)[1] for n in range(8)]
    assert len(set(frames)) > 4


@pytest.mark.parametrize("edit", [*dict.fromkeys(EDITS)], ids=lambda edit: edit.__name__)
def test_mutator_accepts_any_section(edit: Callable[[Random, bytes, int], bytes]) -> None:
    for seed in range(60):
        for body in (b"", b"\x00", b"\x01\x80", bytes(range(256))):
            assert isinstance(edit(Random(seed), body, seed), bytes)


# ------------------------------------------------------------------------------------------------------------------ violations


def raise_index_error(data: bytes) -> np.ndarray:
    raise IndexError("out of bounds")


def allocate_memory(data: bytes) -> np.ndarray:
    return np.zeros(10**6)[:2]


def raise_violation(data: bytes) -> np.ndarray:
    raise ViolationError("not finite")


@pytest.mark.parametrize(
    ("decode", "message"), [(raise_index_error, "IndexError"), (allocate_memory, "allocated"), (raise_violation, "not finite")]
)
def test_violation_is_reported_with_the_frame(decode: Callable[[bytes], np.ndarray], message: str) -> None:
    campaign = fuzz.Campaign()
    fuzz.attack(campaign, Target("bad", 2, (b"",), decode), b"\x01\x02", thorough=True)
    (violation,) = campaign.violations
    assert message in violation["what"]
    assert violation["frame"] == "0102"


def test_kernels_with_different_results_raise_violation_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_non_finite, "reference", lambda x: 5)

    def read_first_non_finite(data: bytes) -> np.ndarray:
        return np.array([first_non_finite(np.zeros(2, dtype=np.float32))])

    with pytest.raises(ViolationError, match=r"compiled kernels: \[-1\]; of the reference kernels: \[5\]"):
        fuzz.compare(Target("read_first_non_finite", 2, (b"",), read_first_non_finite), b"", read_first_non_finite(b""))


# ----------------------------------------------------------------------------------------- frames that were found by fuzzing


def test_exponent_of_thousands_of_digits_raises_wire_error() -> None:
    """Python raises ValueError for a message with an integer of more than 4300 digits."""
    for scale in (b"", b"\x00", b"\xff" * 3, b"\x7f" * 2000):
        with pytest.raises(WireError, match="an exponent of"):
            decode_values((Section(SectionKind.VALUE, b"\x00"), Section(SectionKind.SCALE, scale)), 0, "float16")


@pytest.mark.parametrize("exponent", [-164, 114, 2**15 - 1, -(2**15)])
def test_exponent_out_of_range_raises_wire_error(exponent: int) -> None:
    scale = exponent.to_bytes(2, "little", signed=True)
    with pytest.raises(WireError, match=f"an exponent of {exponent}, expected -163 to 113"):
        decode_values((Section(SectionKind.VALUE, b"\x00"), Section(SectionKind.SCALE, scale)), 0, "float16")


@pytest.mark.parametrize("value_format", ["float32", "bfloat16"])
def test_entropy_coded_section_without_values_is_decoded(value_format: str) -> None:
    """The reference kernel once failed to reshape an empty array."""
    stream = b"\x00"
    section = Section(SectionKind.VALUE, bytes([floats.ROTATED]) + pack_varint(len(stream)) + stream)
    assert len(decode_values((section,), 0, value_format)) == 0
    with fuzz.use_reference_kernels():
        assert len(decode_values((section,), 0, value_format)) == 0


def test_task_of_round_zero_raises_wire_error() -> None:
    """Rounds count from 1, and a schedule may divide by the root of the round."""
    uplink = CAFe()
    plan, server, _ = build_server(uplink, SIZE)
    message = broadcast(plan, server, [CLIENT])[0][CLIENT]
    task = encode_frame(Frame(Header(FrameKind.TASK, 0, client=CLIENT)))
    with pytest.raises(WireError, match="byte 6: round is 0"):
        decode_task(plan, CLIENT, (task, *message[1:]), ClientState(), Examples(np.zeros((1, 1)), np.zeros(1)))


def test_truncated_manifest_error_has_the_offset_in_the_frame() -> None:
    member = PerLayer(Dense())
    sections = member.encode(next(vectors(SIZE)), context(SIZE))[0]
    truncated = Section(SectionKind.MANIFEST, bytes(sections[0].data)[:2], 28)
    with pytest.raises(WireError, match="byte 30: the data end within"):
        member.decode((truncated, *sections[1:]), context(SIZE))


@pytest.mark.parametrize("uplink", [EF21(Dense()), CAFe(Dense()), STC(1.0), FetchSGD(1.0)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_replies_with_infinite_sum_raise_non_finite_error_without_a_warning(uplink: CompressionScheme, sign: int) -> None:
    """Each frame is valid, but the server's state grows in every round until it leaves float32's range."""
    plan, server, _ = build_server(uplink, SIZE)
    scale = 0.05 if isinstance(uplink, FetchSGD) else 0.99  # its cells are sums
    x = np.full(SIZE, sign * scale * LARGEST, dtype=np.float32)

    def run_rounds(server: ServerState) -> None:
        for _ in range(200):
            server, _ = aggregate(plan, server, [encode_reply(plan, client, server.round, x) for client in range(10)])

    with pytest.raises(NonFiniteError, match="server: "):
        run_rounds(server)


@pytest.mark.parametrize("sign", [1, -1])
def test_float16_of_largest_numbers_is_finite(sign: int) -> None:
    x = np.array([sign * LARGEST, sign * LARGEST / 2, 0, -0.0], dtype=np.float32)
    sections, decoded = encode_values(x, "float16")
    assert np.isfinite(decoded).all()
    assert (decode_values(sections, 4, "float16") == decoded).all()
    assert np.square((decoded.astype(np.float64) - x) / LARGEST).sum() < 2.0**-21


@pytest.mark.parametrize("member", [Eden(), Eden(4), Drive("least-squares")], ids=str)
def test_rotated_vector_that_cannot_be_decoded_is_rejected_by_the_encoder(member: CompressionOperator) -> None:
    """The encoder never returns a frame that the decoder rejects."""
    for exponent in range(100, 128):
        x = np.full(SIZE, 2.0**exponent, dtype=np.float32)
        try:
            sections, update = member.encode(x, context(SIZE))
        except NonFiniteError:
            assert exponent > 115
        else:
            assert (member.decode(sections, context(SIZE)).to_dense() == update.to_dense()).all()
    with pytest.raises(NonFiniteError, match="rotati"):
        member.encode(np.full(SIZE, LARGEST, dtype=np.float32), context(SIZE))


@pytest.mark.parametrize("base", [ROUND, ROUND + 1, 2**32 - 1])
def test_resync_with_a_future_model_raises_wire_error(base: int) -> None:
    """There are no frames from a future model to the present model; the server once failed with another error."""
    frame = encode_frame(Frame(Header(FrameKind.RESYNC, ROUND, base=base, client=CLIENT)))
    with pytest.raises(WireError, match=f"byte 10: base is {base}, expected a round before 3"):
        decode_resync(Reply(CLIENT, (frame,), 0.0, 0.0), ROUND)


def test_control_variates_with_infinite_sum_raise_non_finite_error_at_the_server() -> None:
    """The error was once raised at the clients, after the server had sent infinities."""
    plan, server, _ = build_server(Scaffold(), SIZE)
    control = Section(SectionKind.CONTROL, np.full(SIZE, 0.9 * LARGEST, dtype="<f4").tobytes())

    def forged(client: int) -> Reply:
        update = Dense().encode(np.zeros(SIZE, dtype=np.float32), plan.make_context(ROUND, client))[0]
        header = Header(FrameKind.UPDATE, server.round, plan.uplink.codec, server.round, 0, client, 60)
        return Reply(client, (encode_frame(Frame(header, (control, *update))),), 0.0, 0.0)

    server, _ = aggregate(plan, server, [forged(client) for client in range(10)])
    with pytest.raises(NonFiniteError, match="server: the reference vector leaves float32's range"):
        aggregate(plan, server, [forged(client) for client in range(10)])


def test_unexpected_reference_without_sections_raises_wire_error() -> None:
    plan, server, _ = build_server(STC(0.1), SIZE)
    message = broadcast(plan, server, [1])[0][1]
    beside = encode_frame(Frame(Header(FrameKind.REFERENCE, ROUND, STC.codec)))
    state = ClientState({}, UncommittedState(ROUND - 1, {}, {}))
    with pytest.raises(WireError, match="stc expects no REFERENCE frame"):
        decode_task(plan, 1, (*message, beside), state, Examples(np.zeros((1, 1)), np.zeros(1)))
