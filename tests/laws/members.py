"""Compressors for tests: every registered compressor at its defaults and at the settings that change its behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin

from fedsgd.compression import (
    COMPRESSORS,
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    Compressor,
    ErrorFeedback,
    MemorylessScheme,
    StaleResidualPolicy,
)
from fedsgd.compression.operators.count_sketch import CountSketch
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.sparsifier import Sparsifier
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.demo import DeMo
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.config.component import field_types
from fedsgd.numerics.arrays import F32
from fedsgd.wire import Sections

DENSITIES = (0.001, 0.1, 1.0)
COMPOSED: tuple[CompressionOperator, ...] = (
    PerLayer(TopK(0.1, "bfloat16"), biases=Dense()),
    PerLayer(RandK(0.25), rules=(LayerRule("mat*", QSGD()),), separate=True),
    PerLayer(Scheduled(TopK(0.1), (0.5, 0.25), 2), biases=Sign(), separate=True),
    Scheduled(RandK(0.05, scaled=False), (1.0, 0.5)),
    Scheduled(TopK(0.05, chunk=64), (1.0, 0.5)),
    PerLayer(TopK(0.25, chunk=50), biases=Dense()),
)
"""Operators that are composed of other operators."""
PAIRS: tuple[CompressionOperator, ...] = (
    TopK(0.1, "bfloat16"),
    TopK(0.1, "ternary"),
    TopK(1.0, "int8"),
    TopK(0.1, "bfloat16", chunk=64),
    TopK(1.0, chunk=100),
    TopK(0.1, "2bit", chunk=64),
    TopK(0.1, "2bit", chunk=64, scales="chunk"),
    TopK(0.25, "int8", chunk=64, scales="chunk"),
    TopK(1.0, "int4", chunk=100, scales="chunk"),
    TopK(0.1, "ternary", chunk=100, scales="chunk"),
    RandK(0.1, "bfloat16", scaled=False),
    RandK(0.25, "natural"),
    RandK(0.25, "int4", scaled=False),
    Dense("bfloat16", entropy=True),
    Dense("float16", entropy=True),
    Integer(4, "nearest"),
    Integer(4, entropy=True),
    TernGrad(2.5),
    TernGrad(2.5, "std"),
)
"""Operators that differ from their defaults in two fields."""


def operators() -> Iterator[CompressionOperator]:
    """Yield the registered operators with each literal, each flag and three densities, then PAIRS and COMPOSED."""
    for name in COMPRESSORS:
        if issubclass(COMPRESSORS[name], CompressionOperator):
            yield from variants(COMPRESSORS[name])
    yield from PAIRS
    yield from COMPOSED


def variants(cls: type) -> list[Any]:
    """Return a class at its defaults, and with each single field at each of its choices. PAIRS has the pairs of fields."""
    default: Any = cls()
    members = [replace(default, **{f.name: choice}) for f in fields(cls) for choice in _list_choices(cls, f.name)]
    return [*dict.fromkeys([default, *members])]


def _list_choices(cls: type, field: str) -> tuple[object, ...]:
    annotation = field_types(cls)[field]
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is bool:
        return (True, False)
    return DENSITIES if field == "density" else ()


def schemes() -> Iterator[CompressionScheme]:
    """Yield some operators without memory, all contractive operators with error feedback, and the registered schemes."""
    yield from (MemorylessScheme(op) for op in (TopK(), Sign(), QSGD(), COMPOSED[0]))
    yield from (ErrorFeedback(op) for op in operators() if op.kind == "contractive")
    yield ErrorFeedback(TopK(), decay=0.95)
    yield DeMo(momentum=1.0, block=16, k=4)
    yield from (StaleResidualPolicy(ErrorFeedback(TopK(density=0.1)), policy) for policy in ("decay", "reset"))
    for name in COMPRESSORS:
        if issubclass(COMPRESSORS[name], CompressionScheme):
            yield from variants(COMPRESSORS[name])
    yield from (scheme(op) for scheme in (EF21, CAFe) for op in (Sign(), RandK(0.1, scaled=False), COMPOSED[0]))


def is_default(member: Compressor) -> bool:
    """Return True for a registered compressor at its defaults. The inner loop tests the laws with these alone."""
    return member.name in COMPRESSORS and type(member) is COMPRESSORS[member.name] and member == type(member)()


def is_plain(member: Compressor) -> bool:
    """Return True for a compressor at its defaults, for a composition, and for error feedback around top-k or a composition."""
    if isinstance(member, ErrorFeedback):
        return member == ErrorFeedback(TopK()) or member.op in COMPOSED
    return is_default(member) or member in COMPOSED


def is_routine(member: Compressor) -> bool:
    """Return True unless another member has the same code paths. The nightly workflow alone tests the laws with the others.

    Value formats of a `Sparsifier`, DGC and DeMo have the code of top-k, which has all formats. Random formats of rand-k are those
    of its pairs, and float16 of a sketch is that of bfloat16. Entropy coding of integers is in a pair. The median of 3 or 7 rows
    of a sketch is that of 5, and one row has no median. A density of 0.001 keeps one coordinate of the vectors of the laws, as
    the defaults do. Error feedback does not look into its operator: the defaults and the compositions are enough.
    Golden frames have all members.
    """
    if isinstance(member, ErrorFeedback):
        return is_plain(member.op)
    return isinstance(member, TopK) or not _shared_settings(member)


def _shared_settings(member: Compressor) -> set[tuple[str, object]]:
    """Return the settings of a member that differ from its default alone, and have the code path of another member."""
    if type(member) not in map(COMPRESSORS.__getitem__, COMPRESSORS) or member in (*PAIRS, *COMPOSED):
        return set()
    default = type(member)()
    changed = {(f.name, getattr(member, f.name)) for f in fields(member) if getattr(member, f.name) != getattr(default, f.name)}
    formats = {("values", name) for name in ("float16", "natural", "int8", "int4", "ternary", "2bit")}
    others = {("rows", 3), ("rows", 7), ("density", 0.001)}
    if isinstance(member, Integer):
        others.add(("entropy", True))
    return changed & (formats | others if isinstance(member, Sparsifier | DGC | DeMo | RandK | CountSketch) else others)


def sections_of(compressor: Compressor, x: F32, ctx: CodecContext) -> Sections:
    """Return the sections of a client's first update."""
    if isinstance(compressor, CompressionOperator):
        return compressor.encode(x, ctx)[0]
    assert isinstance(compressor, CompressionScheme)
    return compressor.send(x, {}, ctx).sections


def name_of(member: object) -> str:
    """Return a short name for a test id."""
    return str(member).replace(" ", "").replace("'", "")
