"""Certificates as people read them: the same rows in a terminal and in Markdown; and the files of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsgd.certificate.base import Certificate, Delivery, Errors, Throughput, Traffic, Vectors
from fedsgd.errors import cannot_write
from fedsgd.run_folder import write

Row = tuple[str, str, str]
"""(what, the figure, what it is to be held against)."""
COLUMNS = ("compressor", "kind", "bits/parameter", "ratio up", "error", "encode", "decode+add", "laws")
LEGEND = (
    "bits/parameter: whole frames; ratio up: of dense float32 updates to them (both directions together: below 2× if the "
    "downlink is dense); error: |x − C(x)|²/|x|², of schemes that of the sums over the rounds; encode, decode+add: × a memcpy "
    "of the dense vector."
)


def save(certificate: Certificate, folder: Path) -> None:
    """certificate.json and certificate.md, each all of it or nothing; OutputError where they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    write(folder / "certificate.json", to_text(certificate).encode() + b"\n")
    write(folder / "certificate.md", to_markdown(certificate).encode())


def to_text(*certificates: Certificate, together: bool = False) -> str:
    """JSON of a certificate, or of several as a list."""
    tables = [certificate.to_json() for certificate in certificates]
    return json.dumps(tables if together else tables[0], indent=2, ensure_ascii=False, allow_nan=False)


def to_markdown(certificate: Certificate) -> str:
    """The certificate as a page of Markdown."""
    lines = [f"# {title(certificate)}", "", f"`{certificate.compressor}`", "", about(certificate), ""]
    lines += ["## Laws", "", *_table(("law", "says", "verdict", "figures"), _law_rows(certificate))]
    for heading, rows in sections(certificate):
        lines += ["", f"## {heading.capitalize()}", "", *_table(("", "measured", "beside"), rows)]
    lines += ["", "## Digests", "", *_table(("of", "SHA-256"), [*digests(certificate)])]
    return "\n".join(lines) + "\n"


def comparison_markdown(certificates: Sequence[Certificate]) -> str:
    """All of them as one table of Markdown, with its legend."""
    vectors = described(certificates[0].vectors)
    return "\n".join([*_table(COLUMNS, comparison(certificates)), "", f"{vectors}. {LEGEND}"]) + "\n"


