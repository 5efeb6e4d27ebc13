"""No frame, however it was made, does more than be refused or decode to a finite vector of the right size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
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
from tests.hostile.basis import CLIENT, ROUND, Target, ViolationError, context, vectors
from tests.hostile.mutators import EDITS, mutant
from tests.hostile.rounds import opened_server, reply_of
from tests.hostile.targets import targets

SIZE = 64
TARGETS = [make() for size in (7, SIZE) for make in targets(size)]
LARGEST = np.finfo(np.float32).max


@settings(max_examples=15)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}-{target.size}")
@given(r=st.randoms(use_true_random=False), donor=st.sampled_from(TARGETS))
def test_a_hostile_frame_is_refused_or_harmless_and_both_kernels_agree(target: Target, r: Random, donor: Target) -> None:
    data = mutant(r, r.choice(target.frames), donor.frames, target.size)
    fuzz.compare(target, data, fuzz.verdict(target, data))


def test_a_campaign_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seconds", "2", "--seed", "5", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == figures["refused"] + figures["harmless"] > 100
    assert figures["refused"] > 0 < figures["harmless"]
    assert "0 violations" in capsys.readouterr().out


def test_a_frame_follows_from_its_number() -> None:
    assert [fuzz.pick(3, n)[1] for n in range(20)] == [fuzz.pick(3, n)[1] for n in range(20)]
    assert len({fuzz.pick(3, n)[1] for n in range(20)}) > 10


@pytest.mark.parametrize("edit", [*dict.fromkeys(EDITS)], ids=lambda edit: edit.__name__)
def test_a_mutator_takes_any_section(edit: Callable[[Random, bytes, int], bytes]) -> None:
    for seed in range(60):
        for body in (b"", b"\x00", b"\x01\x80", bytes(range(256))):
            assert isinstance(edit(Random(seed), body, seed), bytes)


# --------------------------------------------------------------------------------------- the campaign finds what there is to find


def wrong(data: bytes) -> np.ndarray:
    raise IndexError("out of bounds")


def hungry(data: bytes) -> np.ndarray:
    return np.zeros(10**6)[:2]


def lazy(data: bytes) -> np.ndarray:
    raise ViolationError("not finite")


@pytest.mark.parametrize(("opened", "what"), [(wrong, "IndexError"), (hungry, "allocated"), (lazy, "not finite")])
def test_a_violation_is_reported_with_the_frame(opened: Callable[[bytes], np.ndarray], what: str) -> None:
    campaign = fuzz.Campaign()
    fuzz.attack(campaign, Target("bad", 2, (b"",), opened), b"\x01\x02", thorough=True)
    (violation,) = campaign.violations
    assert what in violation["what"]
    assert violation["frame"] == "0102"


def test_kernels_that_disagree_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_non_finite, "reference", lambda x: 5)

    def odd(data: bytes) -> np.ndarray:
        return np.array([first_non_finite(np.zeros(2, dtype=np.float32))])

    with pytest.raises(ViolationError, match=r"the fast kernels say \[-1\], the obvious ones \[5\]"):
        fuzz.compare(Target("odd", 2, (b"",), odd), b"", odd(b""))


# ---------------------------------------------------------------------------------------------------------- what has been found


def test_an_exponent_of_thousands_of_digits_is_refused_as_any_other() -> None:
    """Python raises ValueError when a message is to hold an integer of more than 4300 digits."""
    for scale in (b"", b"\x00", b"\xff" * 3, b"\x7f" * 2000):
        with pytest.raises(WireError, match="an exponent of"):
            decode_values((Section(SectionKind.VALUE, b"\x00"), Section(SectionKind.SCALE, scale)), 0, "float16")


@pytest.mark.parametrize("exponent", [-164, 114, 2**15 - 1, -(2**15)])
def test_an_exponent_out_of_range_is_refused(exponent: int) -> None:
    scale = exponent.to_bytes(2, "little", signed=True)
    with pytest.raises(WireError, match=f"an exponent of {exponent}, expected -163 to 113"):
        decode_values((Section(SectionKind.VALUE, b"\x00"), Section(SectionKind.SCALE, scale)), 0, "float16")


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_no_values_at_all_may_be_entropy_coded(form: str) -> None:
    """The obvious kernel could not tell the shape of nothing, where the fast one could."""
    stream = b"\x00"
    section = Section(SectionKind.VALUE, bytes([floats.ROTATED]) + pack_varint(len(stream)) + stream)
    assert len(decode_values((section,), 0, form)) == 0
    with fuzz.obvious_kernels():
        assert len(decode_values((section,), 0, form)) == 0


def test_a_task_of_round_zero_is_refused() -> None:
    """Rounds count from 1: a schedule of step sizes may divide by the root of the round."""
    uplink = CAFe()
    plan, server, _ = opened_server(uplink, SIZE)
    message = broadcast(plan, server, [CLIENT])[0][CLIENT]
    task = encode_frame(Frame(Header(FrameKind.TASK, 0, client=CLIENT)))
    with pytest.raises(WireError, match="byte 6: round is 0"):
        decode_task(plan, CLIENT, (task, *message[1:]), ClientState(), Examples(np.zeros((1, 1)), np.zeros(1)))


def test_a_manifest_that_ends_within_a_length_says_where_in_the_frame() -> None:
    member = PerLayer(Dense())
    sections = member.encode(next(vectors(SIZE)), context(SIZE))[0]
    cut = Section(SectionKind.MANIFEST, bytes(sections[0].data)[:2], 28)
    with pytest.raises(WireError, match="byte 30: the section ends within"):
        member.decode((cut, *sections[1:]), context(SIZE))


@pytest.mark.parametrize("uplink", [EF21(Dense()), CAFe(Dense()), STC(1.0), FetchSGD(1.0)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_replies_that_add_up_to_infinity_stop_the_run_without_a_warning(uplink: CompressionScheme, sign: int) -> None:
    """Each frame is sound. What the server remembers grows by it in every round, until it leaves float32's range."""
    plan, server, _ = opened_server(uplink, SIZE)
    scale = 0.05 if isinstance(uplink, FetchSGD) else 0.99  # whose cells are sums
    x = np.full(SIZE, sign * scale * LARGEST, dtype=np.float32)

    def rounds(server: ServerState) -> None:
        for _ in range(200):
            server, _ = aggregate(plan, server, [reply_of(plan, client, server.round, x) for client in range(10)])

    with pytest.raises(NonFiniteError, match="server: "):
        rounds(server)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_stay_finite_as_halves(sign: int) -> None:
    x = np.array([sign * LARGEST, sign * LARGEST / 2, 0, -0.0], dtype=np.float32)
    sections, decoded = encode_values(x, "float16")
    assert np.isfinite(decoded).all()
    assert (decode_values(sections, 4, "float16") == decoded).all()
    assert np.square((decoded.astype(np.float64) - x) / LARGEST).sum() < 2.0**-21


