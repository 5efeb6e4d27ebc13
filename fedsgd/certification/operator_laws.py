"""Laws of operators (`fedsgd.compression.base`) as functions that raise LawError with the numbers that violate the law.

INPUT_LAWS take any finite vector as argument. The other laws use fixed vectors. Laws of statistics and of extreme
magnitudes are in `statistical_laws`, `independence_law` and `scale_law`. `law_suite` checks all laws of a compressor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression.base import CodecContext, CompressionOperator, Compressor
from fedsgd.compression.updates import Update
from fedsgd.errors import LawError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.wire import Frame, FrameKind, Header, Section, SectionKind, Sections, decode_frame, encode_frame

ROUNDING_TOLERANCE = 1e-6
"""Relative error that float32 arithmetic may add to an energy."""
TAG_BYTES = 2
"""Bytes for the tag of a section's format, not counted as redundancy."""
TINY = 2.0**-126
"""Smallest normal float32; flushing a coordinate to zero changes it by at most this."""
SMALL_SIZE, LARGE_SIZE = 64, 80_021
"""Sizes P of vectors. LARGE_SIZE needs indices of 17 bits and is not a multiple of any block size."""
UNEQUAL_LAYOUT = ParameterLayout(("scalar", "matrix", "pair", "vector"), ((), (20, 150), (2,), (40,)))
"""Layout of tensors with very unequal sizes."""
MIN_COMPRESSED_SHARE = 0.5
"""Minimum ratio of zlib-compressed to raw length; a smaller ratio means redundant bits."""


def require(condition: bool, law: str, compressor: object, detail: str) -> None:
    """Raise LawError with the law, the compressor and the numbers unless the condition is True."""
    if not condition:
        raise LawError(f"{law}: {compressor}: {detail}")


def decode_through_frame(op: Compressor, sections: Sections, ctx: CodecContext) -> Update:
    """Return the update that a receiver decodes from the frame and the context alone."""
    frame = encode_frame(Frame(Header(FrameKind.UPDATE, ctx.round, op.codec, client=ctx.client), sections))
    return op.decode(decode_frame(frame).sections, ctx)


