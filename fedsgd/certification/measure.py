"""Bytes and errors of a compressor on a sample.

R rounds, m clients, P parameters, k kept coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsgd.certification.certificate import CompressorLike, CompressorTraffic, OperatorErrors, SchemeErrors
from fedsgd.certification.samples import UpdateSample
from fedsgd.certification.simulate_rounds import SEED, SimulatedReply, SimulatedRound
from fedsgd.compression import CodecContext, CompressionOperator, CompressionScheme
from fedsgd.compression.operators.dense import Dense
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, SectionKind, encode_frame, frame_breakdown

MAX_CONTEXTS = 64
MAX_COORDINATES = 2**26
"""Of long vectors fewer contexts are tried, though at least FEWEST_CONTEXTS."""
MIN_CONTEXTS = 8
SECTION_NAMES = {SectionKind.INDEX: "index", SectionKind.VALUE: "value"}
"""Every other part of a frame counts as "side", as in the ledger."""


def measure_traffic(compressor: CompressorLike, sample: UpdateSample, rounds: Sequence[SimulatedRound]) -> CompressorTraffic:
    """What the messages of these rounds weigh, read from their bytes."""
    messages = [message for exchange in rounds for message in exchange.replies]
    size, n = sample.layout.size, len(messages)
    splits = [frame_breakdown(message.frame) for message in messages]
    totals = {part: sum(getattr(split, part) for split in splits) for part in ("header", "index", "value", "side")}
    kept = [compressor.n_coordinates(message.sections, message.ctx) for message in messages]
    payload, frames = sum(totals.values()) - totals["header"], sum(totals.values())
    by_kept = sum(kept) or math.inf
    bits = {part: 8 * total / by_kept for part, total in totals.items()}
    entropy = {part: of_part / by_kept for part, of_part in _measure_entropies(messages).items()}
    return CompressorTraffic(
        messages=n,
        kept=sum(kept) / n,
        payload_bits_per_parameter=8 * payload / (n * size),
        frame_bits_per_parameter=8 * frames / (n * size),
        uplink_ratio=n * dense_frame_bytes(sample.layout) / frames,
        **{part: total / n for part, total in totals.items()},
        reference_bytes=sum(len(exchange.reference_frame) for exchange in rounds) / len(rounds),
        max_bytes=compressor.max_bytes(sample.layout),
        bits_per_kept=bits if sum(kept) else None,
        entropy_bits_per_kept=entropy if sum(kept) else None,
        position_bits_per_kept=sum(log2_choose(size, k) for k in kept) / by_kept if sum(kept) else None,
    )


def dense_frame_bytes(layout: ParameterLayout) -> int:
    """The length of the frame that carries every coordinate as float32, by encoding one."""
    zeros = np.zeros(layout.size, dtype=np.float32)
    sections, _ = Dense().encode(zeros, CodecContext(SEED, 1, 0, layout))
    return len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, Dense.codec), sections)))


def log2_choose(n: int, k: int) -> float:
    """log₂ of the number of k-subsets of n."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _measure_entropies(messages: Sequence[SimulatedReply]) -> dict[str, float]:
    """Part → n · H₀ in bits of all its bytes together, H₀ being the entropy of how often each byte occurs."""
    counts = {part: np.zeros(256, dtype=np.int64) for part in ("index", "value", "side")}
    for message in messages:
        for section in message.sections:
            held = np.frombuffer(section.data, dtype=np.uint8)
            counts[SECTION_NAMES.get(section.kind, "side")] += np.bincount(held, minlength=256)
    return {part: _entropy_bits(of_part[of_part > 0].astype(np.float64)) for part, of_part in counts.items()}


