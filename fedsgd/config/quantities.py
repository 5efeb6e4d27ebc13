"""Quantities as people write them, with their units. The only door to pint.

Bits and bytes are never confused: "Mbit/s" and "MB/s" are read, "Mb/s", "mbit/s" or a bare number are refused, since people
mean either by them. Pint's own registry calls b a barn and lets m stand for milli in front of anything, so ours has nothing
but what is wanted here.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    import pint


_DEFINITIONS = """
kilo- = 1e3 = k-
mega- = 1e6 = M-
giga- = 1e9 = G-
tera- = 1e12 = T-
peta- = 1e15 = P-
kibi- = 1024 = Ki-
mebi- = 1048576 = Mi-
gibi- = 1073741824 = Gi-
tebi- = 1099511627776 = Ti-
bit = [information]
byte = 8 * bit = B
second = [time] = s
millisecond = 1e-3 * second = ms
microsecond = 1e-6 * second = us = µs = μs
minute = 60 * second = min
hour = 3600 * second = h
day = 86400 * second = d
bps = bit / second
FLOP = [operation]
FLOPS = FLOP / second
"""

MIN_QUANTITY, MAX_QUANTITY = 1e-9, 1e18
"""Of any quantity in its base unit, beside 0: nothing that anybody means is beyond, and no sum of it overflows."""

_AMBIGUOUS = re.compile(
    r"(?<![A-Za-z])([kKmMgGtT]i?)(b|B|bit|byte|bps|Bps|bits|bytes)(?![A-Za-z])|(?<![A-Za-z])(b)(?![A-Za-z])"
)


@cache
def _unit_registry() -> pint.UnitRegistry[Any]:
    from pint import UnitRegistry

    registry: pint.UnitRegistry[Any] = UnitRegistry(None, cache_folder=None)
    registry.load_definitions(_DEFINITIONS.strip().splitlines())
    return registry


def _parse_quantity(text: str, unit: str, example: str, positive: bool = False) -> float:
    """The number of `unit` that `text` says; ScenarioError for anything that is not a quantity of that kind."""
    problem = f"got {text[:50]!r}, expected {example}"
    for found in _AMBIGUOUS.finditer(text):
        prefix, name = found[1] or "", found[2] or found[3]
        if name in ("b", "Bps") or (prefix and prefix[0] in "mKgt" and prefix != "Ki"):
            meant = {"m": "M", "K": "k", "g": "G", "t": "T"}.get(prefix, prefix)
            raise ScenarioError(f'{problem}: "{found[0]}" is ambiguous, write "{meant}bit" for bits or "{meant}B" for bytes')
    found_number = re.match(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(.*)", text)
    if not found_number or not re.fullmatch(r"[A-Za-zµμ]+(\s*/\s*[A-Za-zµμ]+)?\s*", found_number[2]):
        hint = ", a number and its unit" if found_number and not found_number[2].strip() else ""
        raise ScenarioError(problem + hint)
    try:
        value = float(_unit_registry().Quantity(float(found_number[1]), found_number[2]).to(unit).magnitude)
    except Exception:  # pint has no common base class for its errors, and raises others too
        raise ScenarioError(f'{problem}, got the unit "{found_number[2].strip()}"') from None
    if value and not MIN_QUANTITY <= value <= MAX_QUANTITY:
        raise ScenarioError(f"{problem}, between {MIN_QUANTITY:g} and {MAX_QUANTITY:g} {unit}, or 0")
    if positive and not value:
        raise ScenarioError(f"{problem}, above 0")
    return value


def parse_rate(text: str) -> float:
    """ "2 Mbit/s", "1.5 MB/s" or "300 Mbps" in bits per second, above 0. ScenarioError for anything else."""
    return _parse_quantity(text, "bit / second", 'a rate such as "2 Mbit/s" (bits) or "1.5 MB/s" (bytes)', positive=True)


def parse_seconds(text: str) -> float:
    """ "50 ms", "1.5 s" or "2 min" in seconds, from 0 on. ScenarioError for anything else."""
    return _parse_quantity(text, "second", 'a time such as "50 ms" or "1.5 s"')


def parse_flops(text: str) -> float:
    """ "10 GFLOP/s" in floating-point operations per second, above 0. ScenarioError for anything else."""
    return _parse_quantity(text, "FLOP / second", 'a throughput such as "10 GFLOP/s"', positive=True)


def parse_size(text: str) -> float:
    """ "3 kB" in bytes, from 0 on. ScenarioError for anything else."""
    return _parse_quantity(text, "byte", 'a size such as "3 kB"')


def format_rate(bits_per_second: float) -> str:
    """Three figures: "1.6 Mbit/s"."""
    return _format_with_prefix(bits_per_second, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"))


def format_flops(flops_per_second: float) -> str:
    """Three figures: "10 GFLOP/s"."""
    return _format_with_prefix(flops_per_second, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"))


def _format_with_prefix(value: float, units: tuple[str, ...]) -> str:
    power = next((power for power in range(len(units) - 1) if value < 999.5 * 1000**power), len(units) - 1)
    return f"{format_significant(value / 1000**power)} {units[power]}"


def format_significant(value: float) -> str:
    """A number from 0 on with three significant figures, trailing zeros left out: "0.0123", "1.5", "250", "1,240"; the page's
    script does the very same arithmetic, so that both show the same digits."""
    if value >= 999.5:
        return f"{math.floor(value + 0.5):,}"
    if value < 1e-3:
        return "0" if value == 0 else f"{value:.2e}"
    digits = sum(value < bound for bound in (100.0, 10.0, 1.0, 0.1, 0.01))
    text = f"{math.floor(value * 10**digits + 0.5) / 10**digits:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_ratio(ratio: float | None) -> str:
    """Return a ratio with three significant figures: "76×"; nothing for None."""
    return "" if ratio is None else f"{format_significant(ratio)}×"


def format_seconds(seconds: float) -> str:
    """A duration as people say it: "340 ms", "12.3 s", "4 min 10 s", "3 h 25 min", "2 d 4 h"; "∞"."""
    if math.isinf(seconds):
        return "∞"
    if seconds < 0.9995:
        return f"{format_significant(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{format_significant(seconds)} s"
    for (large, long), (small, short), most in (
        (("min", 60), ("s", 1), 3600),
        (("h", 3600), ("min", 60), 86400),
        (("d", 86400), ("h", 3600), math.inf),
    ):
        whole = math.floor(seconds / short + 0.5) * short
        if whole < most:
            first, rest = divmod(whole, long)
            tail = f" {rest // short:.0f} {small}" if rest else ""
            return f"{first:,.0f} {large}{tail}"
    raise AssertionError(seconds)


DECIMAL_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
BINARY_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
BYTES_PER_UNIT = {
    unit.lower(): base**power
    for base, units in ((1000, DECIMAL_BYTE_UNITS), (1024, BINARY_BYTE_UNITS))
    for power, unit in enumerate(units)
}
MAX_BYTES = 2**63 - 1


def parse_memory_size(text: str) -> int:
    """ "2 GiB", "500 MB", "1.5gb" or "4096" as a number of bytes, rounded down. ScenarioError for anything else."""
    found = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", text)
    unit = found and BYTES_PER_UNIT.get(found[2].lower() or "b")
    if not found or not unit:
        units = ", ".join(DECIMAL_BYTE_UNITS + BINARY_BYTE_UNITS[1:])
        raise ScenarioError(f'got {text[:50]!r}, expected a size such as "2 GiB" or "500 MB" ({units})')
    n = int(Fraction(found[1]) * unit)
    if n > MAX_BYTES:
        raise ScenarioError(f"got {text[:50]!r}, expected a size of at most {format_binary_bytes(2**63)}")
    return n


def format_bytes(n_bytes: int) -> str:
    """Three figures, in powers of 1000: "62.8 kB"."""
    largest = len(DECIMAL_BYTE_UNITS) - 1
    power = next((power for power in range(largest) if n_bytes < 999.5 * 1000**power), largest)
    value = n_bytes / 1000**power
    return (
        f"{value:,.0f} {DECIMAL_BYTE_UNITS[power]}" if not power or value >= 100 else f"{value:.3g} {DECIMAL_BYTE_UNITS[power]}"
    )


def format_binary_bytes(n_bytes: int) -> str:
    """As `format_bytes`, but in powers of 1024 where that gives a whole number below 1024: what was asked for as "2 GiB"."""
    for power, unit in reversed(list(enumerate(BINARY_BYTE_UNITS))[1:]):
        if n_bytes and n_bytes % 1024**power == 0 and n_bytes // 1024**power < 1024:
            return f"{n_bytes // 1024**power} {unit}"
    return format_bytes(n_bytes)


def compression_ratio(dense_bytes: float, sent_bytes: float) -> float | None:
    """Return dense / sent, the bytes of dense float32 frames over the bytes that were sent; None if nothing was sent."""
    return dense_bytes / sent_bytes if sent_bytes else None


def compression_ratios(
    uplink_bytes: int, downlink_bytes: int, dense_uplink_bytes: int, dense_downlink_bytes: int
) -> dict[str, float | None]:
    """Return the compression ratios of the uplink, of the downlink, and of both directions together.

    Args:
        uplink: bytes that were sent up.
        downlink: bytes that were sent down, to each client by itself.
        dense_uplink: bytes of dense float32 frames in place of the updates.
        dense_downlink: bytes of dense float32 frames in place of the models.
    """
    return {
        "uplink_ratio": compression_ratio(dense_uplink_bytes, uplink_bytes),
        "downlink_ratio": compression_ratio(dense_downlink_bytes, downlink_bytes),
        "bidirectional_ratio": compression_ratio(dense_uplink_bytes + dense_downlink_bytes, uplink_bytes + downlink_bytes),
    }
