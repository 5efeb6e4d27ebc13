"""Differences between links: invalid traces and extreme factors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedsgd.errors import DataError
from fedsgd.network.heterogeneity import draw_log_normal_factors, read_link_trace


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,up\n0,1\n", "line 1: expected the header"),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n", "expected lines below the header"),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1\n", "line 2: expected 4 values"),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,x,0\n",
            "line 2: down_bits_per_second: expected a number",
        ),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,0,1,0\n",
            "line 2: up_bits_per_second: expected a number from 1e-09 to ",
        ),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1,-1\n",
            "latency_seconds: expected a number from 0 to ",
        ),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1,0\n0,1,1,0\n",
            "line 3: client: 0 is repeated",
        ),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1,0\n2,1,1,0\n", "1 is missing"),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n-1,1,1,0\n", "client: expected a whole number"),
    ],
)
def test_link_trace_with_invalid_line_raises_error_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "links.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_link_trace(path)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_link_trace(tmp_path / "none.csv")


def test_log_normal_factors_beyond_floats_raise_error() -> None:
    with pytest.raises(DataError, match="the factor of a client is 0 or infinite"):
        draw_log_normal_factors(0, "link", np.arange(2000), 400.0)
    assert math.isfinite(float(draw_log_normal_factors(0, "link", np.arange(2000), 5.0).max()))
