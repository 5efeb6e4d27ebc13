"""Certificates as data. With one version of fedsgd, all fields but `throughput` are equal for equal compressors and vectors.

P: parameters; k: coordinates that a message sends. Figures are means over the messages unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedsgd.compression import CompressionOperator, CompressionScheme, OperatorScheme
from fedsgd.experiment.summary import json_safe
from fedsgd.scenario.parsing import dump_table

CompressorLike = CompressionOperator | CompressionScheme
"""Compressors that can be certified."""
FORMAT_VERSION = 1
"""Version of the JSON. It increases when a key changes its name or its meaning."""


@dataclass(frozen=True)
class LawResult:
    """Result of one law. `detail` has the figures that break the law, or the reason why it was not tried (`passed` is None)."""

    law: str
    statement: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class SampleSummary:
    """Summary of the measured updates, one for each round and client.

    `kind` is "real", "gaussian" or "laplace". `sha256` is the digest of all updates as little-endian float32, in order.
    """

    kind: str
    description: str
    parameters: int
    rounds: int
    clients: int
    sha256: str


@dataclass(frozen=True)
class CompressorTraffic:
    """Bytes of the messages.

    Attributes:
        messages: number of messages. Each message is one update.
        kept: coordinates that a message sends, k.
        payload_bits_per_parameter, frame_bits_per_parameter: bits of a message's sections, and of its whole frame, over P.
        uplink_ratio: bytes of dense float32 updates over bytes of the messages; the downlink does not count.
        header: bytes of a message's frame header, section headers and checksum.
        index, value, side: bytes of a message's INDEX section, its VALUE section and its other sections.
        reference_bytes: bytes of a round's reference frame.
        max_bytes: upper bound of a message's section bytes, as the compressor states it.
        bits_per_kept: bits of each part (header, index, value, side) per coordinate sent; None if no coordinate was sent.
        entropy_bits_per_kept: as `bits_per_kept`, without header, for an ideal code of single bytes over all messages.
        position_bits_per_kept: log₂C(P, k)/k, minimum bits of a position if all sets of k positions are equally likely.
    """

    messages: int
    kept: float
    payload_bits_per_parameter: float
    frame_bits_per_parameter: float
    uplink_ratio: float
    header: float
    index: float
    value: float
    side: float
    reference_bytes: float
    max_bytes: int
    bits_per_kept: Mapping[str, float] | None
    entropy_bits_per_kept: Mapping[str, float] | None
    position_bits_per_kept: float | None


@dataclass(frozen=True)
class OperatorErrors:
    """Errors of an operator.

    Attributes:
        error: mean of |x − C(x)|²/|x|² over the vectors other than zero.
        contexts: number of contexts in which one vector x is encoded, for bias and variance.
        bias: ‖mean of C(x) − x‖/‖x‖ over these contexts.
        chance_bias: expected `bias` of an unbiased operator with this variance.
        variance, variance_standard_error: mean of |C(x) − x|²/|x|² over these contexts, and its standard error.
        stated_variance: variance that the operator states for x, over |x|²; None if the operator states none.
        least_contraction, median_contraction: minimum and median of 1 − |x − C(x)|²/|x|² over these vectors.
        stated_contraction: δ that the operator states; None if the operator is not contractive.
        stated_floor: absolute error A that the operator states.
    """

    error: float
    contexts: int
    bias: float
    chance_bias: float
    variance: float
    variance_standard_error: float
    stated_variance: float | None
    least_contraction: float
    median_contraction: float
    stated_contraction: float | None
    stated_floor: float


@dataclass(frozen=True)
class SchemeErrors:
    """Errors of a scheme over all rounds. x is the mean of a round's updates, and d is the server's aggregate.

    Attributes:
        error: |Σx − Σd|²/|Σx|².
        delivered: ⟨Σx, Σd⟩/|Σx|²; 1 if all of Σx was delivered.
        withheld: mean |undelivered update|² of the clients after the last round, in units of the mean |update|²; None for a
            scheme without undelivered updates.
        most_withheld: maximum of |undelivered update|² over clients and rounds, in the same unit.
    """

    error: float
    delivered: float
    withheld: float | None
    most_withheld: float | None


@dataclass(frozen=True)
class Throughput:
    """Times of copying, encoding and decoding one dense vector: medians over `repeats` measurements.

    Attributes:
        pool_bytes: size of the pool from which the vectors are read in turn.
        cache_bytes: size of the processor's largest cache; None if the size is unknown.
        decode_seconds: from frame to the server's float64 sum, with the check of the checksum.
    """

    repeats: int
    pool_bytes: int
    cache_bytes: int | None
    memcpy_seconds: float
    encode_seconds: float
    decode_seconds: float

    @property
    def encode_memcpys(self) -> float:
        """Time of encoding as a multiple of a copy."""
        return self.encode_seconds / self.memcpy_seconds

    @property
    def decode_memcpys(self) -> float:
        """Time of decoding and adding as a multiple of a copy."""
        return self.decode_seconds / self.memcpy_seconds


@dataclass(frozen=True, eq=False)
class Certificate:
    """Laws and figures of a compressor. A figure that could not be measured is None.

    Attributes:
        fedsgd_version: version of fedsgd.
        compressor: the component that was certified, with its settings.
        kind: an operator's kind ("contractive", "unbiased" or "neither"), or "scheme".
        vectors: summary of the measured updates.
        laws: result of each law.
        frames_sha256: digest of all frames.
        fresh_frames_sha256: digest of the frames that an equal compressor encodes from equal vectors in a fresh interpreter.
        traffic: bytes of the messages.
        errors: errors of an operator; None for a scheme.
        delivery: errors of a scheme; None for an operator.
        throughput: times of encoding and decoding.
    """

    fedsgd_version: str
    compressor: CompressorLike
    kind: str
    vectors: SampleSummary
    laws: tuple[LawResult, ...]
    frames_sha256: str | None
    fresh_frames_sha256: str | None
    traffic: CompressorTraffic | None
    errors: OperatorErrors | None
    delivery: SchemeErrors | None
    throughput: Throughput | None

    def __repr__(self) -> str:
        n_held, n_untried = (sum(result.passed is passed for result in self.laws) for passed in (True, None))
        untried = f", {n_untried} not tried: their details have the reason" if n_untried else ""
        ratio = "" if self.traffic is None else f", uplink {self.traffic.uplink_ratio:.1f}× below dense"
        return f"Certificate({self.compressor}: {n_held} of {len(self.laws)} laws hold{untried}{ratio})"

    @property
    def passed(self) -> bool:
        """True if no law is broken."""
        return all(result.passed is not False for result in self.laws)

    @property
    def label(self) -> str:
        """Name of the compressor, with the name of a scheme's operator: `error-feedback(top-k)`."""
        operator = f"({self.compressor.op.name})" if isinstance(self.compressor, OperatorScheme) else ""
        return f"{self.compressor.name}{operator}"

    @property
    def import_path(self) -> str:
        """Class of the compressor as `module:Class`."""
        cls = type(self.compressor)
        return f"{cls.__module__}:{cls.__qualname__}"

    @property
    def error(self) -> float | None:
        """An operator's mean error over the vectors, or a scheme's error of the sums over all rounds."""
        errors = self.errors or self.delivery
        return None if errors is None else errors.error

    def to_json(self) -> dict[str, Any]:
        """Return all fields and derived figures as JSON types."""
        figures = {name: getattr(self, name) for name in ("traffic", "errors", "delivery", "throughput")}
        tables = {name: {} if record is None else json_safe(asdict(record)) for name, record in figures.items()}
        if self.throughput is not None:
            tables["throughput"] |= {
                "encode_memcpys": self.throughput.encode_memcpys,
                "decode_memcpys": self.throughput.decode_memcpys,
            }
        return {
            "format": FORMAT_VERSION,
            "fedsgd": self.fedsgd_version,
            "compressor": dump_table(self.compressor, use_import_paths=False),
            "class": self.import_path,
            "kind": self.kind,
            "vectors": asdict(self.vectors),
            "passed": self.passed,
            "laws": [asdict(result) for result in self.laws],
            "frames_sha256": self.frames_sha256,
            "fresh_frames_sha256": self.fresh_frames_sha256,
            **{name: table or None for name, table in tables.items()},
        }
