"""What a certificate holds. All of it but `measure_throughput` is the same whenever it is made again from the same vectors.

P parameters; k kept coordinates. Figures are means over the messages unless they say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedsgd.compression import CompressionOperator, CompressionScheme, OperatorScheme
from fedsgd.scenario.parsing import dump_table

CompressorLike = CompressionOperator | CompressionScheme
"""What can be certified."""
FORMAT_VERSION = 1
"""The version of the JSON; it goes up when a key changes its name or its meaning."""


@dataclass(frozen=True)
class LawResult:
    """One law. passed: None where it could not be tried; detail: the figures that broke it, or why it was not tried."""

    law: str
    statement: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class SampleSummary:
    """The updates that were measured: `rounds` of each of `clients`. sha256: of their float32s, little-endian, as they come."""

    kind: str
    description: str
    parameters: int
    rounds: int
    clients: int
    sha256: str


@dataclass(frozen=True)
class CompressorTraffic:
    """What the messages weigh. header, index, value, side: bytes a message; reference_bytes: bytes a round beside the model.
    uplink_ratio: bytes of dense float32 updates over those of the messages, which are updates; the downlink is not in it.

    position_bits_per_kept: log₂C(P, k)/k, what positions cost at least if all supports are equally likely.
    entropy_bits_per_kept: by part, the zeroth-order entropy of the bytes in the sections, pooled over the messages: what an
    ideal coder of single bytes would still leave of them. None where no coordinate was kept.
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
    """What an operator loses. error: |x − C(x)|²/|x|², the mean over the vectors.

    bias: ‖mean of C(x) − x‖/‖x‖ over `draw_contexts` contexts of one x, and chance_bias what that would be by chance were the
    operator unbiased. variance: E|C(x) − x|²/|x|² over these contexts, with its standard error. contraction:
    1 − |x − C(x)|²/|x|² over the vectors. stated_*: what the operator says of itself, None where it says nothing.
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
    """What a scheme delivers over the rounds, x being the mean of the clients' updates and d what the server made of them.

    error: |Σx − Σd|²/|Σx|²; delivered: ⟨Σx, Σd⟩/|Σx|², 1 when nothing is missing. withheld, most_withheld: |withheld|² of the
    mean client at the end, and of any client ever, in units of an update's mean |x|²; None if the scheme keeps nothing back.
    """

    error: float
    delivered: float
    withheld: float | None
    most_withheld: float | None


@dataclass(frozen=True)
class Throughput:
    """Medians over `repeats`. encode: vector to frame; decode: frame to the server's float64 sum, the checksum included.

    memcpy: a copy of one dense vector, made in turn with them. What is read goes round a pool of `pool_bytes`; cache_bytes: of
    the last cache, None where that is not known.
    """

    repeats: int
    pool_bytes: int
    cache_bytes: int | None
    memcpy_seconds: float
    encode_seconds: float
    decode_seconds: float

    @property
    def encode_memcpys(self) -> float:
        """Encoding as a multiple of a copy."""
        return self.encode_seconds / self.memcpy_seconds

    @property
    def decode_memcpys(self) -> float:
        """Decoding and adding as a multiple of a copy."""
        return self.decode_seconds / self.memcpy_seconds


@dataclass(frozen=True, eq=False)
class Certificate:
    """A compressor's laws and figures. What could not be measured is None.

    kind: of an operator, else "scheme"; frames_sha256: of all frames; fresh_frames_sha256: of those that an equal compressor
    made of the same vectors in a fresh interpreter.
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

    @property
    def passed(self) -> bool:
        """Whether no law was broken."""
        return all(verdict.passed is not False for verdict in self.laws)

    @property
    def label(self) -> str:
        """The compressor's name, with that of the operator it works over, if any: `error-feedback(top-k)`."""
        over = f"({self.compressor.op.name})" if isinstance(self.compressor, OperatorScheme) else ""
        return f"{self.compressor.name}{over}"

    @property
    def import_path(self) -> str:
        """`module:Class` of the compressor."""
        cls = type(self.compressor)
        return f"{cls.__module__}:{cls.__qualname__}"

    @property
    def error(self) -> float | None:
        """The error on these vectors: of an operator on each, of a scheme on their sum over the rounds."""
        measured = self.errors or self.delivery
        return None if measured is None else measured.error

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        figures = {name: getattr(self, name) for name in ("traffic", "errors", "delivery", "throughput")}
        tables = {name: {} if part is None else json_safe(asdict(part)) for name, part in figures.items()}
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
            "laws": [asdict(verdict) for verdict in self.laws],
            "frames_sha256": self.frames_sha256,
            "fresh_frames_sha256": self.fresh_frames_sha256,
            **{name: table or None for name, table in tables.items()},
        }


def json_safe(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite as None: JSON knows neither infinities nor NaN."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