@pytest.mark.parametrize("member", [Eden(), Eden(4), Drive("least-squares")], ids=str)
def test_what_a_rotation_cannot_bring_back_is_the_senders_fault(member: CompressionOperator) -> None:
    """A frame of ours is never one that we would refuse."""
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
def test_a_resync_from_a_model_of_the_future_is_refused(base: int) -> None:
    """There is no way from it to the present one: the server looked for the cheapest of none."""
    frame = encode_frame(Frame(Header(FrameKind.RESYNC, ROUND, base=base, client=CLIENT)))
    with pytest.raises(WireError, match=f"byte 10: base is {base}, expected a round before 3"):
        decode_resync(Reply(CLIENT, (frame,), 0.0, 0.0), ROUND)


def test_control_variates_that_add_up_to_infinity_stop_the_run_at_the_server() -> None:
    """They did so at the clients, who were sent infinities."""
    plan, server, _ = opened_server(Scaffold(), SIZE)
    control = Section(SectionKind.CONTROL, np.full(SIZE, 0.9 * LARGEST, dtype="<f4").tobytes())

    def forged(client: int) -> Reply:
        update = Dense().encode(np.zeros(SIZE, dtype=np.float32), plan.make_context(ROUND, client))[0]
        header = Header(FrameKind.UPDATE, server.round, plan.uplink.codec, server.round, 0, client, 60)
        return Reply(client, (encode_frame(Frame(header, (control, *update))),), 0.0, 0.0)

    server, _ = aggregate(plan, server, [forged(client) for client in range(10)])
    with pytest.raises(NonFiniteError, match="server: the reference vector leaves float32's range"):
        aggregate(plan, server, [forged(client) for client in range(10)])


def test_a_reference_without_sections_is_refused_by_a_scheme_that_has_none() -> None:
    plan, server, _ = opened_server(STC(0.1), SIZE)
    message = broadcast(plan, server, [1])[0][1]
    beside = encode_frame(Frame(Header(FrameKind.REFERENCE, ROUND, STC.codec)))
    state = ClientState({}, UncommittedState(ROUND - 1, {}, {}))
    with pytest.raises(WireError, match="stc expects no REFERENCE frame"):
        decode_task(plan, 1, (*message, beside), state, Examples(np.zeros((1, 1)), np.zeros(1)))
