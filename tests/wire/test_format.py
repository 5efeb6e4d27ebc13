"""Completeness of fedsgd/docs/reference/wire-format*.md: a decoder written from the pages alone agrees with fedsgd.

Both decode every frame to equal bits, and both reject the same frames.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsgd
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

PAGE = (Path(fedsgd.__file__).parent / "docs/reference/wire-format-values.md").read_text(encoding="utf-8")
GOLDEN = {name: bytes.fromhex(frame) for name, frame in json.loads(FILE.read_text()).items()}
COMPRESSORS_BY_FRAME = {name: compressor for name, compressor, _ in frames()}
KINDS = ("normal", "heavy", "clustered", "few", "half", "most", "zeros", "ties", "huge", "tiny")
N_COPIES = 12
"""Number of damaged copies of each golden frame."""


def decode_second(frame: bytes, compressor: Compressor, ctx: CodecContext) -> F32:
    """Decode an UPDATE with the second decoder."""
    return second_decoder.decode_update(
        frame, dump_table(compressor, use_import_paths=False), ctx.seed, read_shapes(ctx)
    ).update


def read_shapes(ctx: CodecContext) -> dict[str, tuple[int, ...]]:
    return dict(zip(ctx.layout.names, ctx.layout.shapes, strict=True))


def encode_update_frame(compressor: Compressor, sections: Sections, ctx: CodecContext) -> bytes:
    return encode_frame(Frame(Header(FrameKind.UPDATE, ctx.round, compressor.codec, ctx.round, 0, ctx.client, 1), sections))


def are_equal(a: F32, b: F32) -> bool:
    """Return True if all bits are equal: −0 and 0 differ."""
    return a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()


def list_members() -> list[Compressor]:
    """Return every operator at every setting, and every scheme with variants of each setting."""
    schemes = [COMPRESSORS[name] for name in COMPRESSORS if issubclass(COMPRESSORS[name], CompressionScheme)]
    wrapped = [
        ErrorFeedback(TopK()),
        StaleResidualPolicy(ErrorFeedback(TopK())),
        Scaffold(TopK(0.1, "ternary"), "bfloat16"),
        Scaffold(PerLayer()),
    ]
    return [*operators(), *wrapped, *(scheme for cls in schemes for scheme in variants(cls))]


def draw_vector(kind: str, size: int, r: np.random.Generator) -> F32:
    """Draw a vector of one of the KINDS."""
    x = r.standard_normal(size)
    positions = np.arange(size)
    match kind:
        case "heavy":
            x = x**7
        case "clustered":
            x *= (positions // 40 % 13 == 0) & (r.random(size) < 0.7)
        case "few":
            x *= r.random(size) < 0.0006
        case "half":
            x *= r.random(size) < 0.5
        case "most":
            x *= r.random(size) < 0.97
        case "zeros":
            x = np.where(positions % 2, 0.0, -0.0)
        case "ties":
            x = np.round(x) / 4
        case "huge":
            x = np.clip(x, -3, 3) * 1e36
        case "tiny":
            x *= 1e-39
    return x.astype(np.float32)


@pytest.fixture
def mode_counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the tags and modes that the second decoder reads."""
    counts: Counter[str] = Counter()

    def count_modes(name: str) -> None:
        function = getattr(second_decoder, name)

        def wrapper(data: second_decoder.Reader, *arguments: Any) -> Any:
            if name != "words" or arguments[2]:
                counts[f"{name} {data.data[data.offset]}"] += 1
            return function(data, *arguments)

        monkeypatch.setattr(second_decoder, name, wrapper)

    for name in ("positions", "symbols", "words"):
        count_modes(name)
    return counts


# ------------------------------------------------------------------------------------------------------------------ golden


@pytest.mark.parametrize("name", [name for name in GOLDEN if COMPRESSORS_BY_FRAME[name] is not None])
def test_golden_frame_is_decoded_to_equal_bits(name: str) -> None:
    compressor = COMPRESSORS_BY_FRAME[name]
    assert compressor is not None
    assert are_equal(
        decode_second(GOLDEN[name], compressor, CONTEXT),
        compressor.decode(decode_frame(GOLDEN[name]).sections, CONTEXT).to_dense(),
    )


def test_golden_frames_have_every_codec() -> None:
    registered = {COMPRESSORS[name].codec for name in COMPRESSORS}
    assert {compressor.codec for compressor in compressors()} == {*registered, second_decoder.CHUNKED}