def are_equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return True if two arrays have equal shapes and values."""
    return a.shape == b.shape and bool((a == b).all())


# ---------------------------------------------------------------------------------------------- laws of every finite vector


def round_trip(op: CompressionOperator, x: F32, ctx: CodecContext) -> None:
    """`decode` returns the update that `encode` returned, equal in every coordinate and finite; x is unchanged."""
    original = x.copy()
    sections, update = op.encode(x, ctx)
    require(are_equal(x, original), "round_trip", op, "encode wrote to its input")
    decoded_update = decode_through_frame(op, sections, ctx)
    dense = decoded_update.to_dense()
    require(dense.shape == x.shape, "round_trip", op, f"{dense.shape} coordinates decoded, expected {x.shape}")
    require(bool(np.isfinite(dense).all()), "round_trip", op, "decoded to a value that is not finite")
    positions = np.flatnonzero(dense != update.to_dense())
    figures = f"the decoded update differs from the encoder's update at {len(positions)} positions, first {positions[:3]}"
    require(not len(positions), "round_trip", op, figures)


def coordinate_count(op: CompressionOperator, x: F32, ctx: CodecContext) -> None:
    """`n_coordinates` is equal for the sections, for the update of `encode` and for the update of `decode`."""
    sections, update = op.encode(x, ctx)
    counts = op.n_coordinates(sections, ctx), update.n_coordinates, decode_through_frame(op, sections, ctx).n_coordinates
    require(len(set(counts)) == 1, "coordinate_count", op, f"n_coordinates of sections, encode and decode: {counts}")


def deterministic_bytes(op: CompressionOperator, x: F32, ctx: CodecContext) -> None:
    """Equal operators encode equal inputs as equal bytes."""
    first, second = op.encode(x, ctx)[0], replace(op).encode(x.copy(), ctx)[0]
    require([bytes(s.data) for s in first] == [bytes(s.data) for s in second], "deterministic_bytes", op, "bytes differ")


def payload_bound(op: CompressionOperator, x: F32, ctx: CodecContext) -> None:
    """The payload has at most `max_bytes` bytes."""
    n_bytes = sum(len(s.data) for s in op.encode(x, ctx)[0])
    limit = op.max_bytes(ctx.layout)
    require(n_bytes <= limit, "payload_bound", op, f"{n_bytes} bytes, but max_bytes is {limit}")


def contraction(op: CompressionOperator, x: F32, ctx: CodecContext) -> None:
    """For a contractive operator, |x − C(x)|² ≤ |x|², and ≤ (1 − δ)|x|² + A if the operator is deterministic.

    A is `absolute_error`. Each coordinate may have an error of TINY in addition.
    """
    if op.kind != "contractive":
        return
    delta = op.contraction(ctx.layout)
    require(0 < delta <= 1, "contraction", op, f"δ is {delta}, expected (0, 1]")
    energy = float(np.square(x, dtype=np.float64).sum())
    error = squared_error(op, x, ctx)
    limit = min(energy, (1 - delta) * energy + op.absolute_error(ctx.layout)) if op.deterministic else energy
    tolerance = ROUNDING_TOLERANCE * energy + len(x) * TINY**2
    require(error <= limit + tolerance, "contraction", op, f"|x − C(x)|² = {error:.6g}, at most {limit:.6g} allowed")


def squared_error(op: CompressionOperator, x: F32, ctx: CodecContext) -> float:
    """Return |x − C(x)|²."""
    dense = op.encode(x, ctx)[1].to_dense()
    return float(np.square(x.astype(np.float64) - dense).sum())


INPUT_LAWS: Sequence[Callable[[CompressionOperator, F32, CodecContext], None]] = (
    round_trip,
    coordinate_count,
    deterministic_bytes,
    payload_bound,
    contraction,
)


# ------------------------------------------------------------------------------------------- laws that draw their own vectors


def example_layout(size: int) -> ParameterLayout:
    """Return a layout of `size` parameters, with a matrix, a vector and a scalar if `size` is at least 8."""
    if size < 8:
        return ParameterLayout.from_size(size)
    columns = size // 4
    return ParameterLayout(("matrix", "vector", "scalar"), ((2, columns), (size - 2 * columns - 1,), ()))


def draw_contexts(purpose: str, size: int, n_draws: int) -> Iterator[tuple[CodecContext, np.random.Generator]]:
    """Yield a context and a generator for each draw; the sequence is the same in every run."""
    layout = example_layout(size)
    for draw in range(n_draws):
        yield CodecContext(0, draw + 1, draw % 7, layout), derive_generator(0, f"laws/{purpose}", draw)


def draw_gaussian(rng: np.random.Generator, size: int) -> F32:
    """Draw a standard Gaussian vector, [size] float32."""
    return rng.standard_normal(size, dtype=np.float32)


def preserves_zero(op: CompressionOperator) -> None:
    """The zero vector decodes to the zero vector, without a division by zero."""
    for size in (1, 2, SMALL_SIZE, 1000):
        ctx = CodecContext(0, 1, 0, example_layout(size))
        with np.errstate(all="raise"):
            try:
                dense = decode_through_frame(op, op.encode(np.zeros(size, dtype=np.float32), ctx)[0], ctx).to_dense()
            except (ArithmeticError, ValueError) as error:
                raise LawError(f"preserves_zero: {op}: {type(error).__name__}: {error}") from error
        require(are_equal(dense, np.zeros(size, dtype=np.float32)), "preserves_zero", op, f"decoded to {dense[:4]}")


def boundary_positions(op: CompressionOperator) -> None:
    """All input laws hold for vectors with one nonzero coordinate, the first or the last."""
    for size in (1, 2, SMALL_SIZE, 1000, 4097, LARGE_SIZE):
        for position in (0, size - 1):
            x = np.zeros(size, dtype=np.float32)
            x[position] = -1.5
            for law in INPUT_LAWS:
                law(op, x, CodecContext(0, 1, 0, example_layout(size)))


def sparse_supports(op: CompressionOperator) -> None:
    """All input laws hold if the nonzero coordinates are in one tensor, at regular distances, or at the end of the vector."""
    for name, x, layout in _build_sparse_vectors():
        for law in INPUT_LAWS:
            try:
                law(op, x, CodecContext(0, 1, 0, layout))
            except LawError as error:
                raise LawError(f"sparse_supports: {op}: {name}: {str(error).replace(f'{op}: ', '', 1)}") from error


def _build_sparse_vectors() -> Iterator[tuple[str, F32, ParameterLayout]]:
    """Yield descriptions, vectors [P] and layouts. Magnitudes are equal, or largest at the largest gaps."""
    for layout in (example_layout(1000), UNEQUAL_LAYOUT):
        for tensor, part, _ in layout.list_slices():
            x = np.zeros(layout.size, dtype=np.float32)
            x[part] = np.where(np.arange(part.stop - part.start) % 3 == 1, np.float32(-1.5), np.float32(1.5))
            yield f"only in {tensor} of {layout.size:,} coordinates", x, layout
    far = np.arange(2**14, LARGE_SIZE, 2**14 + 1)
    orders = {
        "at equal distances": np.arange(100, LARGE_SIZE, 1000),
        "at distances of 16,385 and 129": np.concatenate([far, np.arange(far[-1] + 129, LARGE_SIZE, 129)]),
        "in the last 500": np.arange(LARGE_SIZE - 1, LARGE_SIZE - 501, -1),
    }
    for name, positions in orders.items():
        x = np.zeros(LARGE_SIZE, dtype=np.float32)
        x[positions] = np.linspace(-1.5, -1.0, len(positions))
        yield f"{name} of {LARGE_SIZE:,} coordinates", x, example_layout(LARGE_SIZE)


def call_order_invariance(op: CompressionOperator) -> None:
    """Bytes depend on x and the context alone: calls in another order, for several clients and rounds, give equal bytes."""
    layout = example_layout(SMALL_SIZE)
    calls = [
        (draw_gaussian(rng, SMALL_SIZE) * np.float32(2.0 ** (i % 5)), CodecContext(0, i // 2 + 1, i % 2, layout))
        for i, rng in _draw_streams(24)
    ]
    first = [_encode_bytes(op, x, ctx) for x, ctx in calls]
    for i in derive_generator(0, "laws/call_order").permutation(len(calls)):
        x, ctx = calls[i]
        figures = f"round {ctx.round}, client {ctx.client}: bytes differ after other calls"
        require(_encode_bytes(replace(op), x, ctx) == first[i], "call_order_invariance", op, figures)


def _draw_streams(n: int) -> Iterator[tuple[int, np.random.Generator]]:
    return ((i, derive_generator(0, "laws/call_order", i)) for i in range(n))


def _encode_bytes(op: CompressionOperator, x: F32, ctx: CodecContext) -> list[bytes]:
    return [bytes(section.data) for section in op.encode(x, ctx)[0]]


def incompressible_payload(op: CompressionOperator) -> None:
    """Sections have no redundant bits: on Gaussian vectors, zlib does not compress them to less than half their length.

    A MANIFEST is excluded: it describes the other sections, as a header does, and repeats in every frame.
    """
    streams: dict[SectionKind, list[bytes]] = {}
    for ctx, rng in draw_contexts("no_slack", 4096, 48):
        for section in op.encode(draw_gaussian(rng, 4096), ctx)[0]:
            streams.setdefault(section.kind, []).append(bytes(section.data))
    streams.pop(SectionKind.MANIFEST, None)
    for kind, pieces in streams.items():
        raw = b"".join(pieces)
        n_bytes = len(zlib.compress(raw, 9))
        figures = f"zlib compresses the {len(raw)} bytes of the {kind.name} sections to {n_bytes}"
        limit = MIN_COMPRESSED_SHARE * len(raw) - TAG_BYTES * len(pieces)
        require(n_bytes >= limit, "incompressible_payload", op, figures)


def rejects_malformed(op: CompressionOperator) -> None:
    """Sections of another kind, a missing section and an additional section raise WireError in the decoder."""
    for ctx, rng in draw_contexts("strict", SMALL_SIZE, 1):
        message = op.encode(draw_gaussian(rng, SMALL_SIZE), ctx)[0]
        other_kinds = [
            Section(SectionKind.MANIFEST if s.kind != SectionKind.MANIFEST else SectionKind.INDEX, s.data) for s in message
        ]
        variants = [(*message[:i], other_kinds[i], *message[i + 1 :]) for i in range(len(message))]
        for sections in [*variants, message[:-1], (*message, Section(SectionKind.SCALE, b"")), ()]:
            if sections == message:
                continue
            try:
                decode_through_frame(op, sections, ctx)
            except WireError:
                continue
            except Exception as error:
                raise LawError(f"rejects_malformed: {op}: {type(error).__name__} instead of a WireError: {error}") from error
            kinds = ", ".join(s.kind.name for s in sections) or "none"
            expected = ", ".join(s.kind.name for s in message)
            raise LawError(f"rejects_malformed: {op}: decodes sections {kinds}, but encodes {expected}")


# ------------------------------------------------------------------------------------------------- input laws on drawn vectors


def check_on_sample_vectors(law: Callable[[CompressionOperator, F32, CodecContext], None], op: CompressionOperator) -> None:
    """Check an input law on Gaussian, heavy-tailed, tied and sparse vectors."""
    draws = [*draw_contexts("check", 1000, 8), *draw_contexts("check", LARGE_SIZE, 1)]
    for ctx, rng in draws:
        x = draw_gaussian(rng, ctx.layout.size)
        for vector in (x, x**7, np.sign(x), np.where(np.abs(x) > 3, x, np.float32(0))):
            law(op, vector, ctx)
