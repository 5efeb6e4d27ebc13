"""Every decoder as a target: valid frames to start from, and a function that opens any bytes as the receiver does and checks what
comes out. What it may do is return a vector or raise WireError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import Compressor, SparseUpdate
from fedsgd.errors import WireError
from fedsgd.wire import (
    MAX_SECTIONS,
    Frame,
    FrameKind,
    Header,
    Section,
    SectionKind,
    Sections,
    decode_frame,
    decode_indices,
    decode_values,
    encode_frame,
    encode_indices,
    encode_values,
    frame_overhead,
    gap_codec,
    index_codec,
    max_index_bytes,
    rans,
)
from fedsgd.wire.bits import pack_varint
from fedsgd.wire.levels import decode_digits, encode_digits
from tests.hostile.basis import CLIENT, ROUND, Target, context, require, vectors
from tests.hostile.rounds import round_targets
from tests.laws.members import name_of, operators, schemes, sections_of

# ---------------------------------------------------------------------------------------------------------------- compressors


def members() -> dict[str, Compressor]:
    """Every operator and every scheme that does more than pass an operator's frames on, by name."""
    own = [scheme for scheme in schemes() if "codec" in type(scheme).__dict__ and isinstance(type(scheme).codec, int)]
    return {name_of(member): member for member in [*operators(), *own]}


def sealed(sections: Sections, codec: int = 0) -> bytes:
    """The sections as an UPDATE frame."""
    return encode_frame(Frame(Header(FrameKind.UPDATE, ROUND, codec, ROUND, 0, CLIENT, 60), sections))


def open_update(member: Compressor, size: int, data: bytes) -> NDArray[Any]:
    """As the server does: the frame, what it decodes to, how much of it there is, and into the aggregate."""
    ctx, total = context(size), np.zeros(size, dtype=np.float64)
    try:
        sections = decode_frame(data, frame_overhead(MAX_SECTIONS) + member.max_bytes(ctx.layout)).sections
        update = member.decode(sections, ctx)
        kept = member.n_coordinates(sections, ctx)
        update.add_to(total, 1.0)
    except WireError:
        require(not total.any(), "the frame was refused after something had been added")
        raise
    require(
        kept == update.n_coordinates and 0 <= kept <= size,
        f"kept is {kept} of the sections, {update.n_coordinates} of the update",
    )
    if isinstance(update, SparseUpdate):
        require(len(update.indices) == len(update.values) == kept, "as many positions as values")
        require(not kept or 0 <= update.indices[0] <= update.indices[-1] < size, "a position out of range")
        require(bool((np.diff(update.indices) > 0).all()), "positions that do not ascend")
    dense = update.to_dense()
    require(dense.shape == (size,) and dense.dtype == np.float32, f"{dense.shape} coordinates of {dense.dtype}")
    require(bool(np.isfinite(dense).all() and np.isfinite(total).all()), "a coordinate that is not finite")
    require(np.array_equal(dense, total), "what was added is not what it decodes to")
    return total


def _update_target(name: str, member: Compressor, size: int) -> Target:
    frames = [sealed(sections_of(member, x, context(size)), member.codec) for x in vectors(size)]
    return Target(name, size, tuple(frames), partial(open_update, member, size))


# ----------------------------------------------------------------------------------------------------------------- the codecs


def _only_section(data: bytes, limit: int) -> Section:
    sections = decode_frame(data, frame_overhead(MAX_SECTIONS) + limit).sections
    if len(sections) != 1:
        raise WireError(0, "not one section")
    return sections[0]


def _index_sections(size: int) -> Iterator[bytes]:
    """One and the same set in each of the five codecs, and a few sets in the shortest."""
    rng = np.random.default_rng(size)
    for share in (0.02, 0.3, 0.9):
        chosen = np.sort(rng.choice(size, max(1, round(share * size)), replace=False))
        count, between = pack_varint(len(chosen)), index_codec._positions_to_gaps(chosen)
        yield encode_indices(chosen, size)
        yield bytes([index_codec.RICE]) + index_codec._encode_rice(chosen)
        yield bytes([index_codec.BITMAP]) + np.packbits(index_codec._build_mask(chosen, size), bitorder="little").tobytes()
        yield (
            bytes([index_codec.RAW])
            + count
            + b"".join(int(i).to_bytes(index_codec._raw_position_bytes(size), "little") for i in chosen)
        )
        yield bytes([index_codec.COMPLEMENT]) + index_codec._encode_rice(index_codec._complement(chosen, size))
        yield bytes([index_codec.CLASSES]) + count + gap_codec.encode_classes(between)