def test_header_of_task_is_decoded_equal() -> None:
    header, sections = second_decoder.read_frame(GOLDEN["task"])
    assert header == second_decoder.Header(second_decoder.TASK, 0, 12, 0, 11, 5, 0)
    assert not sections.remaining


def test_header_of_each_kind_is_decoded_equal() -> None:
    headers = {
        name: second_decoder.read_frame(frame)[0] for name, frame in GOLDEN.items() if COMPRESSORS_BY_FRAME[name] is None
    }
    all_clients = 2**32 - 1
    assert headers == {
        "task": second_decoder.Header(second_decoder.TASK, 0, 12, 0, 11, 5, 0),
        "task on the model of round 9": second_decoder.Header(second_decoder.TASK, 0, 12, 9, 11, 5, 0),
        "resync": second_decoder.Header(second_decoder.RESYNC, 0, 12, 7, 8, 5, 0),
        "buffers": second_decoder.Header(second_decoder.BUFFERS, 0, 12, 0, 0, all_clients, 0),
        "changes": second_decoder.Header(second_decoder.MODEL, 40, 12, 9, 0, all_clients, 0),
        "difference": second_decoder.Header(second_decoder.MODEL, 3, 12, 11, 0, all_clients, 0),
        "update and statistics": second_decoder.Header(second_decoder.UPDATE, 1, 12, 12, 0, 5, 600),
    }


def test_statistics_and_control_variate_are_decoded_equal() -> None:
    decoded = second_decoder.decode_update(GOLDEN["update and statistics"], dump_table(Dense()), 42, read_shapes(CONTEXT), 8)
    assert are_equal(decoded.update, vector())
    assert decoded.statistics is not None
    assert are_equal(decoded.statistics, vector()[:8])
    scaffold = Scaffold()
    decoded = second_decoder.decode_update(GOLDEN[frame_name(scaffold)], dump_table(scaffold), 42, read_shapes(CONTEXT))
    assert decoded.control is not None
    assert are_equal(decoded.control, -vector())


@pytest.mark.parametrize("scheme", [COMPRESSORS["cafe"](), Scaffold()], ids=name_of)
def test_reference_frame_is_decoded_equal(scheme: Any) -> None:
    reference = draw_vector("ties", CONTEXT.layout.size, np.random.default_rng(0))
    sections = scheme.encode_reference({"reference": reference}, CONTEXT)
    frame = encode_frame(Frame(Header(FrameKind.REFERENCE, 12, scheme.codec), sections))
    decoded = second_decoder.decode_reference(frame, dump_table(scheme), 42, read_shapes(CONTEXT))[1]
    assert are_equal(decoded, scheme.decode_reference(sections, CONTEXT))


# ------------------------------------------------------------------------------------------------------------------ random


def list_cases() -> Iterator[tuple[Compressor, F32, CodecContext]]:
    """Yield every member with small vectors of all kinds in turn, and with a long vector."""
    r = np.random.default_rng(20)
    for number, compressor in enumerate(list_members()):
        for turn, size in enumerate((1, 5, 64, 300, 5000)):
            kind = KINDS[(number + 3 * turn) % len(KINDS)]
            ctx = CodecContext(int(r.integers(2**40)), int(r.integers(1, 9)), int(r.integers(2**31)), example_layout(size))
            yield compressor, draw_vector(kind, size, r), ctx
    thresholds: Any = COMPRESSORS["threshold"]
    for kind in KINDS:
        for size in (300, 5000, 70000):
            yield thresholds(1e-3), draw_vector(kind, size, r), CodecContext(1, 2, 3, ParameterLayout.from_size(size))


@pytest.mark.slow
def test_random_frames_are_decoded_to_equal_bits(mode_counts: Counter[str]) -> None:
    differences = []
    n_frames = 0
    for compressor, x, ctx in list_cases():
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                sections = sections_of(compressor, x, ctx)
                expected = compressor.decode(sections, ctx).to_dense()
        except NonFiniteError:
            continue
        n_frames += 1
        if not are_equal(decode_second(encode_update_frame(compressor, sections, ctx), compressor, ctx), expected):
            differences.append((compressor, ctx.layout.size))
    assert not differences
    assert n_frames > 500
    assert {*mode_counts} == {*(f"positions {tag}" for tag in range(5)), "symbols 0", "symbols 1", "words 0", "words 1"}


