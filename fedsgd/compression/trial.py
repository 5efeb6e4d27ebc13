"""Trial of a user's compressors before round 1: each encodes one vector, and decodes the frame of its sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np

from fedsgd.compression.base import (
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    Compressor,
    EncodedUpdate,
    OperatorKind,
)
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.updates import StateArrays, Update
from fedsgd.config.registry import is_builtin
from fedsgd.config.user_errors import describe_result, describe_user_error, make_component_error, wrap_user_errors
from fedsgd.errors import LawError, NonFiniteError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, Section, SectionKind, Sections, decode_frame, encode_frame

VECTOR_SCALE = np.float32(0.01)
"""Standard deviation of the vector, the size of a usual update: formats with a small range can send it."""


def try_compressor(key: str, compressor: Compressor, ctx: CodecContext, aggregator_state: StateArrays) -> None:
    """Try each compressor of the user in a compressor, also in one that contains others.

    Args:
        key: dotted key of the compressor in the scenario.
        compressor: operator or scheme of a run.
        ctx: context of a frame of round 1, without `reference`.
        aggregator_state: state of the scheme's aggregator before round 1.

    Raises:
        ScenarioError: a class breaks its contract or raises an error; the message names key, class and method.
    """
    for user_compressor, layout in _list_user_compressors(compressor, ctx.layout):
        try:
            with wrap_user_errors(key, user_compressor), np.errstate(over="ignore", invalid="ignore"):
                x = derive_generator(ctx.seed, "trial/compressor").standard_normal(layout.size, dtype=np.float32) * VECTOR_SCALE
                check_compressor(user_compressor, x, replace(ctx, layout=layout), aggregator_state)
        except (LawError, NonFiniteError, WireError) as error:
            raise make_component_error(key, user_compressor, describe_user_error(error)) from error


def _list_user_compressors(compressor: Compressor, layout: ParameterLayout) -> Iterator[tuple[Compressor, ParameterLayout]]:
    """Yield each compressor of the user in a compressor, and the layout of the vectors that it encodes.

    A compressor of the user that contains others is tried as a whole.
    """
    if not is_builtin(type(compressor)):
        yield compressor, layout
    elif isinstance(compressor, PerLayer):
        for group in compressor.group_tensors(layout):
            yield from _list_user_compressors(group.op, group.layout)
    else:
        for field in fields(compressor):
            value = getattr(compressor, field.name)
            if isinstance(value, Compressor):
                yield from _list_user_compressors(value, layout)


def check_compressor(compressor: Compressor, x: F32, ctx: CodecContext, aggregator_state: StateArrays) -> None:
    """Encode a vector [P] and decode it; raise LawError for a result that the contract of compressors excludes.

    Args:
        compressor: operator or scheme.
        x: [P] float32, vector to encode.
        ctx: context of the vector's frame, without `reference`.
        aggregator_state: state of the scheme's aggregator.
    """
    original = x.copy()
    if isinstance(compressor, CompressionOperator):
        method, encoded_values = "encode", _encode(compressor, x, ctx)
    else:
        assert isinstance(compressor, CompressionScheme)
        method, encoded_values = "send", (_send(compressor, x, ctx, aggregator_state), None)
    sections, update = encoded_values
    _require(np.array_equal(x, original), f"{method} wrote to its argument x, expected x unchanged")
    n_bytes, limit = sum(len(section.data) for section in sections), compressor.max_bytes(ctx.layout)
    is_integer = isinstance(limit, int | np.integer) and not isinstance(limit, bool)
    _require(is_integer, f"max_bytes returned {describe_result(limit)}, expected int")
    _require(n_bytes <= limit, f"{method} returned sections of {n_bytes:,} bytes, expected at most max_bytes = {limit:,}")
    decoded_update = compressor.decode(_pass_through_frame(compressor, FrameKind.UPDATE, sections, ctx), ctx)
    decoded_values = _expand_update(decoded_update, ctx.layout.size, "decode")
    if update is not None:
        _require_equal(decoded_values, _expand_update(update, ctx.layout.size, "encode"))


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise LawError(problem)


def _encode(op: CompressionOperator, x: F32, ctx: CodecContext) -> tuple[Sections, Any]:
    """Return the result of an operator's `encode`, after a check of its form and of the operator's kind."""
    kinds = get_args(OperatorKind)
    _require(op.kind in kinds, f"kind is {describe_result(op.kind)}, expected one of {', '.join(map(repr, kinds))}")
    result: Any = op.encode(x, ctx)
    expected = "expected (tuple of Section, Update)"
    _require(isinstance(result, tuple) and len(result) == 2, f"encode returned {describe_result(result)}, {expected}")
    _check_sections(result[0], "encode")
    _require(isinstance(result[1], Update), f"encode returned {describe_result(result)}, {expected}")
    sections, update = result
    return sections, update


def _send(scheme: CompressionScheme, x: F32, ctx: CodecContext, aggregator_state: StateArrays) -> Sections:
    """Return the sections of a client's first `send`, with the reference that the server sends in round 1."""
    shared_ctx = replace(ctx, client=ALL_CLIENTS)
    reference, reference_sections = None, scheme.encode_reference(aggregator_state, shared_ctx)
    if reference_sections:
        _check_sections(reference_sections, "encode_reference")
        sections = _pass_through_frame(scheme, FrameKind.REFERENCE, reference_sections, shared_ctx)
        reference = scheme.decode_reference(sections, shared_ctx)
    result: Any = scheme.send(x, {}, replace(ctx, reference=reference))
    _require(isinstance(result, EncodedUpdate), f"send returned {describe_result(result)}, expected EncodedUpdate")
    _check_sections(result.sections, "send")
    for name, entries in (("state", result.state), ("rollback", result.rollback)):
        is_mapping = isinstance(entries, Mapping)
        _require(is_mapping, f"send returned an EncodedUpdate with {name} {describe_result(entries)}, expected a dict")
    for name, value in result.state.items():
        got = f"send returned an EncodedUpdate with state entry {name!r} {describe_result(value)}"
        _require(isinstance(value, np.ndarray), f"{got}, expected an array")
    sections_to_decode: Sections = result.sections
    return sections_to_decode


