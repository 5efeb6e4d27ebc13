"""Bytes and errors of a compressor on a sample.

R: rounds; m: clients; P: parameters; k: coordinates that a message sends.
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
from fedsgd.numerics.binomial import log2_choose
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, SectionKind, encode_frame, frame_breakdown

MIN_CONTEXTS, MAX_CONTEXTS = 8, 64
MAX_COORDINATES = 2**26
"""A vector is encoded in MAX_COORDINATES / P contexts, but at least MIN_CONTEXTS and at most MAX_CONTEXTS."""
SECTION_NAMES = {SectionKind.INDEX: "index", SectionKind.VALUE: "value"}
"""Names of two kinds of sections. All others count as "side", as in the ledger."""


def measure_traffic(compressor: CompressorLike, sample: UpdateSample, rounds: Sequence[SimulatedRound]) -> CompressorTraffic:
    """Compute bytes, ratios and entropies of all replies in the rounds that were simulated with the sample."""
    replies = [reply for simulated in rounds for reply in simulated.replies]
    size, n = sample.layout.size, len(replies)
    breakdowns = [frame_breakdown(reply.frame) for reply in replies]
    totals = {name: sum(getattr(breakdown, name) for breakdown in breakdowns) for name in ("header", "index", "value", "side")}
    counts = [compressor.n_coordinates(reply.sections, reply.ctx) for reply in replies]
    payload_bytes, frame_bytes = sum(totals.values()) - totals["header"], sum(totals.values())
    n_coordinates = sum(counts) or math.inf
    bits = {name: 8 * total / n_coordinates for name, total in totals.items()}
    entropy = {name: total / n_coordinates for name, total in _measure_entropies(replies).items()}
    return CompressorTraffic(
        messages=n,
        kept=sum(counts) / n,
        payload_bits_per_parameter=8 * payload_bytes / (n * size),
        frame_bits_per_parameter=8 * frame_bytes / (n * size),
        uplink_ratio=n * dense_frame_bytes(sample.layout) / frame_bytes,
        **{name: total / n for name, total in totals.items()},
        reference_bytes=sum(len(simulated.reference_frame) for simulated in rounds) / len(rounds),
        max_bytes=compressor.max_bytes(sample.layout),
        bits_per_kept=bits if sum(counts) else None,
        entropy_bits_per_kept=entropy if sum(counts) else None,
        position_bits_per_kept=sum(log2_choose(size, k) for k in counts) / n_coordinates if sum(counts) else None,
    )


def dense_frame_bytes(layout: ParameterLayout) -> int:
    """Return the length of a frame with every coordinate as float32, by encoding such a frame."""
    zeros = np.zeros(layout.size, dtype=np.float32)
    sections, _ = Dense().encode(zeros, CodecContext(SEED, 1, 0, layout))
    return len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, Dense.codec), sections)))


def _measure_entropies(replies: Sequence[SimulatedReply]) -> dict[str, float]:
    """Return for each part (index, value, side) the bits of an ideal code of single bytes, over all replies."""
    counts = {name: np.zeros(256, dtype=np.int64) for name in ("index", "value", "side")}
    for reply in replies:
        for section in reply.sections:
            values = np.frombuffer(section.data, dtype=np.uint8)
            counts[SECTION_NAMES.get(section.kind, "side")] += np.bincount(values, minlength=256)
    return {name: _entropy_bits(histogram[histogram > 0].astype(np.float64)) for name, histogram in counts.items()}


def _entropy_bits(counts: F64) -> float:
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def decode_message(compressor: CompressorLike, reply: SimulatedReply) -> F32:
    """Decode a reply to a vector [P]; check the vector and the size of the sections.

    Raises:
        LawError: the vector does not have P finite coordinates, or the sections have more than `max_bytes` bytes.
    """
    layout = reply.ctx.layout
    dense = compressor.decode(reply.sections, reply.ctx).to_dense()
    if dense.shape != (layout.size,) or not np.isfinite(dense).all():
        raise LawError(f"a message decodes to shape {dense.shape}, {np.isfinite(dense).sum()} finite, expected {layout.size}")
    n_bytes, limit = sum(len(section.data) for section in reply.sections), compressor.max_bytes(layout)
    if n_bytes > limit:
        raise LawError(f"the sections of a message have {n_bytes} bytes, expected at most max_bytes = {limit}")
    return dense


# ------------------------------------------------------------------------------------------------------------------- operators


def measure_operator_errors(op: CompressionOperator, sample: UpdateSample, rounds: Sequence[SimulatedRound]) -> OperatorErrors:
    """Measure the error of an operator on each nonzero vector; on the first vector, bias and variance over several contexts."""
    contractions = []
    for updates, simulated in zip(sample.updates, rounds, strict=True):
        for x, reply in zip(updates, simulated.replies, strict=True):
            energy = _squared_norm(x)
            if energy > 0:
                contractions.append(1 - _squared_norm(x - decode_message(op, reply).astype(np.float64)) / energy)
    shares = np.array(contractions) if contractions else np.ones(1)
    n_contexts, squared_bias, squared_errors = _measure_over_contexts(op, sample)
    x, layout = sample.updates[0, 0], sample.layout
    stated_variance, energy = op.variance(x), _squared_norm(x) or 1.0
    return OperatorErrors(
        error=float(1 - shares.mean()),
        contexts=n_contexts,
        bias=math.sqrt(squared_bias / energy),
        chance_bias=math.sqrt(squared_errors.mean() / n_contexts / energy),
        variance=float(squared_errors.mean() / energy),
        variance_standard_error=float(squared_errors.std(ddof=1) / math.sqrt(n_contexts) / energy),
        stated_variance=None if stated_variance is None else stated_variance / energy,
        least_contraction=float(shares.min()),
        median_contraction=float(np.median(shares)),
        stated_contraction=op.contraction(layout) if op.kind == "contractive" else None,
        stated_floor=op.absolute_error(layout),
    )


def _measure_over_contexts(op: CompressionOperator, sample: UpdateSample) -> tuple[int, float, F64]:
    """Encode the sample's first vector in n contexts; return n, |mean of C(x) − x|² and |C(x) − x|² of each context [n]."""
    x = sample.updates[0, 0]
    n = max(MIN_CONTEXTS, min(MAX_CONTEXTS, MAX_COORDINATES // len(x)))
    total, squared_errors = np.zeros(len(x)), np.empty(n)
    for i in range(n):
        error = -x.astype(np.float64)
        op.encode(x, CodecContext(SEED, i + 1, 0, sample.layout))[1].add_to(error, 1.0)
        total += error
        squared_errors[i] = _squared_norm(error)
    return n, _squared_norm(total / n), squared_errors


def _squared_norm(x: F32 | F64) -> float:
    return float(np.square(x, dtype=np.float64).sum())


# --------------------------------------------------------------------------------------------------------------------- schemes


def measure_scheme_errors(scheme: CompressionScheme, sample: UpdateSample, rounds: Sequence[SimulatedRound]) -> SchemeErrors:
    """Compare aggregates with the clients' mean updates, each summed over the rounds, and measure the undelivered updates."""
    update_sum, aggregate_sum = np.zeros((2, sample.layout.size))
    energies: list[list[float]] = []
    for updates, simulated in zip(sample.updates, rounds, strict=True):
        update_sum += updates.mean(axis=0, dtype=np.float64)
        aggregate_sum += simulated.aggregate
        for reply in simulated.replies:
            decode_message(scheme, reply)
        undelivered_updates = [scheme.undelivered_update(reply.state, sample.layout) for reply in simulated.replies]
        energies.append([_squared_norm(update) for update in undelivered_updates if update is not None])
    unit = _squared_norm(sample.updates) / (sample.updates.shape[0] * sample.updates.shape[1]) or 1.0
    total_energy = _squared_norm(update_sum) or 1.0
    return SchemeErrors(
        error=_squared_norm(update_sum - aggregate_sum) / total_energy,
        delivered=float(update_sum @ aggregate_sum) / total_energy,
        withheld=sum(energies[-1]) / len(energies[-1]) / unit if energies[-1] else None,
        most_withheld=max(max(round_energies) for round_energies in energies) / unit if all(energies) else None,
    )