def test_fine_frequencies_are_decoded_to_equal_bits(mode_counts: Counter[str]) -> None:
    """One trit in five hundred is not zero, so most of the 243 bytes of five trits are rarer than 1/4096."""
    compressor, size = TernGrad(frequency_bits=15), 200_000
    ctx = CodecContext(3, 1, 0, ParameterLayout.from_size(size))
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 0.002
    x[7] = 1.0
    sections = compressor.encode(x, ctx)[0]
    assert are_equal(
        decode_second(encode_update_frame(compressor, sections, ctx), compressor, ctx),
        compressor.decode(sections, ctx).to_dense(),
    )
    assert mode_counts["symbols 2"] == 1


# ----------------------------------------------------------------------------------------------------------------- damaged


def damage(sections: Sections, r: np.random.Generator) -> Sections:
    """Change a byte, or truncate, extend, relabel, delete or repeat a section."""
    pairs = [(section.kind, bytearray(section.data)) for section in sections]
    kind, data = pairs[i := int(r.integers(len(pairs)))]
    match int(r.integers(8)):
        case 0:
            del data[int(r.integers(len(data) + 1)) :]
        case 1:
            data += bytes([int(r.choice([0, 1, 255]))])
        case 2:
            pairs[i] = (SectionKind(int(r.integers(1, 8))), data)
        case 3:
            del pairs[i]
        case 4:
            pairs.insert(int(r.integers(len(pairs) + 1)), (kind, data))
        case 5 if data:
            data[int(r.integers(min(len(data), 8)))] = int(r.integers(256))
        case _ if data:
            data[int(r.integers(len(data)))] ^= 1 << int(r.integers(8))
    return tuple(Section(kind, bytes(data)) for kind, data in pairs)


@pytest.mark.parametrize("name", [name for name in GOLDEN if COMPRESSORS_BY_FRAME[name] is not None])
def test_damaged_golden_frame_is_rejected_by_both_or_decoded_equal(name: str) -> None:
    compressor, r = COMPRESSORS_BY_FRAME[name], np.random.default_rng(len(name))
    assert compressor is not None
    for _ in range(N_COPIES):
        frame = encode_update_frame(compressor, damage(decode_frame(GOLDEN[name]).sections, r), CONTEXT)
        try:
            expected = compressor.decode(decode_frame(frame).sections, CONTEXT).to_dense()
        except WireError:
            with pytest.raises(ValueError, match=r".") as error:
                decode_second(frame, compressor, CONTEXT)
            assert error.type is ValueError
        else:
            assert are_equal(decode_second(frame, compressor, CONTEXT), expected)


@pytest.mark.parametrize("position", range(26))
def test_damaged_header_raises_value_error(position: int) -> None:
    frame = bytearray(GOLDEN["task"])
    frame[position] ^= 64
    with pytest.raises(ValueError, match="check"):
        second_decoder.read_frame(bytes(frame))


@pytest.mark.parametrize(
    "header",
    [
        Header(FrameKind.UPDATE, 0, 5, 0, 0, 5, 1),
        Header(FrameKind.UPDATE, 3, 5, 2, 0, 5, 1),
        Header(FrameKind.UPDATE, 3, 5, 3, 2, 5, 1),
        Header(FrameKind.UPDATE, 3, 5, 3),
        Header(FrameKind.UPDATE, 3, 0, 3, 0, 5, 1),
        Header(FrameKind.UPDATE, 3, 19, 3, 0, 5, 1),
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
def test_header_against_the_page_raises_value_error(header: Header) -> None:
    with pytest.raises(ValueError, match=r"round|base|acknowledged|examples|client|codec"):
        second_decoder.read_frame(encode_frame(Frame(header)))


# -------------------------------------------------------------------------------------------------------------------- page


def test_page_lists_all_registered_codecs() -> None:
    codecs = {
        name: int(codec) for codec, name in re.findall(r"^\| (\d+) \| ([a-z0-9-]+) \|", PAGE.split("## Compressors")[1], re.M)
    }
    assert codecs == {name: COMPRESSORS[name].codec for name in COMPRESSORS}
    assert codecs == second_decoder.CODECS
    assert f"| {TopK(chunk=64).codec} | top-k with `chunk` |" in PAGE
    assert TopK(chunk=64).codec == second_decoder.CHUNKED
