"""fedsgd/wire/FORMAT.md is the whole format: a decoder that was written from it alone reads every frame to the same bits, and
refuses what fedsgd refuses."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsgd.wire
from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import COMPRESSORS, CodecContext, CompressionScheme, Compressor, ErrorFeedback, StaleResidualPolicy
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.scaffold import Scaffold
from fedsgd.errors import NonFiniteError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.parsing import dump_table
from fedsgd.wire import Frame, FrameKind, Header, Section, SectionKind, Sections, decode_frame, encode_frame
from tests.golden.frames import CONTEXT, FILE, compressors, frame_name, frames, vector
from tests.laws.members import name_of, operators, sections_of, variants
from tests.wire import second_decoder

PAGE = (Path(fedsgd.wire.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
GOLDEN = {name: bytes.fromhex(frame) for name, frame in json.loads(FILE.read_text()).items()}
MADE = {name: made for name, made, _ in frames()}
KINDS = ("normal", "heavy", "clustered", "few", "half", "most", "zeros", "ties", "huge", "tiny")
TRIES = 12
"""Damaged copies of each golden frame."""


def second(frame: bytes, made: Compressor, ctx: CodecContext) -> F32:
    """What the decoder of the page reads."""
    return second_decoder.open_update(frame, dump_table(made, use_import_paths=False), ctx.seed, shapes_of(ctx)).update


def shapes_of(ctx: CodecContext) -> dict[str, tuple[int, ...]]:
    return dict(zip(ctx.layout.names, ctx.layout.shapes, strict=True))


def frame_of(made: Compressor, sections: Sections, ctx: CodecContext) -> bytes:
    return encode_frame(Frame(Header(FrameKind.UPDATE, ctx.round, made.codec, ctx.round, 0, ctx.client, 1), sections))


def same(a: F32, b: F32) -> bool:
    """Bit for bit: −0 is not 0."""
    return a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()


def members() -> list[Compressor]:
    """Every operator at every setting, and every scheme with one setting after the other."""
    schemes = [COMPRESSORS[name] for name in COMPRESSORS if issubclass(COMPRESSORS[name], CompressionScheme)]
    wrapped = [
        ErrorFeedback(TopK()),
        StaleResidualPolicy(ErrorFeedback(TopK())),
        Scaffold(TopK(0.1, "ternary"), "bfloat16"),
        Scaffold(PerLayer()),
    ]
    return [*operators(), *wrapped, *(made for cls in schemes for made in variants(cls))]


def vector_of(kind: str, size: int, r: np.random.Generator) -> F32:
    """A vector of one of the KINDS."""
    x = r.standard_normal(size)
    places = np.arange(size)
    match kind:
        case "heavy":
            x = x**7
        case "clustered":
            x *= (places // 40 % 13 == 0) & (r.random(size) < 0.7)
        case "few":
            x *= r.random(size) < 0.0006
        case "half":
            x *= r.random(size) < 0.5
        case "most":
            x *= r.random(size) < 0.97
        case "zeros":
            x = np.where(places % 2, 0.0, -0.0)
        case "ties":
            x = np.round(x) / 4
        case "huge":
            x = np.clip(x, -3, 3) * 1e36
        case "tiny":
            x *= 1e-39
    return x.astype(np.float32)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Which tags and modes the second decoder comes across."""
    found: Counter[str] = Counter()

    def watched(name: str) -> None:
        inner = getattr(second_decoder, name)

        def outer(data: second_decoder.Reader, *rest: Any) -> Any:
            if name != "words" or rest[2]:
                found[f"{name} {data.data[data.at]}"] += 1
            return inner(data, *rest)

        monkeypatch.setattr(second_decoder, name, outer)

    for name in ("positions", "symbols", "words"):
        watched(name)
    return found


# ------------------------------------------------------------------------------------------------------------------ golden


@pytest.mark.parametrize("name", [name for name in GOLDEN if MADE[name] is not None])
def test_golden_frames_are_read_to_the_same_bits(name: str) -> None:
    made = MADE[name]
    assert made is not None
    assert same(second(GOLDEN[name], made, CONTEXT), made.decode(decode_frame(GOLDEN[name]).sections, CONTEXT).to_dense())


def test_golden_frames_are_of_every_codec() -> None:
    assert {made.codec for made in compressors()} == {COMPRESSORS[name].codec for name in COMPRESSORS}