def _open_indices(size: int, data: bytes) -> NDArray[Any]:
    section = _only_section(data, max_index_bytes(size))
    found = decode_indices(section, size, max_k := max(1, round(0.9 * size)))
    require(found.dtype == np.int64 and len(found) <= max_k, "too many positions")
    require(not len(found) or 0 <= found[0] <= found[-1] < size, "a position out of range")
    require(bool((np.diff(found) > 0).all()), "positions that do not ascend")
    require(index_codec.count_indices(section.data, size) == len(found), "the count is not the number of positions")
    return found


def _index_target(size: int) -> Target:
    good = [sealed((Section(SectionKind.INDEX, data),)) for data in _index_sections(size) if len(data) <= max_index_bytes(size)]
    return Target("index codecs", size, tuple(good), partial(_open_indices, size))


def _open_values(form: Any, entropy: bool, k: int, data: bytes) -> NDArray[Any]:
    values = decode_values(decode_frame(data, frame_overhead(MAX_SECTIONS) + 9 * k + 99).sections, k, form, entropy)
    require(values.shape == (k,) and values.dtype == np.float32, f"{values.shape} values of {values.dtype}")
    require(bool(np.isfinite(values).all()), "a value that is not finite")
    return values


def _values_target(form: Any, entropy: bool, k: int) -> Target:
    frames = []
    for x in vectors(k):
        values = x[: 0 if form == "ternary" and not x.all() else k]
        if len(values) == k:
            frames.append(sealed(encode_values(values, form, 7, entropy)[0]))
    return Target(f"values {form}{'' if entropy else ' plain'}", k, tuple(frames), partial(_open_values, form, entropy, k))


def _open_symbols(n: int, data: bytes) -> NDArray[Any]:
    symbols = rans.decode_symbols(_only_section(data, 2 * n + 99).data, n)
    require(symbols.shape == (n,) and symbols.dtype == np.uint8, "not as many symbols as there are")
    return symbols


def _open_digits(base: int, n: int, data: bytes) -> NDArray[Any]:
    digits = decode_digits(_only_section(data, 2 * n + 99).data, n, base)
    require(digits.shape == (n,) and digits.dtype == np.uint8, "not as many digits as there are")
    require(not n or int(digits.max()) < base, "a digit that is none")
    return digits


def _symbols_target(n: int) -> Target:
    r = np.random.default_rng(n)
    several = [np.minimum(r.geometric(p, n) - 1, 255).astype(np.uint8) for p in (0.9, 0.3, 0.02)]
    coded = [rans.encode_symbols(symbols) for symbols in several]
    rare = np.where(r.random(n) < 0.998, 0, r.integers(1, 200, n)).astype(np.uint8)
    coded.append(rans.encode_symbols(rare, frequency_bits=15))
    frames = tuple(sealed((Section(SectionKind.VALUE, body),)) for body in coded)
    return Target("symbols", n, frames, partial(_open_symbols, n))


def _digits_target(base: int, n: int) -> Target:
    r = np.random.default_rng(n)
    several = [np.minimum(r.geometric(p, n) - 1, base - 1).astype(np.uint8) for p in (0.9, 0.3, 0.02)]
    frames = tuple(sealed((Section(SectionKind.VALUE, encode_digits(digits, base)),)) for digits in several)
    return Target(f"digits of base {base}", n, frames, partial(_open_digits, base, n))


# ----------------------------------------------------------------------------------------------------------------------- all


@cache
def targets(size: int) -> tuple[Callable[[], Target], ...]:
    """Every decoder at a size; each is made when it is first asked for."""
    made = [partial(_update_target, name, member, size) for name, member in members().items()]
    made += [partial(_index_target, size), partial(_symbols_target, size)]
    for form in ("float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary"):
        made += [partial(_values_target, form, entropy, size) for entropy in (True, False)]
    made += [partial(_digits_target, base, size) for base in (2, 3, 9, 15, 255)]
    if size == 1:  # nothing at all is what a sparsifier of zeros sends
        made += [partial(_values_target, form, True, 0) for form in ("float32", "float16", "natural", "int4", "ternary")]
        made += [partial(_symbols_target, 0), partial(_digits_target, 3, 0)]
    made += [partial(make, size) for make in round_targets()]
    return tuple(cache(make) for make in made)
