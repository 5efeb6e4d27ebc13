"""Functions that certify compressors."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fedsgd.certification.resolve import resolve_compressor
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
from fedsgd.compression.run_config import FeedbackPolicy
from fedsgd.config.user_errors import find_user_class
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.global_generators import isolate_generators

VECTORS_STATEMENT = "Encoding, decoding and measuring the vectors raises no error; an operator's input laws hold in round 1."
DECODING_STATEMENT = "From the frames' bytes alone, a fresh interpreter decodes and aggregates equal vectors, in another order."
REPRODUCIBLE_STATEMENT = (
    "An equal compressor in a fresh interpreter, with the server's reference frames only, encodes equal vectors as equal bytes."
)

BASE_TIMEOUT, TIMEOUT_FACTOR = 60.0, 10.0
"""Time limit for decoding in the fresh interpreter, in seconds: BASE_TIMEOUT + TIMEOUT_FACTOR · time of the rounds here."""
_DecodeFunction = Callable[[Sequence[RoundFrames], ParameterLayout, float], Iterator[NDArray[Any]]]


def certify(
    compressor: str | CompressorLike,
    settings: Mapping[str, Any] | None = None,
    *,
    error_feedback: FeedbackPolicy = "none",
    data: str = "real",
    size: int | None = None,
) -> Certificate:
    """Check all laws of a compressor, and measure its bytes, errors and times.

    Args:
        compressor: a compressor, a registered name, or `my_package.my_module:MyCompressor`.
        settings: for a name, values of its fields by dotted key.
        error_feedback: policy for the residual of an absent client ("persist", "decay" or "reset"), or "none".
        data: "real" (updates of a small federation that is trained in seconds), or random coordinates: "gaussian" or "laplace".
        size: P of random vectors, by default 200,000; must be None for real updates.

    Returns:
        The certificate. An exception of the compressor is a broken law in it.

    Raises:
        ScenarioError: an argument is not valid.

    >>> certificate = certify("sign", data="gaussian", size=1000)
    >>> certificate.passed, certificate.traffic.value
    (True, 125.0)
    """
    component = resolve_compressor(compressor, settings or {}, error_feedback)
    return _make_certificates([component], sample_updates(data, size), with_laws=True)[0]


def certify_all(*, data: str = "real", size: int | None = None, laws: bool = True) -> list[Certificate]:
    """Certify every registered compressor at its defaults.

    Args:
        data: as for `certify`.
        size: as for `certify`.
        laws: True to check the law suite, which takes most of the time; False for three laws of the measured vectors only.

    Returns:
        Certificates by ascending bits per parameter.
    """
    compressors = [resolve_compressor(name, {}, "none") for name in COMPRESSORS]
    certificates = _make_certificates(compressors, sample_updates(data, size), laws)
    return sorted(certificates, key=lambda c: float("inf") if c.traffic is None else c.traffic.frame_bits_per_parameter)


def _make_certificates(compressors: Sequence[CompressorLike], sample: UpdateSample, with_laws: bool) -> list[Certificate]:
    pool = throughput.build_pool(sample)
    with isolate_generators(0), FreshInterpreter(compressors) as interpreter:
        results = [
            _run_laws(compressor, sample, pool, partial(interpreter.decode, i), with_laws)
            for i, compressor in enumerate(compressors)
        ]
        references = [measurements.references for _, measurements in results]
        digests = interpreter.compute_digests(sample.updates, sample.layout, references)
    return [
        _make_certificate(compressor, sample, *result, *digest)
        for compressor, result, digest in zip(compressors, results, digests, strict=True)
    ]


def _run_laws(
    compressor: CompressorLike, sample: UpdateSample, pool: F32, decode: _DecodeFunction, with_laws: bool
) -> tuple[list[LawResult], _Measurements]:
    """Return the results of all laws but "reproducible", and the measurements. `decode` uses the fresh interpreter."""
    laws = applicable_laws(compressor) if with_laws else ()
    results = [_run_law(law.name, law.statement, law.check, compressor) for law in laws]
    measurements = _Measurements()
    measure_all = partial(measurements.measure_all, compressor, sample, pool)
    results.append(_run_law("vectors", VECTORS_STATEMENT, measure_all, compressor))
    results.append(_check_decoding(compressor, measurements, decode, sample.layout))
    measurements.rounds = []
    return results, measurements


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
    """Measurements of a compressor. If one raises an exception, the later measurements are missing."""

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
        """Measure bytes, errors and times, and check the input laws. Exceptions of the compressor are not caught."""
        start = time.perf_counter()
        self.rounds = rounds = [*simulate_rounds(compressor, sample.updates, sample.layout)]
        self.seconds = time.perf_counter() - start
        self.references = [simulated.reference_frame for simulated in rounds]
        self.sha256 = hash_frames(simulated.frames for simulated in rounds)
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
    """Return the result of one law. Any exception of the compressor breaks the law."""
    try:
        check()
    except LawError as error:
        message = str(error)
        operators = [compressor.op] if isinstance(compressor, OperatorScheme) else []
        for name in (law, compressor, *operators):  # the certificate shows these names in other columns
            message = message.replace(f"{name}: ", "", 1)
        return LawResult(law, statement, False, message)
    except Exception as error:
        return LawResult(law, statement, False, _describe_exception(error))
    return LawResult(law, statement, True)


def _describe_exception(error: Exception) -> str:
    """Return class, message and source line of an exception, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    location = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{location}".split())


def _read_kind(op: CompressionOperator) -> str:
    """Return an operator's kind, or a description of the exception that reading the kind raises."""
    try:
        return str(op.kind)
    except Exception as error:
        return _describe_exception(error)


def _check_decoding(
    compressor: CompressorLike, measurements: _Measurements, decode: _DecodeFunction, layout: ParameterLayout
) -> LawResult:
    law, rounds = "decodes_from_bytes", measurements.rounds
    if reason := _reason_not_to_compare(compressor, rounds):
        return LawResult(law, DECODING_STATEMENT, None, reason)

    def check() -> None:
        timeout = BASE_TIMEOUT + TIMEOUT_FACTOR * measurements.seconds
        vectors = decode([simulated.frames for simulated in rounds], layout, timeout)
        require_equal_vectors(law, compressor, rounds, vectors)

    return _run_law(law, DECODING_STATEMENT, check, compressor)


def _check_reproducible(
    compressor: CompressorLike, local_sha256: str | None, fresh_sha256: str | None, reason: str
) -> LawResult:
    obstacle = _reason_not_to_compare(compressor, local_sha256)
    if obstacle or local_sha256 is None:
        return LawResult("reproducible", REPRODUCIBLE_STATEMENT, None, obstacle)
    if fresh_sha256 is None:
        return LawResult("reproducible", REPRODUCIBLE_STATEMENT, False, reason)
    is_equal = local_sha256 == fresh_sha256
    figures = f"SHA-256 of the frames: {local_sha256[:16]}... here, {fresh_sha256[:16]}... in the fresh interpreter"
    return LawResult("reproducible", REPRODUCIBLE_STATEMENT, is_equal, "" if is_equal else figures)


def _reason_not_to_compare(compressor: CompressorLike, frames: object) -> str:
    """Return the reason why the results of a fresh interpreter cannot be compared, or ""."""
    if (find_user_class(compressor) or "").startswith("__main__:"):
        return "the compressor's class is defined in __main__, which a fresh interpreter lacks; put it into a module"
    return "" if frames else "there are no frames to compare with"
