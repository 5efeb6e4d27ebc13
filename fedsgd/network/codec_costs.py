"""Codec costs: the work of encoding and decoding a message, from a data file that also describes the measurement.

A cost is a number of bytes copied in memory, which a device's copy rate converts to seconds:

    copies · 4P + kept · 4k + fixed_bytes

Rules of the lookup:

- Of several rows of a compressor, the row with the most equal settings counts; of rows that differ in a number, such as the
  bits of EDEN, the nearest row counts. A row with a number that the compressor does not set, such as the chunk of top-k, counts
  only if there is no other row. Settings that no row has, such as the format of sparse values, do not matter.
- A compressor with an inner operator (key `op`) costs its own row plus the row of the operator. For `per-layer`, the operator
  counts for the whole vector.
- A compressor without a row costs nothing and is reported to the user, also in the rules or the biases of `per-layer`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fedsgd.network.round_times import FLOAT_BYTES

COST_TABLE_PATH = Path(__file__).with_name("codec_costs.toml")
CodecJob = Literal["encode", "encode_with_feedback", "add", "send", "receive"]
"""Work of encoding or decoding.

"encode" and "encode_with_feedback": a client encodes its update, without or with error feedback. "add": the server decodes and
adds an update. "send": the server encodes a frame for the clients. "receive": a client decodes a message and applies it.
"""
ASSIGN_COMPRESSOR: Mapping[str, Any] = {"name": "changes"}
"""Compressor of a MODEL frame that assigns changed values, and of a REFERENCE frame."""
LOSSLESS_DENSE_COMPRESSOR: Mapping[str, Any] = {"name": "dense", "values": "float32", "entropy": True}
"""Compressor of the whole model for a client without a model, under a downlink policy that sends differences."""


@dataclass(frozen=True)
class CodecCost:
    """Cost of one message: copies of the whole vector, copies of each coordinate that is sent, and bytes for any message.

    `fixed_bytes` stands for calls from Python, headers and checksums.

    >>> CodecCost(copies=2, kept=30, fixed_bytes=1000).count_bytes(parameters=10_000, n_coordinates=100)
    93000
    """

    copies: float = 0.0
    kept: float = 0.0
    fixed_bytes: float = 0.0

    def __add__(self, other: CodecCost) -> CodecCost:
        return CodecCost(self.copies + other.copies, self.kept + other.kept, self.fixed_bytes + other.fixed_bytes)

    def count_bytes(self, parameters: int, n_coordinates: float) -> float:
        """Return the number of bytes copied for a message of `n_coordinates` coordinates."""
        return FLOAT_BYTES * (self.copies * parameters + self.kept * n_coordinates) + self.fixed_bytes


@cache
def read_cost_table() -> Mapping[str, Any]:
    """Return the data file: a description of the measurement, and a list of rows for each `CodecJob`."""
    return tomllib.loads(COST_TABLE_PATH.read_text(encoding="utf-8"))


def look_up_cost(job: CodecJob, compressor: Mapping[str, Any]) -> tuple[CodecCost, tuple[str, ...]]:
    """Return (the cost of a job, the names of compressors without a row) for a compressor's table in a scenario."""
    row = _find_row(job, compressor)
    if row is None:
        return CodecCost(), (str(compressor.get("name")),)
    cost = CodecCost(row["copies"], row["kept"], row["fixed_bytes"])
    inner = compressor.get("op")
    inner_cost, missing = look_up_cost(job, inner) if isinstance(inner, Mapping) else (CodecCost(), ())
    uncounted = (name for part in _iterate_uncounted_operators(compressor) for name in look_up_cost(job, part)[1])
    return cost + inner_cost, tuple(dict.fromkeys([*missing, *uncounted]))


def _iterate_uncounted_operators(compressor: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the operators of `per-layer` for single tensors, which count like tensors of its main operator."""
    parts = [compressor.get("biases"), *(rule.get("op") for rule in compressor.get("rules", ()))]
    yield from (part for part in parts if isinstance(part, Mapping))


def select_uplink_job(uplink: Mapping[str, Any]) -> CodecJob:
    """Return the job of a client: with error feedback if [uplink] sets it and the compressor is an operator without memory."""
    operators = {row["compressor"]["name"] for row in read_cost_table()["encode_with_feedback"]}
    feedback = uplink.get("error_feedback", "none") != "none" and uplink["compressor"].get("name") in operators
    return "encode_with_feedback" if feedback else "encode"


def _find_row(job: CodecJob, compressor: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the row that matches a compressor best; None if no row has its name."""
    rows: list[Mapping[str, Any]] = [row for row in read_cost_table()[job] if _is_match(row["compressor"], compressor)]
    return min(rows, key=lambda row: _measure_distance(row["compressor"], compressor), default=None)


def _is_match(key: Mapping[str, Any], compressor: Mapping[str, Any]) -> bool:
    """Return True if a compressor has each setting of a row's key that is not a number."""
    return all(_is_number(value) or compressor.get(name) == value for name, value in key.items())


def _measure_distance(key: Mapping[str, Any], compressor: Mapping[str, Any]) -> tuple[int, int, float]:
    """Return the distance of a row's key: by the numbers that the compressor does not set, the settings, and the ratios."""
    n_unset = sum(_is_number(value) and name not in compressor for name, value in key.items())
    return n_unset, -len(key), sum(_iterate_ratio_distances(key, compressor))


def _iterate_ratio_distances(key: Mapping[str, Any], compressor: Mapping[str, Any]) -> Iterator[float]:
    """Yield the distance of each number of a row's key, the absolute logarithm of a ratio."""
    for name, value in key.items():
        if _is_number(value):
            setting = compressor.get(name, value)
            yield abs(math.log(value / setting)) if _is_number(setting) and setting > 0 else math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
