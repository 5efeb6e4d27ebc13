"""Quantities as text: bits are never read as bytes, and ambiguous units are refused."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.config.quantities import (
    format_binary_bytes,
    format_bytes,
    format_rate,
    format_seconds,
    format_significant,
    parse_flops,
    parse_memory_size,
    parse_monthly_bytes,
    parse_rate,
    parse_seconds,
    parse_size,
)
from fedsgd.errors import ScenarioError

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("2 Mbit/s", 2e6),
        ("2Mbit/s", 2e6),
        (" 1.5 MB/s ", 12e6),
        ("300 Mbps", 3e8),
        ("1 Gbit / s", 1e9),
        ("250 bit/s", 250),
        ("5 MiB/s", 5 * 2**20 * 8),
        ("100 kB/s", 8e5),
        ("2 megabit/s", 2e6),
        ("60 Mbit/min", 1e6),
        ("1e3 kbit/s", 1e6),
    ],
)
def test_rate_text_is_parsed_to_bits_per_second(text: str, bits: float) -> None:
    assert parse_rate(text) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 Mb/s", 'write "Mbit" for bits or "MB" for bytes'),
        ("2 mb/s", "ambiguous"),
        ("2 mbit/s", 'write "Mbit"'),
        ("2 MBps", 'write "Mbit/s" for bits or "MB/s" for bytes'),
        ("2 mbps", "ambiguous"),
        ("2 gbit/s", 'write "Gbit"'),
        ("2 Kbit/s", 'write "kbit"'),
        ("2 b/s", "ambiguous"),
        ("2 mibit/s", 'write "Mibit"'),
        ("2 kib/s", 'write "Kibit"'),
        ("2", "a number and its unit"),
        ("2M", "expected a rate"),
        ("2 MHz", "expected a rate"),
        ("2 Mbit", "expected a rate"),
        ("2 s", "expected a rate"),
        ("0 bit/s", "above 0"),
        ("-2 Mbit/s", "expected a rate"),
        ("nan Mbit/s", "expected a rate"),
        ("1e400 bit/s", "between"),
        ("1e-12 bit/s", "between 1e-09 and 1e+18 bit / second"),
        ("2 MBit/s", 'the unit "MBit/s" is unknown, or of another quantity'),
        ("2 Mbit/s/s", "expected a rate"),
        ("", "expected a rate"),
        ("2 Mbit/s; import os", "expected a rate"),
    ],
)
def test_invalid_or_ambiguous_rate_is_refused(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=f"got '{text[:9]}".replace("(", r"\(")) as error:
        parse_rate(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_seconds_flops_and_sizes_are_parsed() -> None:
    assert [parse_seconds(t) for t in ("50ms", "1.5 s", "2 min", "1h", "0 s", "300 us", "50 μs")] == pytest.approx(
        [0.05, 1.5, 120, 3600, 0, 3e-4, 5e-5]
    )
    assert parse_flops("10 GFLOP/s") == parse_flops("10 GFLOPS") == 1e10
    assert (parse_size("3 kB"), parse_size("1 KiB"), parse_size("8 bit")) == (3000, 1024, 1)
    for parse, text in ((parse_seconds, "50"), (parse_seconds, "50 mS"), (parse_flops, "10 Gbit/s"), (parse_size, "3 kb")):
        with pytest.raises(ScenarioError):
            parse(text)


@pytest.mark.slow
@given(st.text(max_size=20))
def test_any_text_is_a_rate_or_a_scenario_error(text: str) -> None:
    with suppress(ScenarioError):  # any other error fails the test
        assert 0 < parse_rate(text) < math.inf


@given(st.floats(1, 1e14))
def test_formatted_rate_is_parsed_to_three_figures(bits: float) -> None:
    assert parse_rate(format_rate(bits).replace(",", "")) == pytest.approx(bits, rel=6e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (1e-4, "0.1 ms"),
        (0.34, "340 ms"),
        (0.99949, "999 ms"),
        (0.9996, "1 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (250, "4 min 10 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h"),
        (12300, "3 h 25 min"),
        (86399, "1 d"),
        (100_000, "1 d 4 h"),
        (1e9, "11,574 d 2 h"),
        (math.inf, "∞"),
    ],
)
def test_seconds_are_formatted_in_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (1.5, "1.5"),
        (12.25, "12.3"),
        (250, "250"),
        (999.4, "999"),
        (999.5, "1,000"),
        (0.001, "0.001"),
    ],
)
def test_number_is_formatted_to_three_figures(value: float, text: str) -> None:
    assert format_significant(value) == text


@given(st.floats(1e-3, 999))
def test_formatted_number_is_within_three_figures(value: float) -> None:
    assert float(format_significant(value)) == pytest.approx(value, rel=5.1e-3)


def test_byte_counts_are_formatted_with_units() -> None:
    texts = {0: "0 B", 999: "999 B", 1000: "1 kB", 62_800: "62.8 kB", 999_499: "999 kB", 999_500: "1 MB", 314 * 10**6: "314 MB"}
    assert {n: format_bytes(n) for n in texts} == texts
    assert format_bytes(5 * 10**18) == "5,000 PB"
    assert [format_binary_bytes(n) for n in (2 * GIB, 3 * 2**20, 10**8, 1024 * 10**6, 0)] == [
        "2 GiB",
        "3 MiB",
        "100 MB",
        "1.02 GB",
        "0 B",
    ]


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2 GiB", 2 * GIB),
        ("500 MB", 5 * 10**8),
        ("1.5gb", 15 * 10**8),
        (" 4096 ", 4096),
        ("0", 0),
        ("62.8 kB", 62_800),
        ("0.1 KiB", 102),
        ("7 B", 7),
    ],
)
def test_memory_size_is_parsed(text: str, n_bytes: int) -> None:
    assert parse_memory_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "2 GX", "-1 MB", "1e9", "inf", "nan B", "1,000", "2 GiB!", ".5 GB", "٣ GB", "1" * 31, "2 G"]
)
def test_invalid_memory_size_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"expected a size such as \"2 GiB\", \"500 MB\" or \"4096\" \(B, kB, "):
        parse_memory_size(text)
    with pytest.raises(ScenarioError, match="expected a size of at most"):
        parse_memory_size("9" * 25 + " PB")


@given(st.text(max_size=12))
def test_any_text_is_a_memory_size_or_a_scenario_error(text: str) -> None:
    try:
        n_bytes = parse_memory_size(text)
    except ScenarioError:
        return
    assert 0 <= n_bytes < 2**63


@given(st.integers(0, 2**62))
def test_formatted_memory_size_is_parsed_to_three_figures(n: int) -> None:
    assert parse_memory_size(format_binary_bytes(n).replace(",", "")) == pytest.approx(n, rel=6e-3)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("200MB/month", 2e8), ("1 GB / day", 3e10), ("5kB/d", 1.5e5), ("8 Mbit/month", 1e6), ("1MiB/month", 2**20)],
)
def test_monthly_text_is_parsed_to_bytes(text: str, n_bytes: float) -> None:
    assert parse_monthly_bytes(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("200", ', did you mean "200MB/month"?'),
        ("200MB", ', did you mean "200MB/month"?'),
        ("200 MB/", ', did you mean "200 MB/month"?'),
        ("200MB/Months", ', did you mean "200MB/month"?'),
        ("1 GB/days", ', did you mean "1 GB/day"?'),
        ("200/day", ', did you mean "200MB/day"?'),
        ("200MB/s", ""),
        ("200MB/week", ""),
        ("200MB/s/month", ': the unit "MB/s" is unknown, or of another quantity'),
        ("0MB", ""),
        ("0", ""),
        ("1.2.3MB", ""),
        ("1.2.3/month", ""),
        ("200mb/month", ': "mb" is ambiguous, write "Mbit" for bits or "MB" for bytes'),
        ("0 B/month", ", above 0"),
        ("-3MB/month", ""),
        ("5 s/month", ': the unit "s" is unknown, or of another quantity'),
        ("/month", ""),
        ("", ""),
    ],
)
def test_wrong_monthly_text_names_only_a_valid_form_of_the_same_quantity(text: str, end: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_monthly_bytes(text)
    assert str(error.value) == f'got {text!r}, expected SIZE/month or SIZE/day, for example "200MB/month"{end}'
