"""Making certificates."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedsgd import __version__
from fedsgd.arrays import F32
from fedsgd.certificate import clock, measure
from fedsgd.certificate.base import Certificate, Delivery, Errors, Subject, Throughput, Traffic, Verdict
from fedsgd.certificate.fresh import FreshInterpreter
from fedsgd.certificate.sample import Sample, draw
from fedsgd.certificate.subject import Feedback, resolve
from fedsgd.compress import COMPRESSORS, Context, Operator, OperatorScheme, Scheme
from fedsgd.compress.exchange import SEED, Exchange, Frames, digest, exchanges, require_decoded
from fedsgd.compress.laws import INPUT_LAWS
from fedsgd.compress.suite import laws_of
from fedsgd.errors import LawError
from fedsgd.generators import seeded_generators
from fedsgd.layout import Layout
from fedsgd.user_code import user_class

ON_VECTORS = "It encodes, decodes and is measured on the certificate's own vectors, where the laws of every vector hold."
FROM_BYTES = (
    "A fresh interpreter decodes the frames, in another order and from their bytes alone, to what was encoded, and aggregates "
    "them to the same updates."
)
REPRODUCIBLE = (
    "An equal compressor in a fresh interpreter makes the same bytes of the same vectors. It has nothing of the server but the "
    "reference frames."
)

GRACE_SECONDS, PATIENCE = 60.0, 10.0
"""Limit for decoding in the fresh interpreter: GRACE_SECONDS, and PATIENCE times the seconds of the same rounds here."""
_Decode = Callable[[Sequence[Frames], Layout, float], Iterator[NDArray[Any]]]


def certify(
    compressor: str | Subject,
    settings: Mapping[str, Any] | None = None,
    *,
    error_feedback: Feedback = "none",
    data: str = "real",
    size: int | None = None,
) -> Certificate:
    """Put a compressor through all laws of its kind, and measure its bytes, errors and times.

    compressor: one of your own, a registered name, or `my_package.my_module:MyCompressor`; settings: for a name, its fields by
    dotted key. data: "real" (updates of a small federation, trained here in seconds), "gaussian" or "laplace" (independent
    coordinates, `size` of them). An exception out of the compressor is a law that failed; ScenarioError is for what is asked.
    """
    subject = resolve(compressor, settings or {}, error_feedback)
    return _certificates([subject], draw(data, size), laws=True)[0]


def certify_all(*, data: str = "real", size: int | None = None, laws: bool = True) -> list[Certificate]:
    """A certificate of every registered compressor at its defaults, by ascending bits per parameter.

    data, size: as for `certify`; laws: try the law suite, which is most of the time it takes.
    """
    made = _certificates([resolve(name, {}, "none") for name in COMPRESSORS], draw(data, size), laws)
    return sorted(made, key=lambda c: float("inf") if c.traffic is None else c.traffic.frame_bits_per_parameter)


def _certificates(subjects: Sequence[Subject], sample: Sample, laws: bool) -> list[Certificate]:
    pool = clock.pool_of(sample)
    with seeded_generators(0), FreshInterpreter(subjects) as fresh:
        tried = [_try(subject, sample, pool, partial(fresh.decode, i), laws) for i, subject in enumerate(subjects)]
        references = [figures.references for _, figures in tried]
        digests = fresh.digests(sample.updates, sample.layout, references)
    return [_certificate(subject, sample, *of, *there) for subject, of, there in zip(subjects, tried, digests, strict=True)]


def _try(subject: Subject, sample: Sample, pool: F32, decode: _Decode, laws: bool) -> tuple[list[Verdict], _Figures]:
    """Return the verdicts of all laws but the last, and the figures. decode: decodes frames in the fresh interpreter."""
    verdicts = [_tried(law.name, law.statement, law.check, subject) for law in (laws_of(subject) if laws else ())]
    figures = _Figures()
    verdicts.append(_tried("vectors", ON_VECTORS, partial(figures.take, subject, sample, pool), subject))
    verdicts.append(_decodes_from_bytes(subject, figures, decode, sample.layout))
    figures.rounds = []
    return verdicts, figures


def _certificate(
    subject: Subject, sample: Sample, verdicts: Sequence[Verdict], figures: _Figures, fresh: str | None, why: str
) -> Certificate:
    return Certificate(
        fedsgd=__version__,
        compressor=subject,
        kind="scheme" if isinstance(subject, Scheme) else _kind(subject),
        vectors=sample.vectors,
        laws=(*verdicts, _reproducible(subject, figures.sha256, fresh, why)),
        frames_sha256=figures.sha256,
        fresh_frames_sha256=fresh,
        traffic=figures.traffic,
        errors=figures.errors,
        delivery=figures.delivery,
        throughput=figures.throughput,
    )


class _Figures:
    """What was measured before something went wrong, or all of it."""

    def __init__(self) -> None:
        self.rounds: list[Exchange] = []
        self.references: list[bytes] = []
        self.seconds = 0.0
        self.sha256: str | None = None
        self.traffic: Traffic | None = None
        self.errors: Errors | None = None
        self.delivery: Delivery | None = None
        self.throughput: Throughput | None = None

    def take(self, subject: Subject, sample: Sample, pool: F32) -> None:
        """Measure; whatever the compressor raises is let through."""
        begun = time.perf_counter()
        self.rounds = rounds = [*exchanges(subject, sample.updates, sample.layout)]
        self.seconds = time.perf_counter() - begun
        self.references = [exchange.reference for exchange in rounds]
        self.sha256 = digest(exchange.frames for exchange in rounds)
        self.traffic = measure.traffic(subject, sample, rounds)
        if isinstance(subject, Operator):
            self.errors = measure.errors(subject, sample, rounds)
        else:
            self.delivery = measure.delivery(subject, sample, rounds)
        self.throughput = clock.throughput(subject, sample, pool)
        if isinstance(subject, Operator):
            for client, x in enumerate(sample.updates[0]):
                for law in INPUT_LAWS:
                    law(subject, x.copy(), Context(SEED, 1, client, sample.layout))


def _tried(law: str, statement: str, check: Callable[[], None], subject: Subject) -> Verdict:
    """The verdict of one law. Whatever the compressor raises is a verdict too."""
    try:
        check()
    except LawError as error:
        return Verdict(law, statement, False, _without(str(error), (f"{law}: ", f"{subject}: ", *_inner(subject))))
    except Exception as error:
        return Verdict(law, statement, False, _named(error))
    return Verdict(law, statement, True)


def _without(message: str, words: Iterable[str]) -> str:
    """The message without what stands beside it anyway."""
    for word in words:
        message = message.replace(word, "", 1)
    return message


def _inner(subject: Subject) -> list[str]:
    return [f"{subject.op}: "] if isinstance(subject, OperatorScheme) else []


def _named(error: Exception) -> str:
    """An exception on one line: what it is, and the place in the code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())


