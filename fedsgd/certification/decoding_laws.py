"""Laws of decoded updates: how they are added, and what malformed bytes decode to. They hold for every compressor."""

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
"""Mutations of each message."""
WEIGHTS = (1.0, -1.0, 0.0, 0.3, -2.5)
FLOAT32_TOLERANCE = 1e-5
"""Rounding of a sum that is added up in float32, relative to its largest term."""


def weighted_addition(compressor: Compressor) -> None:
    """A decoded update's `add_to` adds weight · `to_dense()`, for any weight, to float64 and to float32. It changes neither the
    update nor its dense vector."""
    for ctx, update in _decode_messages(compressor):
        dense = update.to_dense()
        start = draw_gaussian(derive_generator(0, "laws/addition", ctx.round), SIZE)
        for dtype in (np.float64, np.float32):
            for weight in WEIGHTS:
                out: NDArray[Any] = start.astype(dtype)
                update.add_to(out, weight)
                where = f"round {ctx.round}, weight {weight:g} in {np.dtype(dtype).name}"
                _require_sum("addition", compressor, where, out, start, weight, dense)
        again = update.to_dense()
        again[:] = 0
        same = bool((update.to_dense() == dense).all())
        require(same, "addition", compressor, f"round {ctx.round}: to_dense gives another vector after add_to")


def no_silent_corruption(compressor: Compressor) -> None:
    """Sections with changed bytes raise an error, or decode to an update of the right size in which `add_to` and `to_dense`
    agree.

    Only silent faults are rejected. A decoder should raise WireError, but any other exception ends a run with an error too, and
    the server refuses an aggregate that is not finite.
    """
    for ctx, sections in _draw_messages(compressor):
        for change, mutated in _mutate(sections, derive_generator(0, "laws/malformed", ctx.round)):
            where = f"round {ctx.round}, {change}"
            try:
                with np.errstate(all="ignore"):
                    update = decode_through_frame(compressor, mutated, ctx)
                    dense, out = update.to_dense(), np.zeros(SIZE)
                    update.add_to(out, 1.0)
            except Exception:  # the user's own code
                continue
            require(dense.shape == (SIZE,), "malformed", compressor, f"{where}: {dense.shape} coordinates, expected {SIZE}")
            if np.isfinite(dense).all():
                _require_sum("malformed", compressor, where, out, np.zeros(SIZE), 1.0, dense)


def _draw_messages(compressor: Compressor) -> Iterator[tuple[CodecContext, Sections]]:
    """Yield the context at the server and the sections of clients without state, whose updates are Gaussian."""
    scheme = as_scheme(compressor)
    for ctx, rng in draw_contexts("decoding", SIZE, N_DRAWS):
        yield ctx, scheme.send(draw_gaussian(rng, SIZE), {}, ctx).sections


def _decode_messages(compressor: Compressor) -> Iterator[tuple[CodecContext, Update]]:
    for ctx, sections in _draw_messages(compressor):
        yield ctx, decode_through_frame(compressor, sections, ctx)


def _mutate(sections: Sections, rng: np.random.Generator) -> Iterator[tuple[str, Sections]]:
    """Yield (change, sections) with one section changed: a flipped bit, a cut, or a stretch that is repeated."""
    places = [i for i, section in enumerate(sections) if len(section.data)]
    for i in range(N_MUTATIONS if places else 0):
        place = places[i % len(places)]
        section = sections[place]
        change, data = _MUTATORS[int(rng.integers(len(_MUTATORS)))](bytes(section.data), rng)
        yield f"{change} of {section.kind.name}", (*sections[:place], replace(section, data=data), *sections[place + 1 :])


def _flip_bit(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    bit = int(rng.integers(8 * len(data)))
    flipped = data[bit // 8] ^ 1 << bit % 8
    return f"flipped bit {bit}", data[: bit // 8] + bytes([flipped]) + data[bit // 8 + 1 :]


def _truncate(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    length = int(rng.integers(len(data)))
    return f"first {length} bytes", data[:length]


def _repeat(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Repeat a stretch of 1, 2, 4 or 8 bytes, in place of the next stretch or before it."""
    width = 1 << int(rng.integers(4))
    start = width * int(rng.integers(-(-len(data) // width)))
    stretch = data[start : start + width]
    after = start + width * (1 + int(rng.integers(2)))
    return f"bytes {start} to {start + width - 1} twice", data[: start + width] + stretch + data[after:]


_MUTATORS: Sequence[Callable[[bytes, np.random.Generator], tuple[str, bytes]]] = (_flip_bit, _truncate, _repeat)


def _require_sum(
    law: str, compressor: Compressor, case: str, out: NDArray[Any], initial: NDArray[Any], weight: float, dense: F32
) -> None:
    """Raise LawError unless out [P] is start + weight · dense up to rounding."""
    expected = initial.astype(np.float64) + weight * dense.astype(np.float64)
    off = np.abs(out - expected)
    worst = int(off.argmax())
    figures = f"{case}: add_to makes {out[worst]:.6g} of coordinate {worst}, expected {expected[worst]:.6g}"
    limit = FLOAT32_TOLERANCE * (float(np.abs(initial).max()) + abs(weight) * float(np.abs(dense).max()))
    require(bool(off[worst] <= limit), law, compressor, figures)


DECODING_LAWS: Sequence[Callable[[Compressor], None]] = (weighted_addition, no_silent_corruption)
