"""Numbers of bytes as people write and read them, and ratios of bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from fedsgd.errors import ScenarioError

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
UNITS = {unit.lower(): base**power for base, units in ((1000, DECIMAL), (1024, BINARY)) for power, unit in enumerate(units)}
GREATEST = 2**63 - 1


def parse_bytes(text: str) -> int:
    """ "2 GiB", "500 MB", "1.5gb" or "4096" as a number of bytes, rounded down. ScenarioError for anything else."""
    found = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", text)
    unit = found and UNITS.get(found[2].lower() or "b")
    if not found or not unit:
        raise ScenarioError(
            f'got {text[:50]!r}, expected a size such as "2 GiB" or "500 MB" ({", ".join(DECIMAL + BINARY[1:])})'
        )
    n = int(Fraction(found[1]) * unit)
    if n > GREATEST:
        raise ScenarioError(f"got {text[:50]!r}, expected a size of at most {budget_text(2**63)}")
    return n


def size_text(n_bytes: int) -> str:
    """Three figures, in powers of 1000: "62.8 kB"."""
    largest = len(DECIMAL) - 1
    power = next((power for power in range(largest) if n_bytes < 999.5 * 1000**power), largest)
    value = n_bytes / 1000**power
    return f"{value:,.0f} {DECIMAL[power]}" if not power or value >= 100 else f"{value:.3g} {DECIMAL[power]}"


def budget_text(n_bytes: int) -> str:
    """As `size_text`, but in powers of 1024 where that gives a whole number below 1024: what was asked for as "2 GiB"."""
    for power, unit in reversed(list(enumerate(BINARY))[1:]):
        if n_bytes and n_bytes % 1024**power == 0 and n_bytes // 1024**power < 1024:
            return f"{n_bytes // 1024**power} {unit}"
    return size_text(n_bytes)


def compression_ratio(dense: float, sent: float) -> float | None:
    """Return dense / sent, the bytes of dense float32 frames over the bytes that were sent; None if nothing was sent."""
    return dense / sent if sent else None


def compression_ratios(uplink: int, downlink: int, dense_uplink: int, dense_downlink: int) -> dict[str, float | None]:
    """Return the compression ratios of the uplink, of the downlink, and of both directions together.

    Args:
        uplink: bytes that were sent up.
        downlink: bytes that were sent down, to each client by itself.
        dense_uplink: bytes of dense float32 frames in place of the updates.
        dense_downlink: bytes of dense float32 frames in place of the models.
    """
    return {
        "uplink_ratio": compression_ratio(dense_uplink, uplink),
        "downlink_ratio": compression_ratio(dense_downlink, downlink),
        "bidirectional_ratio": compression_ratio(dense_uplink + dense_downlink, uplink + downlink),
    }
