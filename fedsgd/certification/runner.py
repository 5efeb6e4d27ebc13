"""Making certificates."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedsgd._version import __version__
from fedsgd.certification import measure, throughput
from fedsgd.certification.certificate import (
    Certificate,
    CompressorLike,
    CompressorTraffic,
    LawResult,
    OperatorErrors,
    SchemeErrors,
    Throughput,
)
from fedsgd.certification.law_suite import applicable_laws
from fedsgd.certification.operator_laws import INPUT_LAWS
from fedsgd.certification.reproducibility import FreshInterpreter
from fedsgd.certification.resolve import FeedbackPolicy, resolve_compressor
from fedsgd.certification.samples import UpdateSample, sample_updates
from fedsgd.certification.simulate_rounds import (
    SEED,
    RoundFrames,
    SimulatedRound,
    hash_frames,
    require_equal_vectors,
    simulate_rounds,
)
from fedsgd.compression import COMPRESSORS, CodecContext, CompressionOperator, CompressionScheme, OperatorScheme
from fedsgd.config.user_errors import find_user_class
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.global_generators import isolate_generators

VECTORS_STATEMENT = "It encodes, decodes and is measured on the certificate's own vectors, where the laws of every vector hold."
DECODING_STATEMENT = (
    "A fresh interpreter decodes the frames, in another order and from their bytes alone, to what was encoded, and aggregates "
    "them to the same updates."
)
REPRODUCIBLE_STATEMENT = (
    "An equal compressor in a fresh interpreter makes the same bytes of the same vectors. It has nothing of the server but the "
    "reference frames."
)

BASE_TIMEOUT, TIMEOUT_FACTOR = 60.0, 10.0
"""Limit for decoding in the fresh interpreter: GRACE_SECONDS, and PATIENCE times the seconds of the same rounds here."""
_DecodeFunction = Callable[[Sequence[RoundFrames], ParameterLayout, float], Iterator[NDArray[Any]]]


def certify(
    compressor: str | CompressorLike,
    settings: Mapping[str, Any] | None = None,
    *,
    error_feedback: FeedbackPolicy = "none",
    data: str = "real",
    size: int | None = None,
) -> Certificate:
    """Put a compressor through all laws of its kind, and measure its bytes, errors and times.

    compressor: one of your own, a registered name, or `my_package.my_module:MyCompressor`; settings: for a name, its fields by
    dotted key. data: "real" (updates of a small federation, trained here in seconds), "gaussian" or "laplace" (independent
    coordinates, `size` of them). An exception out of the compressor is a law that failed; ScenarioError is for what is asked.
    """
    subject = resolve_compressor(compressor, settings or {}, error_feedback)
    return _make_certificates([subject], sample_updates(data, size), with_laws=True)[0]


def certify_all(*, data: str = "real", size: int | None = None, laws: bool = True) -> list[Certificate]:
    """A certificate of every registered compressor at its defaults, by ascending bits per parameter.

    data, size: as for `certify`; laws: try the law suite, which is most of the time it takes.
    """
    made = _make_certificates([resolve_compressor(name, {}, "none") for name in COMPRESSORS], sample_updates(data, size), laws)
    return sorted(made, key=lambda c: float("inf") if c.traffic is None else c.traffic.frame_bits_per_parameter)


def _make_certificates(compressors: Sequence[CompressorLike], sample: UpdateSample, with_laws: bool) -> list[Certificate]:
    pool = throughput.build_pool(sample)
    with isolate_generators(0), FreshInterpreter(compressors) as fresh:
        tried = [_run_laws(subject, sample, pool, partial(fresh.decode, i), with_laws) for i, subject in enumerate(compressors)]
        references = [figures.references for _, figures in tried]
        digests = fresh.compute_digests(sample.updates, sample.layout, references)
    return [
        _make_certificate(subject, sample, *of, *there) for subject, of, there in zip(compressors, tried, digests, strict=True)
    ]


def _run_laws(
    compressor: CompressorLike, sample: UpdateSample, pool: F32, decode: _DecodeFunction, with_laws: bool
) -> tuple[list[LawResult], _Measurements]:
    """Return the verdicts of all laws but the last, and the figures. decode: decodes frames in the fresh interpreter."""
    verdicts = [
        _run_law(law.name, law.statement, law.check, compressor) for law in (applicable_laws(compressor) if with_laws else ())
    ]
    figures = _Measurements()
    verdicts.append(_run_law("vectors", VECTORS_STATEMENT, partial(figures.measure_all, compressor, sample, pool), compressor))
    verdicts.append(_check_decoding(compressor, figures, decode, sample.layout))
    figures.rounds = []
    return verdicts, figures


def _make_certificate(
    compressor: CompressorLike,
    sample: UpdateSample,
    law_results: Sequence[LawResult],
    measurements: _Measurements,
    fresh_sha256: str | None,
    reason: str,
) -> Certificate:
    return Certificate(
        fedsgd_version=__version__,
        compressor=compressor,
        kind="scheme" if isinstance(compressor, CompressionScheme) else _read_kind(compressor),
        vectors=sample.summary,
        laws=(*law_results, _check_reproducible(compressor, measurements.sha256, fresh_sha256, reason)),
        frames_sha256=measurements.sha256,
        fresh_frames_sha256=fresh_sha256,
        traffic=measurements.traffic,
        errors=measurements.errors,
        delivery=measurements.delivery,
        throughput=measurements.throughput,
    )


class _Measurements:
    """What was measured before something went wrong, or all of it."""

    def __init__(self) -> None:
        self.rounds: list[SimulatedRound] = []
        self.references: list[bytes] = []
        self.seconds = 0.0
        self.sha256: str | None = None
        self.traffic: CompressorTraffic | None = None
        self.errors: OperatorErrors | None = None
        self.delivery: SchemeErrors | None = None
        self.throughput: Throughput | None = None

    def measure_all(self, compressor: CompressorLike, sample: UpdateSample, pool: F32) -> None:
        """Measure; whatever the compressor raises is let through."""
        begun = time.perf_counter()
        self.rounds = rounds = [*simulate_rounds(compressor, sample.updates, sample.layout)]
        self.seconds = time.perf_counter() - begun
        self.references = [exchange.reference_frame for exchange in rounds]
        self.sha256 = hash_frames(exchange.frames for exchange in rounds)
        self.traffic = measure.measure_traffic(compressor, sample, rounds)
        if isinstance(compressor, CompressionOperator):
            self.errors = measure.measure_operator_errors(compressor, sample, rounds)
        else:
            self.delivery = measure.measure_scheme_errors(compressor, sample, rounds)
        self.throughput = throughput.measure_throughput(compressor, sample, pool)
        if isinstance(compressor, CompressionOperator):
            for client, x in enumerate(sample.updates[0]):
                for law in INPUT_LAWS:
                    law(compressor, x.copy(), CodecContext(SEED, 1, client, sample.layout))


def _run_law(law: str, statement: str, check: Callable[[], None], compressor: CompressorLike) -> LawResult:
    """The verdict of one law. Whatever the compressor raises is a verdict too."""
    try:
        check()
    except LawError as error:
        return LawResult(
            law, statement, False, _remove_phrases(str(error), (f"{law}: ", f"{compressor}: ", *_operator_prefixes(compressor)))
        )
    except Exception as error:
        return LawResult(law, statement, False, _describe_exception(error))
    return LawResult(law, statement, True)


def _remove_phrases(message: str, phrases: Iterable[str]) -> str:
    """The message without what stands beside it anyway."""
    for word in phrases:
        message = message.replace(word, "", 1)
    return message


def _operator_prefixes(compressor: CompressorLike) -> list[str]:
    return [f"{compressor.op}: "] if isinstance(compressor, OperatorScheme) else []


def _describe_exception(error: Exception) -> str:
    """An exception on one line: what it is, and the place in the code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())