def _entropy_bits(counts: F64) -> float:
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def decode_message(compressor: CompressorLike, message: SimulatedReply) -> F32:
    """What a message says [P]; LawError if that is no update, or if it weighs more than it may."""
    layout = message.ctx.layout
    dense = compressor.decode(message.sections, message.ctx).to_dense()
    if dense.shape != (layout.size,) or not np.isfinite(dense).all():
        raise LawError(f"a message decodes to {dense.shape} coordinates, expected {layout.size}, all finite")
    n_bytes, limit = sum(len(section.data) for section in message.sections), compressor.max_bytes(layout)
    if n_bytes > limit:
        raise LawError(f"a message of {n_bytes} bytes, max_bytes says {limit}")
    return dense


# ------------------------------------------------------------------------------------------------------------------- operators


def measure_operator_errors(op: CompressionOperator, sample: UpdateSample, rounds: Sequence[SimulatedRound]) -> OperatorErrors:
    """What an operator loses of each vector, and on average of one."""
    kept_shares = []
    for x, exchange in zip(sample.updates, rounds, strict=True):
        for client, message in enumerate(exchange.replies):
            whole = _squared_norm(x[client])
            if whole > 0:
                kept_shares.append(1 - _squared_norm(x[client] - decode_message(op, message).astype(np.float64)) / whole)
    shares = np.array(kept_shares) if kept_shares else np.ones(1)
    draws, bias, samples = _measure_over_contexts(op, sample)
    x, layout = sample.updates[0, 0], sample.layout
    stated, whole = op.variance(x), _squared_norm(x) or 1.0
    return OperatorErrors(
        error=float(1 - shares.mean()),
        contexts=draws,
        bias=math.sqrt(bias / whole),
        chance_bias=math.sqrt(samples.mean() / draws / whole),
        variance=float(samples.mean() / whole),
        variance_standard_error=float(samples.std(ddof=1) / math.sqrt(draws) / whole),
        stated_variance=None if stated is None else stated / whole,
        least_contraction=float(shares.min()),
        median_contraction=float(np.median(shares)),
        stated_contraction=op.contraction(layout) if op.kind == "contractive" else None,
        stated_floor=op.absolute_error(layout),
    )


def _measure_over_contexts(op: CompressionOperator, sample: UpdateSample) -> tuple[int, float, F64]:
    """(draws, |mean of C(x) − x|², |C(x) − x|² in each draw) of the sample's first vector."""
    x = sample.updates[0, 0]
    draws = max(MIN_CONTEXTS, min(MAX_CONTEXTS, MAX_COORDINATES // len(x)))
    total, samples = np.zeros(len(x)), np.empty(draws)
    for draw in range(draws):
        off = -x.astype(np.float64)
        op.encode(x, CodecContext(SEED, draw + 1, 0, sample.layout))[1].add_to(off, 1.0)
        total += off
        samples[draw] = _squared_norm(off)
    return draws, _squared_norm(total / draws), samples


def _squared_norm(x: F32 | F64) -> float:
    return float(np.square(x, dtype=np.float64).sum())


# --------------------------------------------------------------------------------------------------------------------- schemes


def measure_scheme_errors(scheme: CompressionScheme, sample: UpdateSample, rounds: Sequence[SimulatedRound]) -> SchemeErrors:
    """What a scheme delivers of all updates together, and what it still holds back."""
    given, made = np.zeros((2, sample.layout.size))
    held: list[list[float]] = []
    for x, exchange in zip(sample.updates, rounds, strict=True):
        given += x.mean(axis=0, dtype=np.float64)
        made += exchange.aggregate
        for message in exchange.replies:
            decode_message(scheme, message)
        withheld = [scheme.undelivered_update(message.state, sample.layout) for message in exchange.replies]
        held.append([_squared_norm(rest) for rest in withheld if rest is not None])
    one = _squared_norm(sample.updates) / (sample.updates.shape[0] * sample.updates.shape[1]) or 1.0
    whole = _squared_norm(given) or 1.0
    return SchemeErrors(
        error=_squared_norm(given - made) / whole,
        delivered=float(given @ made) / whole,
        withheld=sum(held[-1]) / len(held[-1]) / one if held[-1] else None,
        most_withheld=max(max(of_round) for of_round in held) / one if all(held) else None,
    )