def test_the_header_is_read_as_written() -> None:
    header, sections = second_decoder.read(GOLDEN["task"])
    assert header == second_decoder.Header(second_decoder.TASK, 0, 12, 0, 11, 5, 0)
    assert not sections.left


def test_a_header_of_each_kind_is_read_as_written() -> None:
    others = {name: second_decoder.read(frame)[0] for name, frame in GOLDEN.items() if MADE[name] is None}
    everybody = 2**32 - 1
    assert others == {
        "task": second_decoder.Header(second_decoder.TASK, 0, 12, 0, 11, 5, 0),
        "task on the model of round 9": second_decoder.Header(second_decoder.TASK, 0, 12, 9, 11, 5, 0),
        "resync": second_decoder.Header(second_decoder.RESYNC, 0, 12, 7, 8, 5, 0),
        "buffers": second_decoder.Header(second_decoder.BUFFERS, 0, 12, 0, 0, everybody, 0),
        "changes": second_decoder.Header(second_decoder.MODEL, 40, 12, 9, 0, everybody, 0),
        "difference": second_decoder.Header(second_decoder.MODEL, 3, 12, 11, 0, everybody, 0),
        "update and statistics": second_decoder.Header(second_decoder.UPDATE, 1, 12, 12, 0, 5, 600),
    }


def test_statistics_and_control_variates_are_read() -> None:
    read = second_decoder.open_update(GOLDEN["update and statistics"], dump_table(Dense()), 42, shapes_of(CONTEXT), 8)
    assert same(read.update, vector())
    assert read.statistics is not None
    assert same(read.statistics, vector()[:8])
    made = Scaffold()
    read = second_decoder.open_update(GOLDEN[frame_name(made)], dump_table(made), 42, shapes_of(CONTEXT))
    assert read.control is not None
    assert same(read.control, -vector())


@pytest.mark.parametrize("made", [COMPRESSORS["cafe"](), Scaffold()], ids=name_of)
def test_a_reference_frame_is_read(made: Any) -> None:
    reference = vector_of("ties", CONTEXT.layout.size, np.random.default_rng(0))
    beside = made.encode_reference({"reference": reference}, CONTEXT)
    frame = encode_frame(Frame(Header(FrameKind.REFERENCE, 12, made.codec), beside))
    read = second_decoder.open_reference(frame, dump_table(made), 42, shapes_of(CONTEXT))[1]
    assert same(read, made.decode_reference(beside, CONTEXT))


# ------------------------------------------------------------------------------------------------------------------ random


def cases() -> Iterator[tuple[Compressor, F32, CodecContext]]:
    """Every member on small vectors of all kinds in turn, and on a long one."""
    r = np.random.default_rng(20)
    for number, made in enumerate(members()):
        for turn, size in enumerate((1, 5, 64, 300, 5000)):
            kind = KINDS[(number + 3 * turn) % len(KINDS)]
            ctx = CodecContext(int(r.integers(2**40)), int(r.integers(1, 9)), int(r.integers(2**31)), example_layout(size))
            yield made, vector_of(kind, size, r), ctx
    thresholds: Any = COMPRESSORS["threshold"]
    for kind in KINDS:
        for size in (300, 5000, 70000):
            yield thresholds(1e-3), vector_of(kind, size, r), CodecContext(1, 2, 3, ParameterLayout.from_size(size))


def test_random_frames_are_read_to_the_same_bits(seen: Counter[str]) -> None:
    unequal = []
    coded = 0
    for made, x, ctx in cases():
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                sections = sections_of(made, x, ctx)
                expected = made.decode(sections, ctx).to_dense()
        except NonFiniteError:
            continue
        coded += 1
        if not same(second(frame_of(made, sections, ctx), made, ctx), expected):
            unequal.append((made, ctx.layout.size))
    assert not unequal
    assert coded > 500
    assert {*seen} == {*(f"positions {tag}" for tag in range(5)), "symbols 0", "symbols 1", "words 0", "words 1"}


def test_fine_frequencies_are_read_to_the_same_bits(seen: Counter[str]) -> None:
    """One trit in five hundred is not zero: of the 243 bytes that five trits make, most are rarer than 1/4096."""
    made, size = TernGrad(frequency_bits=15), 200_000
    ctx = CodecContext(3, 1, 0, ParameterLayout.from_size(size))
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 0.002
    x[7] = 1.0
    sections = made.encode(x, ctx)[0]
    assert same(second(frame_of(made, sections, ctx), made, ctx), made.decode(sections, ctx).to_dense())
    assert seen["symbols 2"] == 1


