"""The laws of `base.py` as checks that anyone's compressor can be put through. Each raises LawError with its figures.

INPUT_LAWS hold for every finite vector: a test draws the vectors. POPULATION_LAWS hold on average over vectors or over the
shared randomness: they draw their own, always the same, so a verdict never changes from run to run. Statistical laws
reject at SIGMAS standard errors. `fedsgd.compress.suite` puts a compressor through all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.compress.base import Context, Operator, OperatorScheme, Scheme, State, Update
from fedsgd.errors import LawError
from fedsgd.layout import Layout
from fedsgd.rng import stream
from fedsgd.wire import Frame, Header, Kind, Part, Sections, decode_frame, encode_frame

SIGMAS = 6.0
ROUNDING = 1e-6
"""Relative error that float32 arithmetic may add to an energy."""
TAG_BYTES = 2
"""What a section may spend on saying which form it is in."""
SMALL = 64
DRAWS = 1500
MIN_DENSITY = 0.5
"""A section may shrink under zlib to this share of itself, not further: past that it holds bits that say nothing."""


def _require(condition: bool, law: str, subject: object, figures: str) -> None:
    if not condition:
        raise LawError(f"{law}: {subject}: {figures}")


def _over_the_wire(op: Operator, sections: Sections, ctx: Context) -> Update:
    """What a receiver decodes that has nothing but the frame and the context."""
    frame = encode_frame(Frame(Header(Kind.UPDATE, ctx.round, op.codec, client=ctx.client), sections))
    return op.decode(decode_frame(frame).sections, ctx)


def _same(a: F32, b: F32) -> bool:
    return a.shape == b.shape and bool((a == b).all())


# ---------------------------------------------------------------------------------------------- laws of every finite vector


def round_trip(op: Operator, x: F32, ctx: Context) -> None:
    """decode gives what encode said it would: the same size, finite, equal in every coordinate; x is left alone."""
    before = x.copy()
    sections, update = op.encode(x, ctx)
    _require(_same(x, before), "round_trip", op, "encode wrote to its input")
    decoded = _over_the_wire(op, sections, ctx)
    dense = decoded.to_dense()
    _require(dense.shape == x.shape, "round_trip", op, f"{dense.shape} coordinates decoded, expected {x.shape}")
    _require(bool(np.isfinite(dense).all()), "round_trip", op, "decoded to a value that is not finite")
    wrong = np.flatnonzero(dense != update.to_dense())
    _require(not len(wrong), "round_trip", op, f"decoded differs from what encode returned at {wrong[:3]} and so on")


def kept(op: Operator, x: F32, ctx: Context) -> None:
    """The number of coordinates is the same in the sections, in what encode returns and in what decode returns."""
    sections, update = op.encode(x, ctx)
    counts = op.kept(sections, ctx), update.kept, _over_the_wire(op, sections, ctx).kept
    _require(len(set(counts)) == 1, "kept", op, f"sections, encode, decode say {counts}")


def repeatable(op: Operator, x: F32, ctx: Context) -> None:
    """Equal operators turn equal inputs into equal bytes."""
    first, second = op.encode(x, ctx)[0], replace(op).encode(x.copy(), ctx)[0]
    _require([bytes(s.data) for s in first] == [bytes(s.data) for s in second], "repeatable", op, "bytes differ")


def weight(op: Operator, x: F32, ctx: Context) -> None:
    """The payload weighs at most max_bytes."""
    n_bytes = sum(len(s.data) for s in op.encode(x, ctx)[0])
    limit = op.max_bytes(ctx.layout)
    _require(n_bytes <= limit, "weight", op, f"{n_bytes} bytes, max_bytes says {limit}")


def contraction(op: Operator, x: F32, ctx: Context) -> None:
    """A contractive operator: |x − C(x)|² ≤ (1 − δ)|x|² + A if it is deterministic, and never more than |x|²."""
    if op.kind != "contractive":
        return
    delta = op.contraction(ctx.layout)
    _require(0 < delta <= 1, "contraction", op, f"δ is {delta}, expected (0, 1]")
    energy = float(np.square(x, dtype=np.float64).sum())
    error = _error(op, x, ctx)
    limit = min(energy, (1 - delta) * energy + op.floor(ctx.layout)) if op.deterministic else energy
    _require(error <= limit + ROUNDING * energy, "contraction", op, f"|x − C(x)|² = {error:.6g}, at most {limit:.6g} allowed")


def _error(op: Operator, x: F32, ctx: Context) -> float:
    decoded = op.encode(x, ctx)[1].to_dense()
    return float(np.square(x.astype(np.float64) - decoded).sum())


INPUT_LAWS: Sequence[Callable[[Operator, F32, Context], None]] = (round_trip, kept, repeatable, weight, contraction)


# --------------------------------------------------------------------------------------------------------- laws of a population


def layout_of(size: int) -> Layout:
    """A layout of so many parameters: from 8 on a matrix, a vector and a scalar, as models have them."""
    if size < 8:
        return Layout.flat(size)
    columns = size // 4
    return Layout(("matrix", "vector", "scalar"), ((2, columns), (size - 2 * columns - 1,), ()))


def _contexts(purpose: str, size: int, draws: int) -> Iterator[tuple[Context, np.random.Generator]]:
    layout = layout_of(size)
    for draw in range(draws):
        yield Context(0, draw + 1, draw % 7, layout), stream(0, f"laws/{purpose}", draw)


def _gaussian(rng: np.random.Generator, size: int) -> F32:
    return rng.standard_normal(size, dtype=np.float32)


def _scores(samples: F64, scale: float) -> F64:
    """Standard scores of the column means of samples [draws, n] against zero. What is rounding, on this scale, is none.

    The spread counts one draw more, as far off as the worst of all: a rare and large error may not have come up where it could.
    """
    spread = np.sqrt(np.square(samples).sum(axis=0) + np.square(samples).max())
    scores: F64 = samples.sum(axis=0) / (spread + np.sqrt(len(samples)) * ROUNDING * scale)
    return scores


def zero(op: Operator) -> None:
    """The zero vector goes to the zero vector, without a division by its norm."""
    for size in (1, 2, SMALL, 1000):
        ctx = Context(0, 1, 0, layout_of(size))
        with np.errstate(all="raise"):
            try:
                dense = _over_the_wire(op, op.encode(np.zeros(size, dtype=np.float32), ctx)[0], ctx).to_dense()
            except (ArithmeticError, ValueError) as error:
                raise LawError(f"zero: {op}: {type(error).__name__}: {error}") from error
        _require(_same(dense, np.zeros(size, dtype=np.float32)), "zero", op, f"decoded to {dense[:4]}")


def ends(op: Operator) -> None:
    """All input laws hold where only the first, or only the last, coordinate is not zero."""
    for size in (1, 2, SMALL, 1000, 4097):
        for position in (0, size - 1):
            x = np.zeros(size, dtype=np.float32)
            x[position] = -1.5
            for law in INPUT_LAWS:
                law(op, x, Context(0, 1, 0, layout_of(size)))


def fair(op: Operator) -> None:
    """On vectors with exchangeable coordinates every position keeps the same share of its energy.

    All positions have the same spread, so one is taken for all: where few draws hit a position its own would be a poor guess.
    """
    if not op.even:
        return
    rows = []
    for ctx, rng in _contexts("fair", SMALL, DRAWS):
        x = _gaussian(rng, SMALL).astype(np.float64)
        decoded = op.encode(x.astype(np.float32), ctx)[1].to_dense()
        rows.append((decoded * x, x * x))
    sent, energy = (np.array(part) for part in zip(*rows, strict=True))
    off = sent - energy * (sent.sum() / energy.sum())
    scores = off.sum(axis=0) / (np.sqrt(np.square(off).sum(axis=0).mean()) + 1e-30)
    worst = int(np.abs(scores).argmax())
    share, mean = sent[:, worst].sum() / energy[:, worst].sum(), sent.sum() / energy.sum()
    figures = f"position {worst} of {SMALL} keeps {share:.3f} of its energy, the mean is {mean:.3f} ({scores[worst]:+.1f} σ)"
    _require(abs(scores[worst]) < SIGMAS, "fair", op, figures)


def mean(op: Operator) -> None:
    """An unbiased operator: E[C(x)] = x. A contractive one that is random: E|x − C(x)|² ≤ (1 − δ)|x|² + A."""
    x = _gaussian(stream(0, "laws/mean"), SMALL)
    if op.kind == "unbiased":
        errors = np.array([op.encode(x, ctx)[1].to_dense() - x for ctx, _ in _contexts("mean", SMALL, DRAWS)], dtype=np.float64)
        norm = float(np.linalg.norm(x.astype(np.float64)))
        scores = np.append(_scores(errors, norm), _scores((errors @ x.astype(np.float64))[:, None], norm**2))
        worst = float(np.abs(scores).max())
        _require(worst < SIGMAS, "mean", op, f"E[C(x)] is off x by {worst:.1f} standard errors")
    elif op.kind == "contractive" and not op.deterministic:
        layout = layout_of(SMALL)
        limit = (1 - op.contraction(layout)) * float(np.square(x, dtype=np.float64).sum()) + op.floor(layout)
        excess = np.array([_error(op, x, ctx) - limit for ctx, _ in _contexts("mean", SMALL, DRAWS)])
        score = float(excess.mean() / (excess.std() / np.sqrt(DRAWS) + 1e-12))
        figures = f"E|x − C(x)|² exceeds (1 − δ)|x|² by {excess.mean():.4g} ({score:.1f} σ)"
        _require(score < SIGMAS or excess.mean() <= ROUNDING * limit, "mean", op, figures)


def variance(op: Operator) -> None:
    """An unbiased operator that states its variance has it: E|C(x) − x|² = `variance(x)`, neither more nor less."""
    x = _gaussian(stream(0, "laws/variance"), SMALL)
    stated = op.variance(x)
    if op.kind != "unbiased" or stated is None:
        return
    off = np.array([_error(op, x, ctx) - stated for ctx, _ in _contexts("variance", SMALL, DRAWS)])
    score = float(off.mean() / (off.std() / np.sqrt(DRAWS) + 1e-12))
    figures = f"E|C(x) − x|² is {off.mean() + stated:.6g}, stated is {stated:.6g} ({score:+.1f} σ)"
    _require(abs(score) < SIGMAS or abs(off.mean()) <= ROUNDING * stated, "variance", op, figures)


def no_slack(op: Operator) -> None:
    """Sections hold no bits that say nothing: zlib does not make less than half of them on Gaussian vectors.

    A MANIFEST is left out: it says what belongs to whom, as a header does, and repeats from frame to frame.
    """
    streams: dict[Part, list[bytes]] = {}
    for ctx, rng in _contexts("no_slack", 4096, 48):
        for section in op.encode(_gaussian(rng, 4096), ctx)[0]:
            streams.setdefault(section.part, []).append(bytes(section.data))
    streams.pop(Part.MANIFEST, None)
    for part, pieces in streams.items():
        raw = b"".join(pieces)
        squeezed = len(zlib.compress(raw, 9))
        figures = f"zlib makes {squeezed} bytes of the {len(raw)} in its {part.name} sections"
        _require(squeezed >= MIN_DENSITY * len(raw) - TAG_BYTES * len(pieces), "no_slack", op, figures)


POPULATION_LAWS: Sequence[Callable[[Operator], None]] = (zero, ends, fair, mean, variance, no_slack)


# ------------------------------------------------------------------------------------------------------------ laws of schemes


def telescoping(scheme: Scheme, updates: Sequence[F32], lost: Sequence[bool]) -> None:
    """Over updates x [P], Σ x = Σ delivered + withheld, whichever replies were lost."""
    layout = layout_of(len(updates[0]))
    given, delivered = np.zeros((2, layout.size))
    state: State = {}
    for i, (x, is_lost) in enumerate(zip(updates, lost, strict=True)):
        ctx = Context(0, i + 1, 0, layout)
        for array in (x, *state.values()):
            array.flags.writeable = False
        try:
            sent = scheme.send(x, state, ctx)
        except ValueError as error:
            raise LawError(f"telescoping: {scheme}: wrote to its update or its state: {error}") from error
        given += x
        if is_lost:
            state = sent.state_if_lost
        else:
            state = sent.state
            scheme.decode(sent.sections, ctx).add_to(delivered, 1.0)
    withheld = scheme.withheld(state, layout)
    if withheld is None:
        return
    scale = ROUNDING * len(updates) * (1 + max(float(np.abs(x).sum()) for x in updates))
    off = float(np.abs(given - delivered - withheld).max())
    _require(off <= scale, "telescoping", scheme, f"{off:.4g} of a coordinate was neither delivered nor withheld")


def bounded(scheme: Scheme) -> None:
    """What is withheld stays bounded: at most 4(1 − δ)/δ² of the largest update's energy, and 2A/δ, for a contraction
    (Karimireddy et al. 2019, lemma 3), and never more than all that was ever given."""
    steps, layout = 100, layout_of(SMALL)
    delta, floor = 0.0, 0.0
    if isinstance(scheme, OperatorScheme):
        delta, floor = scheme.op.contraction(layout), scheme.op.floor(layout)
    limit = min(float(steps**2), 4 * (1 - delta) / delta**2 if delta > 0 else np.inf)
    least = 2 * floor / delta if delta > 0 else 0.0
    state: State = {}
    largest = 0.0
    for ctx, rng in _contexts("bounded", SMALL, steps):
        x = _gaussian(rng, SMALL)
        largest = max(largest, float(np.square(x, dtype=np.float64).sum()))
        with np.errstate(over="ignore", invalid="ignore"):
            state = scheme.send(x, state, ctx).state
            withheld = scheme.withheld(state, layout)
            energy = 0.0 if withheld is None else float(np.square(withheld, dtype=np.float64).sum())
        allowed = limit * largest + least
        figures = f"after {ctx.round} rounds {energy:.4g} is withheld, at most {allowed:.4g} allowed"
        _require(energy <= allowed * (1 + ROUNDING) + ROUNDING, "bounded", scheme, figures)


# ------------------------------------------------------------------------------------------------------- laws on drawn vectors


def on_vectors(law: Callable[[Operator, F32, Context], None], op: Operator) -> None:
    """An input law on Gaussian, heavy-tailed, tied and nearly empty vectors."""
    for ctx, rng in _contexts("check", 1000, 8):
        x = _gaussian(rng, 1000)
        for vector in (x, x**7, np.sign(x), np.where(np.abs(x) > 3, x, np.float32(0))):
            law(op, vector, ctx)


def on_updates(scheme: Scheme) -> None:
    """The telescoping law on Gaussian updates, with every third reply lost."""
    updates = [_gaussian(rng, SMALL) for _, rng in _contexts("telescoping", SMALL, 20)]
    telescoping(scheme, updates, [i % 3 == 1 for i in range(20)])
