"""Bytes and errors of a compressor on a sample.

R rounds, m clients, P parameters, k kept coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.certificate.base import Delivery, Errors, Subject, Traffic
from fedsgd.certificate.sample import Sample
from fedsgd.compress import Context, Operator, Scheme
from fedsgd.compress.dense import DenseOperator
from fedsgd.compress.exchange import SEED, Exchange, Message
from fedsgd.errors import LawError
from fedsgd.layout import Layout
from fedsgd.wire import Frame, Header, Kind, Part, encode_frame, split_frame

CONTEXTS = 64
MOST_COORDINATES = 2**26
"""Of long vectors fewer contexts are tried, though at least FEWEST_CONTEXTS."""
FEWEST_CONTEXTS = 8
SIDES = {Part.INDEX: "index", Part.VALUE: "value"}
"""Every other part of a frame counts as "side", as in the ledger."""


def traffic(compressor: Subject, sample: Sample, rounds: Sequence[Exchange]) -> Traffic:
    """What the messages of these rounds weigh, read from their bytes."""
    messages = [message for exchange in rounds for message in exchange.messages]
    size, n = sample.layout.size, len(messages)
    splits = [split_frame(message.frame) for message in messages]
    totals = {part: sum(getattr(split, part) for split in splits) for part in ("header", "index", "value", "side")}
    kept = [compressor.kept(message.sections, message.ctx) for message in messages]
    payload, frames = sum(totals.values()) - totals["header"], sum(totals.values())
    by_kept = sum(kept) or math.inf
    bits = {part: 8 * total / by_kept for part, total in totals.items()}
    entropy = {part: of_part / by_kept for part, of_part in _entropies(messages).items()}
    return Traffic(
        messages=n,
        kept=sum(kept) / n,
        payload_bits_per_parameter=8 * payload / (n * size),
        frame_bits_per_parameter=8 * frames / (n * size),
        uplink_ratio=n * dense_bytes(sample.layout) / frames,
        **{part: total / n for part, total in totals.items()},
        reference_bytes=sum(len(exchange.reference) for exchange in rounds) / len(rounds),
        max_bytes=compressor.max_bytes(sample.layout),
        bits_per_kept=bits if sum(kept) else None,
        entropy_bits_per_kept=entropy if sum(kept) else None,
        position_bits_per_kept=sum(log2_choose(size, k) for k in kept) / by_kept if sum(kept) else None,
    )


def dense_bytes(layout: Layout) -> int:
    """The length of the frame that carries every coordinate as float32, by encoding one."""
    zeros = np.zeros(layout.size, dtype=np.float32)
    sections, _ = DenseOperator().encode(zeros, Context(SEED, 1, 0, layout))
    return len(encode_frame(Frame(Header(Kind.UPDATE, 1, DenseOperator.codec), sections)))


def log2_choose(n: int, k: int) -> float:
    """log₂ of the number of k-subsets of n."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _entropies(messages: Sequence[Message]) -> dict[str, float]:
    """Part → n · H₀ in bits of all its bytes together, H₀ being the entropy of how often each byte occurs."""
    counts = {part: np.zeros(256, dtype=np.int64) for part in ("index", "value", "side")}
    for message in messages:
        for section in message.sections:
            held = np.frombuffer(section.data, dtype=np.uint8)
            counts[SIDES.get(section.part, "side")] += np.bincount(held, minlength=256)
    return {part: _bits(of_part[of_part > 0].astype(np.float64)) for part, of_part in counts.items()}


def _bits(counts: F64) -> float:
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def decoded(compressor: Subject, message: Message) -> F32:
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


def errors(op: Operator, sample: Sample, rounds: Sequence[Exchange]) -> Errors:
    """What an operator loses of each vector, and on average of one."""
    kept_shares = []
    for x, exchange in zip(sample.updates, rounds, strict=True):
        for client, message in enumerate(exchange.messages):
            whole = _energy(x[client])
            if whole > 0:
                kept_shares.append(1 - _energy(x[client] - decoded(op, message).astype(np.float64)) / whole)
    shares = np.array(kept_shares) if kept_shares else np.ones(1)
    draws, bias, samples = _over_contexts(op, sample)
    x, layout = sample.updates[0, 0], sample.layout
    stated, whole = op.variance(x), _energy(x) or 1.0
    return Errors(
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
        stated_floor=op.floor(layout),
    )


def _over_contexts(op: Operator, sample: Sample) -> tuple[int, float, F64]:
    """(draws, |mean of C(x) − x|², |C(x) − x|² in each draw) of the sample's first vector."""
    x = sample.updates[0, 0]
    draws = max(FEWEST_CONTEXTS, min(CONTEXTS, MOST_COORDINATES // len(x)))
    total, samples = np.zeros(len(x)), np.empty(draws)
    for draw in range(draws):
        off = -x.astype(np.float64)
        op.encode(x, Context(SEED, draw + 1, 0, sample.layout))[1].add_to(off, 1.0)
        total += off
        samples[draw] = _energy(off)
    return draws, _energy(total / draws), samples


def _energy(x: F32 | F64) -> float:
    return float(np.square(x, dtype=np.float64).sum())


# --------------------------------------------------------------------------------------------------------------------- schemes


def delivery(scheme: Scheme, sample: Sample, rounds: Sequence[Exchange]) -> Delivery:
    """What a scheme delivers of all updates together, and what it still holds back."""
    given, made = np.zeros((2, sample.layout.size))
    held: list[list[float]] = []
    for x, exchange in zip(sample.updates, rounds, strict=True):
        given += x.mean(axis=0, dtype=np.float64)
        made += exchange.update
        for message in exchange.messages:
            decoded(scheme, message)
        withheld = [scheme.withheld(message.state, sample.layout) for message in exchange.messages]
        held.append([_energy(rest) for rest in withheld if rest is not None])
    one = _energy(sample.updates) / (sample.updates.shape[0] * sample.updates.shape[1]) or 1.0
    whole = _energy(given) or 1.0
    return Delivery(
        error=_energy(given - made) / whole,
        delivered=float(given @ made) / whole,
        withheld=sum(held[-1]) / len(held[-1]) / one if held[-1] else None,
        most_withheld=max(max(of_round) for of_round in held) / one if all(held) else None,
    )
