"""Laws of decoded updates for every compressor: weighted addition, and errors for malformed bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.operator_laws import decode_through_frame, draw_contexts, draw_gaussian, require
from fedsgd.certification.simulate_rounds import as_scheme
from fedsgd.compression.base import CodecContext, Compressor
from fedsgd.compression.updates import Update
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_generator
from fedsgd.wire import Sections

SIZE = 400
N_DRAWS = 4
N_MUTATIONS = 60
"""Number of mutations of each message."""
WEIGHTS = (1.0, -1.0, 0.0, 0.3, -2.5)
FLOAT32_TOLERANCE = 1e-5
"""Allowed rounding error of a float32 sum, relative to its largest term."""


def weighted_addition(compressor: Compressor) -> None:
    """`add_to` of a decoded update adds weight · `to_dense()` for any weight, in float64 and float32.

    The call changes neither the update nor its dense vector.
    """
    for ctx, update in _decode_messages(compressor):
        dense = update.to_dense()
        initial = draw_gaussian(derive_generator(0, "laws/addition", ctx.round), SIZE)
        for dtype in (np.float64, np.float32):
            for weight in WEIGHTS:
                out: NDArray[Any] = initial.astype(dtype)
                update.add_to(out, weight)
                case = f"round {ctx.round}, weight {weight:g} in {np.dtype(dtype).name}"
                _require_sum("weighted_addition", compressor, case, out, initial, weight, dense)
        copy = update.to_dense()
        copy[:] = 0
        is_equal = bool((update.to_dense() == dense).all())
        figures = f"round {ctx.round}: to_dense returns another vector after add_to"
        require(is_equal, "weighted_addition", compressor, figures)


def no_silent_corruption(compressor: Compressor) -> None:
    """Changed bytes raise an error or decode to P coordinates for which `add_to` and `to_dense` agree.

    Only silent faults are rejected. A decoder should raise WireError, but any other exception ends a run with an error too. The
    server rejects an aggregate that is not finite.
    """
    for ctx, sections in _draw_messages(compressor):
        for change, mutated in _mutate(sections, derive_generator(0, "laws/malformed", ctx.round)):
            case = f"round {ctx.round}, {change}"
            try:
                with np.errstate(all="ignore"):
                    update = decode_through_frame(compressor, mutated, ctx)
                    dense, out = update.to_dense(), np.zeros(SIZE)
                    update.add_to(out, 1.0)
            except Exception:  # the user's own code
                continue
            figures = f"{case}: {dense.shape} coordinates, expected {SIZE}"
            require(dense.shape == (SIZE,), "no_silent_corruption", compressor, figures)
            if np.isfinite(dense).all():
                _require_sum("no_silent_corruption", compressor, case, out, np.zeros(SIZE), 1.0, dense)


def _draw_messages(compressor: Compressor) -> Iterator[tuple[CodecContext, Sections]]:
    """Yield the server's context and the sections of Gaussian updates of clients without state."""
    scheme = as_scheme(compressor)
    for ctx, rng in draw_contexts("decoding", SIZE, N_DRAWS):
        yield ctx, scheme.send(draw_gaussian(rng, SIZE), {}, ctx).sections


def _decode_messages(compressor: Compressor) -> Iterator[tuple[CodecContext, Update]]:
    for ctx, sections in _draw_messages(compressor):
        yield ctx, decode_through_frame(compressor, sections, ctx)


def _mutate(sections: Sections, rng: np.random.Generator) -> Iterator[tuple[str, Sections]]:
    """Yield a description and the sections with one of them changed: a flipped bit, fewer bytes, or repeated bytes."""
    candidates = [i for i, section in enumerate(sections) if len(section.data)]
    for i in range(N_MUTATIONS if candidates else 0):
        index = candidates[i % len(candidates)]
        section = sections[index]
        change, data = _MUTATORS[int(rng.integers(len(_MUTATORS)))](bytes(section.data), rng)
        yield f"{change} of {section.kind.name}", (*sections[:index], replace(section, data=data), *sections[index + 1 :])


def _flip_bit(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    bit = int(rng.integers(8 * len(data)))
    flipped = data[bit // 8] ^ 1 << bit % 8
    return f"flipped bit {bit}", data[: bit // 8] + bytes([flipped]) + data[bit // 8 + 1 :]


def _truncate(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    length = int(rng.integers(len(data)))
    return f"first {length} bytes", data[:length]


def _repeat(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Repeat 1, 2, 4 or 8 bytes. The copy replaces the bytes that follow, or is inserted before these."""
    width = 1 << int(rng.integers(4))
    start = width * int(rng.integers(-(-len(data) // width)))
    copy = data[start : start + width]
    end = start + width * (1 + int(rng.integers(2)))
    return f"bytes {start} to {start + width - 1} twice", data[: start + width] + copy + data[end:]


_MUTATORS: Sequence[Callable[[bytes, np.random.Generator], tuple[str, bytes]]] = (_flip_bit, _truncate, _repeat)


def _require_sum(
    law: str, compressor: Compressor, case: str, out: NDArray[Any], initial: NDArray[Any], weight: float, dense: F32
) -> None:
    """Raise LawError unless out [P] is initial + weight · dense up to rounding."""
    expected = initial.astype(np.float64) + weight * dense.astype(np.float64)
    errors = np.abs(out - expected)
    worst = int(errors.argmax())
    figures = f"{case}: add_to sets coordinate {worst} to {out[worst]:.6g}, expected {expected[worst]:.6g}"
    limit = FLOAT32_TOLERANCE * (float(np.abs(initial).max()) + abs(weight) * float(np.abs(dense).max()))
    require(bool(errors[worst] <= limit), law, compressor, figures)


DECODING_LAWS: Sequence[Callable[[Compressor], None]] = (weighted_addition, no_silent_corruption)