def _kind(op: Operator) -> str:
    """The kind that an operator says it is."""
    try:
        return str(op.kind)
    except Exception as error:
        return _named(error)


def _decodes_from_bytes(subject: Subject, figures: _Figures, decode: _Decode, layout: Layout) -> Verdict:
    law, rounds = "decodes_from_bytes", figures.rounds
    if why := _not_tried(subject, rounds):
        return Verdict(law, FROM_BYTES, None, why)

    def check() -> None:
        decoded = decode([exchange.frames for exchange in rounds], layout, GRACE_SECONDS + PATIENCE * figures.seconds)
        require_decoded(law, subject, rounds, decoded)

    return _tried(law, FROM_BYTES, check, subject)


def _reproducible(subject: Subject, ours: str | None, theirs: str | None, why: str) -> Verdict:
    not_tried = _not_tried(subject, ours)
    if not_tried or ours is None:
        return Verdict("reproducible", REPRODUCIBLE, None, not_tried)
    if theirs is None:
        return Verdict("reproducible", REPRODUCIBLE, False, why)
    detail = "" if ours == theirs else f"SHA-256 of the frames {ours[:16]}... here, {theirs[:16]}... there"
    return Verdict("reproducible", REPRODUCIBLE, ours == theirs, detail)


def _not_tried(subject: Subject, frames: object) -> str:
    """Return the reason why a fresh interpreter cannot be compared with, "" if there is none."""
    if (user_class(subject) or "").startswith("__main__:"):
        return "its class is defined in __main__, which a fresh interpreter does not have; put it into a module"
    return "" if frames else "there are no frames to compare with"
