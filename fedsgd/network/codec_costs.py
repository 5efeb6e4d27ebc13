"""Codec costs: the work of encoding and decoding a message, from one data file that says how it was measured.

A cost is a number of bytes copied in memory, so that a device's copy rate turns it into seconds:

    copies · 4P + kept · 4k + fixed_bytes

P parameters, k coordinates that the message carries.

Rules of the lookup:

- Of several rows of a compressor, the row counts that has the most of its settings; of numbers, such as the bits of EDEN, the
  nearest. Settings that no row names, such as the format of a sparse message's values, do not count.
- A compressor with an inner `operator` costs its own row plus that of the operator. `per-layer` counts its `operator` on the
whole vector.
- A compressor that has no row costs nothing, and is named to the user, also one among the rules or the biases of `per-layer`.
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
"""A client's encoding of its update, alone or under error feedback; the server's decoding and adding of an update; the server's
encoding of a frame for the clients; a client's decoding of a message and what follows from it."""
ASSIGN_COMPRESSOR: Mapping[str, Any] = {"name": "changes"}
"""The MODEL frame that assigns values, and the REFERENCE frame."""
LOSSLESS_DENSE_COMPRESSOR: Mapping[str, Any] = {"name": "dense", "values": "float32", "entropy": True}
"""The whole model for a client that holds no model, where the policy sends differences."""


@dataclass(frozen=True)
class CodecCost:
    """Cost of one message.

    Attributes:
        copies: copies of the vector in memory.
        kept: copies of a coordinate, for each coordinate that the message carries.
        fixed_bytes: bytes copied for any message: calls from Python, headers, checksums.
    """

    copies: float = 0.0
    kept: float = 0.0
    fixed_bytes: float = 0.0

    def __add__(self, other: CodecCost) -> CodecCost:
        return CodecCost(self.copies + other.copies, self.kept + other.kept, self.fixed_bytes + other.fixed_bytes)

    def count_bytes(self, parameters: int, n_coordinates: float) -> float:
        """Return the bytes copied for a message of `n_coordinates` coordinates."""
        return FLOAT_BYTES * (self.copies * parameters + self.kept * n_coordinates) + self.fixed_bytes


@cache
def read_cost_table() -> Mapping[str, Any]:
    """Return the data file: when and where it was measured, and a list of rows for each `CodecJob`."""
    return tomllib.loads(COST_TABLE_PATH.read_text(encoding="utf-8"))


def look_up_cost(job: CodecJob, compressor: Mapping[str, Any]) -> tuple[CodecCost, tuple[str, ...]]:
    """Look up what a job costs.

    Args:
        job: the job.
        compressor: the compressor's table, as a scenario has it.

    Returns:
        The cost, and the names of compressors in it that the data file does not have.
    """
    row = _find_row(job, compressor)
    if row is None:
        return CodecCost(), (str(compressor.get("name")),)
    cost = CodecCost(row["copies"], row["kept"], row["fixed_bytes"])
    inner = compressor.get("op")
    inner_cost, missing = look_up_cost(job, inner) if isinstance(inner, Mapping) else (CodecCost(), ())
    uncounted = (name for part in _iterate_uncounted_operators(compressor) for name in look_up_cost(job, part)[1])
    return cost + inner_cost, tuple(dict.fromkeys([*missing, *uncounted]))


def _iterate_uncounted_operators(compressor: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the operators of `per-layer` whose tensors count as those of its `operator`."""
    parts = [compressor.get("biases"), *(rule.get("op") for rule in compressor.get("rules", ()))]
    yield from (part for part in parts if isinstance(part, Mapping))


def select_uplink_job(uplink: Mapping[str, Any]) -> CodecJob:
    """Return the client's job: with error feedback where [uplink] asks for it and the compressor has no memory of its own."""
    operators = {row["compressor"]["name"] for row in read_cost_table()["encode_with_feedback"]}
    feedback = uplink.get("error_feedback", "none") != "none" and uplink["compressor"].get("name") in operators
    return "encode_with_feedback" if feedback else "encode"


def _find_row(job: CodecJob, compressor: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the row that fits a compressor best, None if none has its name."""
    rows: list[Mapping[str, Any]] = [row for row in read_cost_table()[job] if _is_match(row["compressor"], compressor)]
    return min(rows, key=lambda row: _measure_distance(row["compressor"], compressor), default=None)


def _is_match(key: Mapping[str, Any], compressor: Mapping[str, Any]) -> bool:
    """Return whether a compressor has every setting of a row's key that is not a number."""
    return all(_is_number(value) or compressor.get(name) == value for name, value in key.items())


def _measure_distance(key: Mapping[str, Any], compressor: Mapping[str, Any]) -> tuple[int, float]:
    """Return how far a row's key is: fewer equal settings first, then numbers farther apart."""
    return -sum(not _is_number(value) for value in key.values()), sum(_iterate_ratio_distances(key, compressor))


def _iterate_ratio_distances(key: Mapping[str, Any], compressor: Mapping[str, Any]) -> Iterator[float]:
    """Yield the distance of each number of a row's key, by ratio."""
    for name, value in key.items():
        if _is_number(value):
            wanted = compressor.get(name, value)
            yield abs(math.log(value / wanted)) if _is_number(wanted) and wanted > 0 else math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
