"""Quantities with units, as text: rates, times, sizes, throughputs. No other module imports pint.

"Mbit/s" (bits) and "MB/s" (bytes) are accepted; the ambiguous "Mb/s" and "mbit/s", and numbers without a unit, are rejected.
`parse_memory_size` alone ignores case and reads a number without a unit as bytes. The unit registry has only the units below,
because pint's own registry reads "b" as barn and "m" as milli before every unit.
"""

from __future__ import annotations

import difflib
import math
import re
from contextlib import suppress
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
"""Bounds of a quantity other than 0, in the unit that its parser returns. Sums of such quantities do not overflow."""

_AMBIGUOUS = re.compile(
    r"(?<![A-Za-z])([kKmMgGtT]i?)(b|B|bit|byte|bps|Bps|bits|bytes)(?![A-Za-z])|(?<![A-Za-z])(b)(?![A-Za-z])"
)


@cache
def _unit_registry() -> pint.UnitRegistry[Any]:
    from pint import UnitRegistry

    registry: pint.UnitRegistry[Any] = UnitRegistry(None, cache_folder=None)
    registry.load_definitions(_DEFINITIONS.strip().splitlines())
    return registry


def _parse_quantity(text: str, unit: str, example: str, positive: bool = False, whole_text: str | None = None) -> float:
    """Convert a text to a number in a unit, or raise a ScenarioError.

    `example` describes valid texts, and `positive` rejects 0. The message quotes `whole_text`, of which the text is a part.
    """
    problem = f"got {(text if whole_text is None else whole_text)[:50]!r}, expected {example}"
    for match in _AMBIGUOUS.finditer(text):
        prefix, name = match[1] or "", match[2] or match[3]
        if name in ("b", "Bps") or (prefix and prefix[0] in "mKgt" and prefix != "Ki"):
            si = f"{prefix[0].upper()}i" if "i" in prefix else {"m": "M", "K": "k", "g": "G", "t": "T"}.get(prefix, prefix)
            per = "/s" if name in ("bps", "Bps") else ""
            advice = f'write "{si}bit{per}" for bits or "{si}B{per}" for bytes'
            raise ScenarioError(f'{problem}: "{match[0]}" is ambiguous, {advice}')
    number = re.match(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(.*)", text)
    if not number or not re.fullmatch(r"[A-Za-zµμ]+(\s*/\s*[A-Za-zµμ]+)?\s*", number[2]):
        hint = ", a number and its unit" if number and not number[2].strip() else ""
        raise ScenarioError(problem + hint)
    try:
        value = float(_unit_registry().Quantity(float(number[1]), number[2]).to(unit).magnitude)
    except Exception:  # pint's errors have no common base class
        raise ScenarioError(f'{problem}: the unit "{number[2].strip()}" is unknown, or of another quantity') from None
    if value and not MIN_QUANTITY <= value <= MAX_QUANTITY:
        raise ScenarioError(f"{problem}, between {MIN_QUANTITY:g} and {MAX_QUANTITY:g} {unit}{'' if positive else ', or 0'}")
    if positive and not value:
        raise ScenarioError(f"{problem}, above 0")
    return value


def parse_rate(text: str) -> float:
    """Convert a rate to bits per second, above 0; ScenarioError for other texts.

    >>> parse_rate("2 Mbit/s"), parse_rate("1.5 MB/s")
    (2000000.0, 12000000.0)
    """
    return _parse_quantity(text, "bit / second", 'a rate such as "2 Mbit/s" (bits) or "1.5 MB/s" (bytes)', positive=True)


def parse_seconds(text: str) -> float:
    """Convert a time such as "50 ms" or "2 min" to seconds, at least 0; ScenarioError for other texts."""
    return _parse_quantity(text, "second", 'a time such as "50 ms" or "1.5 s"')


def parse_flops(text: str) -> float:
    """Convert a throughput such as "10 GFLOP/s" to FLOP per second, above 0; ScenarioError for other texts."""
    return _parse_quantity(text, "FLOP / second", 'a throughput such as "10 GFLOP/s"', positive=True)


def parse_size(text: str) -> float:
    """Convert a size such as "3 kB" to bytes, at least 0; ScenarioError for other texts."""
    return _parse_quantity(text, "byte", 'a size such as "3 kB"')


DAYS_PER_MONTH = 30
"""Days of a month in quantities such as "1 GB/day"."""


def parse_monthly_bytes(text: str) -> float:
    """Convert a size per month or per day to bytes per month of 30 days, above 0; ScenarioError for other texts.

    >>> parse_monthly_bytes("200 MB/month"), parse_monthly_bytes("1 GB/day")
    (200000000.0, 30000000000.0)
    """
    amount, _, period = (part.strip() for part in (text if "/" in text else f"{text}/").rpartition("/"))
    days = {"month": DAYS_PER_MONTH, "day": 1, "d": 1}.get(period)
    example = 'SIZE/month or SIZE/day, for example "200MB/month"'
    has_unit = not re.fullmatch(r"[0-9.]*", amount)
    if days is not None and has_unit:
        return _parse_quantity(amount, "byte", example, positive=True, whole_text=text) * DAYS_PER_MONTH / days
    nearest_periods = [period] if days else difflib.get_close_matches(period.lower() or "month", ("month", "day"), 1, 0.75)
    hint = ""
    if nearest_periods:
        nearest = f"{amount}{'' if has_unit else 'MB'}/{nearest_periods[0]}"
        with suppress(ScenarioError):
            parse_monthly_bytes(nearest)
            hint = f', did you mean "{nearest}"?'
    raise ScenarioError(f"got {text[:50]!r}, expected {example}{hint}")


def format_rate(bits_per_second: float) -> str:
    """Return a rate with the digits of `format_significant`: "1.6 Mbit/s"."""
    return _format_with_prefix(bits_per_second, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"))


def format_flops(flops_per_second: float) -> str:
    """Return a throughput with the digits of `format_significant`: "10 GFLOP/s"."""
    return _format_with_prefix(flops_per_second, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"))


def _format_with_prefix(value: float, units: tuple[str, ...]) -> str:
    power = next((power for power in range(len(units) - 1) if value < 999.5 * 1000**power), len(units) - 1)
    return f"{format_significant(value / 1000**power)} {units[power]}"


def format_significant(value: float) -> str:
    """Return a number from 0 up: "1.00e-04", "0.0123", "1.5", "250", "12,346".

    Numbers from 0.001 have at most three significant figures; from 999.5, all digits of the rounded number. The script of the
    report page does the same arithmetic, so that the page shows the same digits.
    """
    if value >= 999.5:
        return f"{math.floor(value + 0.5):,}"
    if value < 1e-3:
        return "0" if value == 0 else f"{value:.2e}"
    digits = sum(value < bound for bound in (100.0, 10.0, 1.0, 0.1, 0.01))
    text = f"{math.floor(value * 10**digits + 0.5) / 10**digits:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_metric(value: float) -> str:
    """Return the value of a metric with four decimals, and with four significant figures below 0.001 and from 1000.

    >>> [format_metric(value) for value in (0.91, 2.30259, 0.000123456, -12345.6)]
    ['0.9100', '2.3026', '0.0001235', '-12,346']
    """
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4f}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def format_ratio(ratio: float | None) -> str:
    """Return a ratio with the digits of `format_significant`, "76×"; an empty text for None."""
    return "" if ratio is None else f"{format_significant(ratio)}×"


def format_seconds(seconds: float) -> str:
    """Return a duration, from 1 min in at most two units: "340 ms", "12.3 s", "4 min 10 s", "3 h 25 min", "2 d 4 h", "∞"."""
    if math.isinf(seconds):
        return "∞"
    if seconds < 0.9995:
        return f"{format_significant(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{format_significant(seconds)} s"
    for (large_unit, large_seconds), (small_unit, small_seconds), limit in (
        (("min", 60), ("s", 1), 3600),
        (("h", 3600), ("min", 60), 86400),
        (("d", 86400), ("h", 3600), math.inf),
    ):
        whole_seconds = math.floor(seconds / small_seconds + 0.5) * small_seconds
        if whole_seconds < limit:
            n_large, rest = divmod(whole_seconds, large_seconds)
            tail = f" {rest // small_seconds:.0f} {small_unit}" if rest else ""
            return f"{n_large:,.0f} {large_unit}{tail}"
    raise AssertionError(seconds)


DECIMAL_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
BINARY_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
BYTES_PER_UNIT = {
    unit.lower(): base**power
    for base, units in ((1000, DECIMAL_BYTE_UNITS), (1024, BINARY_BYTE_UNITS))
    for power, unit in enumerate(units)
}
"""Bytes of each unit, by its name in lower case."""
MAX_BYTES = 2**63 - 1
"""Maximum size in bytes: the largest signed 64-bit integer."""


def parse_memory_size(text: str) -> int:
    """Convert a size such as "2 GiB", "500 MB", "1.5gb" or "4096" to bytes, rounded down; ScenarioError for other texts."""
    match = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", text)
    unit = match and BYTES_PER_UNIT.get(match[2].lower() or "b")
    if not match or not unit:
        units = ", ".join(DECIMAL_BYTE_UNITS + BINARY_BYTE_UNITS[1:])
        raise ScenarioError(f'got {text[:50]!r}, expected a size such as "2 GiB", "500 MB" or "4096" ({units})')
    n = int(Fraction(match[1]) * unit)
    if n > MAX_BYTES:
        raise ScenarioError(f"got {text[:50]!r}, expected a size of at most {format_binary_bytes(2**63)}")
    return n


def format_bytes(n_bytes: int) -> str:
    """Return a size in powers of 1000, up to 999 PB with at most three significant figures: "62.8 kB"."""
    last_power = len(DECIMAL_BYTE_UNITS) - 1
    power = next((power for power in range(last_power) if n_bytes < 999.5 * 1000**power), last_power)
    value = n_bytes / 1000**power
    number = f"{value:,.0f}" if not power or value >= 100 else f"{value:.3g}"
    return f"{number} {DECIMAL_BYTE_UNITS[power]}"


def format_binary_bytes(n_bytes: int) -> str:
    """Return a size that is 1 to 1023 times a power of 1024 as "2 GiB", any other size as `format_bytes` does."""
    for power, unit in reversed(list(enumerate(BINARY_BYTE_UNITS))[1:]):
        if n_bytes and n_bytes % 1024**power == 0 and n_bytes // 1024**power < 1024:
            return f"{n_bytes // 1024**power} {unit}"
    return format_bytes(n_bytes)


def compression_ratio(dense_bytes: float, sent_bytes: float) -> float | None:
    """Return dense_bytes / sent_bytes; None if no bytes were sent."""
    return dense_bytes / sent_bytes if sent_bytes else None


def compression_ratios(
    uplink_bytes: int, downlink_bytes: int, dense_uplink_bytes: int, dense_downlink_bytes: int
) -> dict[str, float | None]:
    """Return "uplink_ratio", "downlink_ratio" and "bidirectional_ratio", for both directions together.

    A downlink frame that m clients share counts m times. `dense_*_bytes` are the bytes of dense float32 frames in place of
    the frames that were sent.
    """
    return {
        "uplink_ratio": compression_ratio(dense_uplink_bytes, uplink_bytes),
        "downlink_ratio": compression_ratio(dense_downlink_bytes, downlink_bytes),
        "bidirectional_ratio": compression_ratio(dense_uplink_bytes + dense_downlink_bytes, uplink_bytes + downlink_bytes),
    }