def comparison(certificates: Sequence[Certificate]) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each certificate, in their order."""
    return [_compared(certificate) for certificate in certificates]


def _compared(certificate: Certificate) -> tuple[str, ...]:
    sizes, times, error = certificate.traffic, certificate.throughput, certificate.error
    return (
        certificate.label,
        certificate.kind,
        "" if sizes is None else _number(sizes.frame_bits_per_parameter),
        "" if sizes is None else f"{sizes.uplink_ratio:.1f}×",
        "" if error is None else f"{error:.3g}",
        "" if times is None else f"{times.encode:.1f}×",
        "" if times is None else f"{times.decode:.1f}×",
        f"{sum(verdict.passed is True for verdict in certificate.laws)}/{len(certificate.laws)}",
    )


def title(certificate: Certificate) -> str:
    """What is certified, and whether it passed."""
    broken = sum(verdict.passed is False for verdict in certificate.laws)
    held = (
        f"all {len(certificate.laws)} laws hold" if certificate.passed else f"{broken} of {len(certificate.laws)} laws broken"
    )
    return f"{certificate.label} ({certificate.kind}): {held}"


def about(certificate: Certificate) -> str:
    """What it was measured on, and by which version."""
    return f"{described(certificate.vectors)}; fedsgd {certificate.fedsgd}"


def described(vectors: Vectors) -> str:
    """The vectors in words."""
    return f"{vectors.description}: {vectors.rounds} rounds of {vectors.clients} clients, P = {vectors.parameters:,}"


def sections(certificate: Certificate) -> Iterator[tuple[str, list[Row]]]:
    """(heading, rows) of what was measured."""
    if certificate.traffic is not None:
        yield "bytes", [*_bytes(certificate.traffic)]
    if certificate.errors is not None:
        yield "error", [*_errors(certificate.errors)]
    if certificate.delivery is not None:
        yield "delivery", [*_delivery(certificate.delivery)]
    if certificate.throughput is not None:
        yield "time", [*_times(certificate.throughput, certificate.vectors)]


def digests(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """(of what, SHA-256), as far as there are any."""
    yield "vectors_sha256", certificate.vectors.sha256
    if certificate.frames_sha256 is not None:
        yield "frames_sha256", certificate.frames_sha256
    if certificate.fresh_frames_sha256 is not None:
        yield "fresh_frames_sha256", certificate.fresh_frames_sha256


def _law_rows(certificate: Certificate) -> Iterator[tuple[str, ...]]:
    words = {True: "holds", False: "**broken**", None: "not tried"}
    for verdict in certificate.laws:
        yield verdict.law, verdict.statement, words[verdict.passed], verdict.detail


def _bytes(found: Traffic) -> Iterator[Row]:
    yield "bits/parameter, payload", _number(found.payload_bits_per_parameter), ""
    yield (
        "bits/parameter, frame",
        _number(found.frame_bits_per_parameter),
        f"a dense float32 update is {found.uplink_ratio:.1f}× that",
    )
    yield "kept coordinates", f"{found.kept:,.1f}", f"mean of {found.messages} messages"
    for part in ("header", "index", "value", "side"):
        n_bytes: float = getattr(found, part)
        if not n_bytes:
            continue
        bits, beside = "", []
        if found.bits_per_kept and found.entropy_bits_per_kept:
            bits = f" · {found.bits_per_kept[part]:.2f} bits/kept"
            if part in found.entropy_bits_per_kept:
                beside.append(f"entropy of the bytes {found.entropy_bits_per_kept[part]:.2f}")
            if part == "index":
                beside.append(f"log₂C(P, k)/k {found.position_bits_per_kept:.2f}")
        yield f"{part}, bytes", f"{n_bytes:,.1f}{bits}", ", ".join(beside)
    if found.reference_bytes:
        yield "beside the model, bytes", f"{found.reference_bytes:,.1f}", "a round"


def _errors(found: Errors) -> Iterator[Row]:
    stated = "not stated" if found.stated_variance is None else f"stated {_number(found.stated_variance)}"
    delta = "not contractive" if found.stated_contraction is None else f"stated δ {_number(found.stated_contraction)}"
    floor = f", A {_number(found.stated_floor)}" if found.stated_floor else ""
    uncertain = found.variance_standard_error > 1e-9 * found.variance
    spread = f" ± {_number(found.variance_standard_error)}" if uncertain else ""
    yield "|x − C(x)|²/|x|²", _number(found.error), "mean over the vectors"
    yield "E|C(x) − x|²/|x|²", f"{_number(found.variance)}{spread}", f"{stated}; {found.contexts} contexts of one x"
    yield "bias ‖E C(x) − x‖/‖x‖", _number(found.bias), f"by chance if unbiased {_number(found.chance_bias)}"
    least, median = _number(found.least_contraction), _number(found.median_contraction)
    yield "1 − |x − C(x)|²/|x|²", f"least {least}, median {median}", delta + floor


def _delivery(found: Delivery) -> Iterator[Row]:
    yield "delivered ⟨Σx, Σd⟩/|Σx|²", _number(found.delivered), "1 is all of it"
    yield "|Σx − Σd|²/|Σx|²", _number(found.error), ""
    if found.withheld is not None and found.most_withheld is not None:
        yield "withheld energy", _number(found.withheld), "in updates, at the end, mean of the clients"
        yield "most withheld", _number(found.most_withheld), "of any client, after any round"


def _times(found: Throughput, vectors: Vectors) -> Iterator[Row]:
    speed = 4 * vectors.parameters / found.memcpy_seconds / 1e9
    yield "memcpy of x", _seconds(found.memcpy_seconds), f"{speed:.1f} GB/s, from a pool of {found.pool_bytes / 2**20:.0f} MiB"
    yield "encode", f"{found.encode:.1f} × memcpy", _seconds(found.encode_seconds)
    yield "decode and add", f"{found.decode:.1f} × memcpy", _seconds(found.decode_seconds)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 1e-2 else f"{seconds * 1e3:,.0f} ms"


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _table(headings: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