def _check_sections(sections: Any, method: str) -> None:
    """Raise LawError unless a value is a tuple of sections with bytes."""
    is_tuple = isinstance(sections, tuple) and all(isinstance(section, Section) for section in sections)
    _require(is_tuple, f"{method} returned {describe_result(sections)} as sections, expected a tuple of Section")
    for section in sections:
        is_bytes = isinstance(section.data, bytes | bytearray | memoryview) and memoryview(section.data).itemsize == 1
        got = f"{method} returned a section with data {type(section.data).__name__}"
        _require(is_bytes, f"{got}, expected bytes")
        got = f"{method} returned a section with kind {describe_result(section.kind)}"
        _require(section.kind in SectionKind.__members__.values(), f"{got}, expected a SectionKind")


def _pass_through_frame(compressor: Compressor, kind: FrameKind, sections: Sections, ctx: CodecContext) -> Sections:
    """Return the sections as the receiver of their frame gets them."""
    header = Header(kind, ctx.round, compressor.codec, client=ctx.client)
    return decode_frame(encode_frame(Frame(header, sections))).sections


def _expand_update(update: Any, size: int, method: str) -> F32:
    """Return the dense form of an update, after a check of its form, its shape and its values."""
    _require(isinstance(update, Update), f"{method} returned {describe_result(update)}, expected an Update")
    dense: F32 = update.to_dense()
    is_vector = isinstance(dense, np.ndarray) and dense.dtype.kind == "f" and dense.shape == (size,)
    got = f"{method} returned an update whose dense form is {describe_result(dense)}"
    _require(is_vector, f"{got}, expected float32 and shape [{size}]")
    n_finite = np.count_nonzero(np.isfinite(dense))
    got = f"{method} returned an update with {size - n_finite:,} of {size:,} coordinates that are not finite"
    _require(n_finite == size, f"{got}, expected finite numbers")
    return dense


def _require_equal(decoded_values: F32, encoded_values: F32) -> None:
    """Raise LawError unless the updates of `decode` and of `encode` are equal in each coordinate."""
    positions = np.flatnonzero(decoded_values != encoded_values)
    if len(positions):
        first, n, size = positions[0], len(positions), len(decoded_values)
        figures = f"coordinate {first} is {decoded_values[first]:.6g}, expected {encoded_values[first]:.6g} as encode returned"
        raise LawError(f"decode returned another update than encode: {figures}; {n:,} of {size:,} differ")
