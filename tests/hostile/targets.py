"""Every decoder as a target: valid frames to start from, and a function that opens any bytes as the receiver does and checks what
comes out. What it may do is return a vector or raise WireError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.clients import ClientState
from fedsgd.compress import Compressor, Context, Plain, Scheme, Sparse
from fedsgd.compress.cafe import CAFe
from fedsgd.compress.dense import DenseOperator
from fedsgd.compress.ef21 import EF21
from fedsgd.compress.fetch_sgd import FetchSGD
from fedsgd.compress.laws import layout_of
from fedsgd.compress.power_sgd import PowerSGD
from fedsgd.compress.stc import STC
from fedsgd.compress.topk import TopK
from fedsgd.data import Examples
from fedsgd.engine import Recipe
from fedsgd.errors import RunError, WireError
from fedsgd.optim import SGD
from fedsgd.rounds import Plan, Reply, Server, aggregate, broadcast, receive, start
from fedsgd.wire import (
    MAX_SECTIONS,
    Frame,
    Header,
    Kind,
    Part,
    Section,
    Sections,
    decode_frame,
    decode_indices,
    decode_values,
    encode_frame,
    encode_indices,
    encode_values,
    gaps,
    index,
    max_index_bytes,
    overhead,
    rans,
)
from fedsgd.wire.bits import pack_varint
from fedsgd.wire.levels import decode_digits, encode_digits
from tests.laws.members import name_of, operators, schemes, sections_of

SIZES = (1, 2, 7, 64, 1003, 2000, 70_000)
ROUND, CLIENT = 3, 2


class ViolationError(AssertionError):
    """A decoder let something through, or refused it in the wrong way."""


def require(condition: bool, what: str) -> None:
    """A violation unless the condition holds."""
    if not condition:
        raise ViolationError(what)


@dataclass(frozen=True, eq=False)
class Target:
    """One decoder at one size. frames: valid ones; open: what the bytes decode to, WireError where they are refused."""

    name: str
    size: int
    frames: tuple[bytes, ...]
    open: Callable[[bytes], NDArray[Any]]


def vectors(size: int) -> Iterator[F32]:
    """Noise, noise with a few large coordinates, zeros, and all the same."""
    rng = np.random.default_rng(size)
    x = rng.standard_normal(size).astype(np.float32)
    yield x
    yield (x * (1 + 50 * (rng.random(size) < 0.02))).astype(np.float32)
    yield np.zeros(size, dtype=np.float32)
    yield np.full(size, np.float32(0.5))


# ---------------------------------------------------------------------------------------------------------------- compressors


def members() -> dict[str, Compressor]:
    """Every operator and every scheme that does more than pass an operator's frames on, by name."""
    own = [scheme for scheme in schemes() if "codec" in type(scheme).__dict__ and isinstance(type(scheme).codec, int)]
    return {name_of(member): member for member in [*operators(), *own]}


def context(size: int) -> Context:
    """What both ends know."""
    return Context(0, ROUND, CLIENT, layout_of(size))


def sealed(sections: Sections, codec: int = 0) -> bytes:
    """The sections as an UPDATE frame."""
    return encode_frame(Frame(Header(Kind.UPDATE, ROUND, codec, ROUND, 0, CLIENT, 60), sections))


def open_update(member: Compressor, size: int, data: bytes) -> NDArray[Any]:
    """As the server does: the frame, what it decodes to, how much of it there is, and into the aggregate."""
    ctx, total = context(size), np.zeros(size, dtype=np.float64)
    try:
        sections = decode_frame(data, overhead(MAX_SECTIONS) + member.max_bytes(ctx.layout)).sections
        update = member.decode(sections, ctx)
        kept = member.kept(sections, ctx)
        update.add_to(total, 1.0)
    except WireError:
        require(not total.any(), "the frame was refused after something had been added")
        raise
    require(kept == update.kept and 0 <= kept <= size, f"kept is {kept} of the sections, {update.kept} of the update")
    if isinstance(update, Sparse):
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
    sections = decode_frame(data, overhead(MAX_SECTIONS) + limit).sections
    if len(sections) != 1:
        raise WireError(0, "not one section")
    return sections[0]


def _index_sections(size: int) -> Iterator[bytes]:
    """One and the same set in each of the five codecs, and a few sets in the shortest."""
    rng = np.random.default_rng(size)
    for share in (0.02, 0.3, 0.9):
        chosen = np.sort(rng.choice(size, max(1, round(share * size)), replace=False))
        count, between = pack_varint(len(chosen)), index._gaps_of(chosen)
        yield encode_indices(chosen, size)
        yield bytes([index.RICE]) + index._encode_rice(chosen)
        yield bytes([index.BITMAP]) + np.packbits(index._mask(chosen, size), bitorder="little").tobytes()
        yield bytes([index.RAW]) + count + b"".join(int(i).to_bytes(index._raw_width(size), "little") for i in chosen)
        yield bytes([index.ABSENT]) + index._encode_rice(index._others(chosen, size))
        yield bytes([index.CLASSES]) + count + gaps.encode_classes(between)


def _open_indices(size: int, data: bytes) -> NDArray[Any]:
    section = _only_section(data, max_index_bytes(size))
    found = decode_indices(section, size, max_k := max(1, round(0.9 * size)))
    require(found.dtype == np.int64 and len(found) <= max_k, "too many positions")
    require(not len(found) or 0 <= found[0] <= found[-1] < size, "a position out of range")
    require(bool((np.diff(found) > 0).all()), "positions that do not ascend")
    require(index.count_indices(section.data, size) == len(found), "the count is not the number of positions")
    return found