# ----------------------------------------------------------------------------------------------------------------- damaged


def damaged(sections: Sections, r: np.random.Generator) -> Sections:
    """One byte changed, a section cut or extended, left out, doubled or moved."""
    found = [(section.kind, bytearray(section.data)) for section in sections]
    part, data = found[i := int(r.integers(len(found)))]
    match int(r.integers(8)):
        case 0:
            del data[int(r.integers(len(data) + 1)) :]
        case 1:
            data += bytes([int(r.choice([0, 1, 255]))])
        case 2:
            found[i] = (SectionKind(int(r.integers(1, 8))), data)
        case 3:
            del found[i]
        case 4:
            found.insert(int(r.integers(len(found) + 1)), (part, data))
        case 5 if data:
            data[int(r.integers(min(len(data), 8)))] = int(r.integers(256))
        case _ if data:
            data[int(r.integers(len(data)))] ^= 1 << int(r.integers(8))
    return tuple(Section(part, bytes(data)) for part, data in found)


@pytest.mark.parametrize("name", [name for name in GOLDEN if MADE[name] is not None])
def test_both_refuse_the_same_or_read_the_same(name: str) -> None:
    made, r = MADE[name], np.random.default_rng(len(name))
    assert made is not None
    for _ in range(TRIES):
        frame = frame_of(made, damaged(decode_frame(GOLDEN[name]).sections, r), CONTEXT)
        try:
            expected = made.decode(decode_frame(frame).sections, CONTEXT).to_dense()
        except WireError:
            with pytest.raises(ValueError, match=r".") as refused:
                second(frame, made, CONTEXT)
            assert refused.type is ValueError
        else:
            assert same(second(frame, made, CONTEXT), expected)


@pytest.mark.parametrize("at", range(26))
def test_a_damaged_header_is_refused(at: int) -> None:
    frame = bytearray(GOLDEN["task"])
    frame[at] ^= 64
    with pytest.raises(ValueError, match="check"):
        second_decoder.read(bytes(frame))


@pytest.mark.parametrize(
    "header",
    [
        Header(FrameKind.UPDATE, 0, 5, 0, 0, 5, 1),
        Header(FrameKind.UPDATE, 3, 5, 2, 0, 5, 1),
        Header(FrameKind.UPDATE, 3, 5, 3, 2, 5, 1),
        Header(FrameKind.UPDATE, 3, 5, 3),
        Header(FrameKind.UPDATE, 3, 0, 3, 0, 5, 1),
        Header(FrameKind.UPDATE, 3, 15, 3, 0, 5, 1),
        Header(FrameKind.MODEL, 3, 1, 3),
        Header(FrameKind.MODEL, 3, 1, 0, 0, 5),
        Header(FrameKind.MODEL, 3, 1, examples=1),
        Header(FrameKind.TASK, 3, 1, 0, 2, 5),
        Header(FrameKind.TASK, 3, 0, 3, 2, 5),
        Header(FrameKind.TASK, 3, 0, 0, 3, 5),
        Header(FrameKind.MODEL, 3, 20),
        Header(FrameKind.MODEL, 3, 40),
        Header(FrameKind.MODEL, 3, 40, 3),
        Header(FrameKind.MODEL, 3, 40, 2, 2),
        Header(FrameKind.REFERENCE, 3, 23),
        Header(FrameKind.RESYNC, 3, 0, 3, 0, 5),
        Header(FrameKind.RESYNC, 3, 1, 2, 0, 5),
        Header(FrameKind.RESYNC, 3, 0, 2, 0),
        Header(FrameKind.BUFFERS, 3, 0, 2),
        Header(FrameKind.BUFFERS, 3, 0, 0, 0, 5),
    ],
    ids=str,
)
def test_a_header_that_the_page_does_not_allow_is_refused(header: Header) -> None:
    with pytest.raises(ValueError, match=r"round|base|acknowledged|examples|client|codec"):
        second_decoder.read(encode_frame(Frame(header)))


# -------------------------------------------------------------------------------------------------------------------- page


def test_the_page_lists_the_registry() -> None:
    listed = {
        name: int(codec) for codec, name in re.findall(r"^\| (\d+) \| ([a-z0-9-]+) \|", PAGE.split("## Compressors")[1], re.M)
    }
    assert listed == {name: COMPRESSORS[name].codec for name in COMPRESSORS}
    assert listed == second_decoder.CODECS
