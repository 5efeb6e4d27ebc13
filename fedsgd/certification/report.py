"""Certificates as tables for a terminal and for Markdown, and as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsgd.certification.certificate import (
    Certificate,
    CompressorTraffic,
    OperatorErrors,
    SampleSummary,
    SchemeErrors,
    Throughput,
)
from fedsgd.errors import make_write_error
from fedsgd.storage.run_directory import write_atomically

CertificateRow = tuple[str, str, str]
"""Row of a table: the quantity, its value, and a figure to compare the value with."""
COLUMNS = ("compressor", "kind", "bits/parameter", "ratio up", "error", "encode", "decode+add", "laws")
LEGEND = (
    "bits/parameter: whole frames; ratio up: bytes of dense float32 updates over bytes of the frames (for both directions "
    "together, below 2× if the downlink is dense); error: |x − C(x)|²/|x|², for schemes the error of the sums over rounds; "
    "encode, decode+add: × a memcpy of the dense vector."
)


def save(certificate: Certificate, folder: Path) -> None:
    """Write certificate.json and certificate.md, each atomically. The folder is created if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise make_write_error(folder, error) from None
    write_atomically(folder / "certificate.json", to_json_text(certificate).encode() + b"\n")
    write_atomically(folder / "certificate.md", to_markdown(certificate).encode())


def to_json_text(*certificates: Certificate, as_list: bool = False) -> str:
    """Return the JSON text of a certificate, or of several certificates as a list."""
    tables = [certificate.to_json() for certificate in certificates]
    return json.dumps(tables if as_list else tables[0], indent=2, ensure_ascii=False, allow_nan=False)


def to_markdown(certificate: Certificate) -> str:
    """Return the certificate as a page of Markdown."""
    lines = [f"# {format_title(certificate)}", "", f"`{certificate.compressor}`", "", describe_measurement(certificate), ""]
    lines += ["## Laws", "", *_format_table(("law", "statement", "result", "figures"), _list_law_rows(certificate))]
    for heading, rows in list_sections(certificate):
        lines += ["", f"## {heading.capitalize()}", "", *_format_table(("", "measured", "compared with"), rows)]
    lines += ["", "## Digests", "", *_format_table(("data", "SHA-256"), [*list_digests(certificate)])]
    return "\n".join(lines) + "\n"


def comparison_to_markdown(certificates: Sequence[Certificate]) -> str:
    """Return several certificates as one table of Markdown with a legend."""
    vectors = describe_vectors(certificates[0].vectors)
    return "\n".join([*_format_table(COLUMNS, build_comparison_rows(certificates)), "", f"{vectors}. {LEGEND}"]) + "\n"


def build_comparison_rows(certificates: Sequence[Certificate]) -> list[tuple[str, ...]]:
    """Return a row of COLUMNS for each certificate, in order."""
    return [_build_comparison_row(certificate) for certificate in certificates]


def _build_comparison_row(certificate: Certificate) -> tuple[str, ...]:
    traffic, throughput, error = certificate.traffic, certificate.throughput, certificate.error
    return (
        certificate.label,
        certificate.kind,
        "" if traffic is None else _format_number(traffic.frame_bits_per_parameter),
        "" if traffic is None else f"{traffic.uplink_ratio:.1f}×",
        "" if error is None else f"{error:.3g}",
        "" if throughput is None else f"{throughput.encode_memcpys:.1f}×",
        "" if throughput is None else f"{throughput.decode_memcpys:.1f}×",
        f"{sum(result.passed is True for result in certificate.laws)}/{len(certificate.laws)}",
    )


def format_title(certificate: Certificate) -> str:
    """Return the compressor's label and kind, and the number of laws that are broken, or that were not tried."""
    n_laws, n_broken = len(certificate.laws), sum(result.passed is False for result in certificate.laws)
    n_untried = sum(result.passed is None for result in certificate.laws)
    outcome = f"{n_laws - n_untried} of {n_laws} laws hold, {n_untried} not tried" if n_untried else f"all {n_laws} laws hold"
    outcome = outcome if certificate.passed else f"{n_broken} of {n_laws} laws broken"
    return f"{certificate.label} ({certificate.kind}): {outcome}"


def describe_measurement(certificate: Certificate) -> str:
    """Describe the measured vectors and the version of fedsgd."""
    return f"{describe_vectors(certificate.vectors)}; fedsgd {certificate.fedsgd_version}"


def describe_vectors(vectors: SampleSummary) -> str:
    """Describe the measured vectors."""
    return f"{vectors.description}: {vectors.rounds} rounds of {vectors.clients} clients, P = {vectors.parameters:,}"