def _index_target(size: int) -> Target:
    good = [sealed((Section(Part.INDEX, data),)) for data in _index_sections(size) if len(data) <= max_index_bytes(size)]
    return Target("index codecs", size, tuple(good), partial(_open_indices, size))


def _open_values(form: Any, entropy: bool, k: int, data: bytes) -> NDArray[Any]:
    values = decode_values(decode_frame(data, overhead(MAX_SECTIONS) + 9 * k + 99).sections, k, form, entropy)
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
    frames = tuple(sealed((Section(Part.VALUE, rans.encode_symbols(symbols)),)) for symbols in several)
    return Target("symbols", n, frames, partial(_open_symbols, n))


def _digits_target(base: int, n: int) -> Target:
    r = np.random.default_rng(n)
    several = [np.minimum(r.geometric(p, n) - 1, base - 1).astype(np.uint8) for p in (0.9, 0.3, 0.02)]
    frames = tuple(sealed((Section(Part.VALUE, encode_digits(digits, base)),)) for digits in several)
    return Target(f"digits of base {base}", n, frames, partial(_open_digits, base, n))


# ----------------------------------------------------------------------------------------------------------------- the rounds

UPLINKS: tuple[Scheme, ...] = (Plain(TopK(0.1)), EF21(TopK(0.5)), STC(0.1, 0.1), CAFe(TopK(0.1)), FetchSGD(0.5), PowerSGD())


@cache
def opened_server(uplink: Scheme, size: int) -> tuple[Plan, Server, Reply]:
    """A server in round 3, and a good reply of client 1."""
    recipe = Recipe(SGD(), 1, None, None)
    plan = Plan(0, layout_of(size), recipe, uplink, DenseOperator(), SGD(lr=1.0), "examples", 10, 2)
    x = next(vectors(size))
    server = replace(start(plan, x), round=ROUND - 1)
    server, _ = aggregate(plan, server, [reply_of(plan, 1, ROUND - 1, x)])
    return plan, server, reply_of(plan, 1, ROUND, x)


def reply_of(plan: Plan, client: int, round: int, x: F32) -> Reply:
    """What a client that remembers nothing sends for the update x."""
    header = Header(Kind.UPDATE, round, plan.uplink.codec, round, 0, client, 60)
    return Reply(
        client, (encode_frame(Frame(header, plan.uplink.send(x, {}, plan.context(round, client)).sections)),), 0.0, 0.0
    )


def _open_reply(uplink: Scheme, size: int, data: bytes) -> NDArray[Any]:
    plan, server, good = opened_server(uplink, size)
    before = server.weights.tobytes(), {name: value.tobytes() for name, value in server.uplink.items()}
    try:
        after, _ = aggregate(plan, server, [good, Reply(CLIENT, (data,), 0.0, 0.0)])
    finally:
        now = server.weights.tobytes(), {name: value.tobytes() for name, value in server.uplink.items()}
        require(now == before and server.round == ROUND, "the server was written to")
    require(bool(np.isfinite(after.weights).all()), "a weight that is not finite")
    return after.weights


def _open_message(uplink: Scheme, size: int, place: int, data: bytes) -> NDArray[Any]:
    plan, server, _ = opened_server(uplink, size)
    message = list(broadcast(plan, server, [CLIENT])[0][CLIENT])
    message[place:] = [data, *message[place + 1 :]]
    nothing = Examples(np.zeros((1, 1)), np.zeros(1))
    try:
        task = receive(plan, CLIENT, tuple(message), ClientState(), nothing)
    except RunError as error:
        if "the server accepted a reply" in error.cause:  # a sound frame of a server that remembers another client than this
            raise WireError(0, error.cause) from None
        raise
    require(task.work.round >= 1, f"training in round {task.work.round}")
    require(task.work.weights.shape == (size,), "a model of the wrong size")
    require(bool(np.isfinite(task.work.weights).all()), "a weight that is not finite")
    reference = np.zeros(size, dtype=np.float32) if task.shared.reference is None else task.shared.reference
    require(reference.shape == (size,) and bool(np.isfinite(reference).all()), "a reference that is not one")
    return np.concatenate([task.work.weights, reference])


def _round_targets(size: int) -> Iterator[Target]:
    for uplink in UPLINKS:
        plan, server, _ = opened_server(uplink, size)
        frames = tuple(reply_of(plan, CLIENT, ROUND, x).frames[0] for x in vectors(size))
        yield Target(f"UPDATE {uplink.name}", size, frames, partial(_open_reply, uplink, size))
    uplink = CAFe(TopK(0.1))
    plan, server, _ = opened_server(uplink, size)
    message = broadcast(plan, server, [CLIENT])[0][CLIENT]
    for place, frame in enumerate(message):
        kind = ("TASK", "MODEL", "REFERENCE")[place]
        yield Target(kind, size, (frame,), partial(_open_message, uplink, size, place))


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
    made += [partial(_nth_round_target, size, n) for n in range(len(UPLINKS) + 3)]
    return tuple(cache(make) for make in made)


@cache
def _all_round_targets(size: int) -> tuple[Target, ...]:
    return tuple(_round_targets(size))


def _nth_round_target(size: int, n: int) -> Target:
    return _all_round_targets(size)[n]