def _read_kind(op: CompressionOperator) -> str:
    """The kind that an operator says it is."""
    try:
        return str(op.kind)
    except Exception as error:
        return _describe_exception(error)


def _check_decoding(
    compressor: CompressorLike, measurements: _Measurements, decode: _DecodeFunction, layout: ParameterLayout
) -> LawResult:
    law, rounds = "decodes_from_bytes", measurements.rounds
    if why := _reason_not_to_compare(compressor, rounds):
        return LawResult(law, DECODING_STATEMENT, None, why)

    def check() -> None:
        decoded = decode([exchange.frames for exchange in rounds], layout, BASE_TIMEOUT + TIMEOUT_FACTOR * measurements.seconds)
        require_equal_vectors(law, compressor, rounds, decoded)

    return _run_law(law, DECODING_STATEMENT, check, compressor)


def _check_reproducible(
    compressor: CompressorLike, local_sha256: str | None, fresh_sha256: str | None, reason: str
) -> LawResult:
    not_tried = _reason_not_to_compare(compressor, local_sha256)
    if not_tried or local_sha256 is None:
        return LawResult("reproducible", REPRODUCIBLE_STATEMENT, None, not_tried)
    if fresh_sha256 is None:
        return LawResult("reproducible", REPRODUCIBLE_STATEMENT, False, reason)
    detail = (
        ""
        if local_sha256 == fresh_sha256
        else f"SHA-256 of the frames {local_sha256[:16]}... here, {fresh_sha256[:16]}... there"
    )
    return LawResult("reproducible", REPRODUCIBLE_STATEMENT, local_sha256 == fresh_sha256, detail)


def _reason_not_to_compare(compressor: CompressorLike, frames: object) -> str:
    """Return the reason why a fresh interpreter cannot be compared with, "" if there is none."""
    if (find_user_class(compressor) or "").startswith("__main__:"):
        return "its class is defined in __main__, which a fresh interpreter does not have; put it into a module"
    return "" if frames else "there are no frames to compare with"