def list_sections(certificate: Certificate) -> Iterator[tuple[str, list[CertificateRow]]]:
    """Yield the heading and the rows of each table of measurements."""
    if certificate.traffic is not None:
        yield "bytes", [*_list_traffic_rows(certificate.traffic)]
    if certificate.errors is not None:
        yield "error", [*_list_operator_error_rows(certificate.errors)]
    if certificate.delivery is not None:
        yield "delivery", [*_list_scheme_error_rows(certificate.delivery)]
    if certificate.throughput is not None:
        yield "time", [*_list_throughput_rows(certificate.throughput, certificate.vectors)]


def list_digests(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """Yield the name and the SHA-256 of each digest that the certificate has."""
    yield "vectors_sha256", certificate.vectors.sha256
    if certificate.frames_sha256 is not None:
        yield "frames_sha256", certificate.frames_sha256
    if certificate.fresh_frames_sha256 is not None:
        yield "fresh_frames_sha256", certificate.fresh_frames_sha256


def _list_law_rows(certificate: Certificate) -> Iterator[tuple[str, ...]]:
    words = {True: "holds", False: "**broken**", None: "not tried"}
    for result in certificate.laws:
        yield result.law, result.statement, words[result.passed], result.detail


def _list_traffic_rows(traffic: CompressorTraffic) -> Iterator[CertificateRow]:
    yield "bits/parameter, payload", _format_number(traffic.payload_bits_per_parameter), ""
    yield (
        "bits/parameter, frame",
        _format_number(traffic.frame_bits_per_parameter),
        f"uplink {traffic.uplink_ratio:.1f}× below dense",
    )
    yield "coordinates sent", f"{traffic.kept:,.1f}", f"mean of {traffic.messages} messages"
    for part in ("header", "index", "value", "side"):
        n_bytes: float = getattr(traffic, part)
        if not n_bytes:
            continue
        bits, references = "", []
        if traffic.bits_per_kept and traffic.entropy_bits_per_kept:
            bits = f" · {traffic.bits_per_kept[part]:.2f} bits/sent"
            if part in traffic.entropy_bits_per_kept:
                references.append(f"entropy of the bytes {traffic.entropy_bits_per_kept[part]:.2f}")
            if part == "index":
                references.append(f"log₂C(P, k)/k {traffic.position_bits_per_kept:.2f}")
        yield f"{part}, bytes", f"{n_bytes:,.1f}{bits}", ", ".join(references)
    if traffic.reference_bytes:
        yield "reference frame, bytes", f"{traffic.reference_bytes:,.1f}", "a round"


def _list_operator_error_rows(errors: OperatorErrors) -> Iterator[CertificateRow]:
    stated = "not stated" if errors.stated_variance is None else f"stated {_format_number(errors.stated_variance)}"
    delta = "not contractive" if errors.stated_contraction is None else f"stated δ {_format_number(errors.stated_contraction)}"
    floor = f", A {_format_number(errors.stated_floor)}" if errors.stated_floor else ""
    is_random = errors.variance_standard_error > 1e-9 * errors.variance
    spread = f" ± {_format_number(errors.variance_standard_error)}" if is_random else ""
    yield "|x − C(x)|²/|x|²", _format_number(errors.error), "mean over the vectors"
    yield "E|C(x) − x|²/|x|²", f"{_format_number(errors.variance)}{spread}", f"{stated}; {errors.contexts} contexts of one x"
    yield "bias ‖E C(x) − x‖/‖x‖", _format_number(errors.bias), f"by chance if unbiased {_format_number(errors.chance_bias)}"
    least, median = _format_number(errors.least_contraction), _format_number(errors.median_contraction)
    yield "1 − |x − C(x)|²/|x|²", f"least {least}, median {median}", delta + floor


def _list_scheme_error_rows(errors: SchemeErrors) -> Iterator[CertificateRow]:
    yield "delivered ⟨Σx, Σd⟩/|Σx|²", _format_number(errors.delivered), "1: all of Σx"
    yield "|Σx − Σd|²/|Σx|²", _format_number(errors.error), ""
    if errors.withheld is not None and errors.most_withheld is not None:
        yield "undelivered energy", _format_number(errors.withheld), "mean at the end; 1: an update's energy"
        yield "undelivered, maximum", _format_number(errors.most_withheld), "over clients and rounds"


def _list_throughput_rows(throughput: Throughput, vectors: SampleSummary) -> Iterator[CertificateRow]:
    speed = 4 * vectors.parameters / throughput.memcpy_seconds / 1e9
    yield (
        "memcpy of x",
        _format_seconds(throughput.memcpy_seconds),
        f"{speed:.1f} GB/s, from a pool of {throughput.pool_bytes / 2**20:.0f} MiB",
    )
    yield "encode", f"{throughput.encode_memcpys:.1f} × memcpy", _format_seconds(throughput.encode_seconds)
    yield "decode and add", f"{throughput.decode_memcpys:.1f} × memcpy", _format_seconds(throughput.decode_seconds)


def _format_seconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 1e-2 else f"{seconds * 1e3:,.0f} ms"


def _format_number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _format_table(headings: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
