"""Table transport.parquet: bytes of frames, of Flower messages and on sockets, for each round, node and direction.

| column | type | meaning |
|---|---|---|
| round | int | from 1; 0: before the first round and after the last (registration, the app's bundle, polls) |
| node | int | partition-id of the node |
| direction | str | "down" or "up" |
| messages | int | messages between the server and the node |
| frame_bytes | int | bytes of the frames in the messages; a frame that several of the node's clients share counts once |
| message_bytes | int | bytes of the messages as Flower stores and sends them |
| socket_bytes | int | all bytes on the node's connections during the round; null if not measured |
| process | int | id of the process that answered last; null without an answer |
| seconds | float | sum over messages of the time from the node's receipt to its answer; null without an answer |

The table of a resumed deployment begins with the first round after the checkpoint.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsgd.flower.deployment.counting_proxy import SocketTraffic
from fedsgd.storage.parquet import TableWriter

FILE_NAME = "transport.parquet"
COLUMNS: Mapping[str, type] = {
    "round": int,
    "node": int,
    "direction": str,
    "messages": int,
    "frame_bytes": int,
    "message_bytes": int,
    "socket_bytes": int,
    "process": int,
    "seconds": float,
}
TransportRow = dict[str, Any]
_DIRECTIONS = ("down", "up")


def transport_rows(
    messages: Sequence[Mapping[str, Any]],
    round_boundaries: Sequence[float],
    socket_traffic: Mapping[int, Sequence[SocketTraffic]] | None,
    first_round: int = 1,
) -> list[TransportRow]:
    """Return a row for each round, node and direction with any traffic, in this order.

    Args:
        messages: messages with the fields of `fedsgd.flower.runtime.grid_runtime.MessageEvent`.
        round_boundaries: [R + 1] seconds by the monotonic clock: when the nodes were ready, and the end of each round.
        socket_traffic: bytes that each node's proxy counted, by partition; None if not measured.
        first_round: round whose end follows the first of `round_boundaries`; later than 1 in a resumed run.
    """
    row_by_key: dict[tuple[int, int, str], TransportRow] = {}

    def find_row(round: int, node: int, direction: str) -> TransportRow:
        key = {"round": round, "node": node, "direction": direction}
        totals = {"messages": 0, "frame_bytes": 0, "message_bytes": 0, "socket_bytes": None if socket_traffic is None else 0}
        return row_by_key.setdefault((round, node, direction), {**key, **totals, "process": None, "seconds": None})

    for message in messages:
        row = find_row(message["round"], message["node"], message["direction"])
        row["messages"] += 1
        for column in ("frame_bytes", "message_bytes"):
            row[column] += message[column]
        if message["process"]:
            row["process"], row["seconds"] = message["process"], (row["seconds"] or 0.0) + message["seconds"]
    for node, events in (socket_traffic or {}).items():
        for event in events:
            position = bisect_left(round_boundaries, event.time)
            round = first_round - 1 + position if 0 < position < len(round_boundaries) else 0
            find_row(round, node, event.direction)["socket_bytes"] += event.n_bytes
    return [row_by_key[key] for key in sorted(row_by_key)]


def sum_by_direction(rows: Sequence[TransportRow]) -> dict[str, dict[str, int | None]]:
    """Return each direction's totals over all rounds, and `outside_rounds`: bytes on sockets before and after the rounds."""
    return {direction: dict(_sum_rows([row for row in rows if row["direction"] == direction])) for direction in _DIRECTIONS}


def _sum_rows(rows: Sequence[TransportRow]) -> Iterator[tuple[str, int | None]]:
    round_rows = [row for row in rows if row["round"]]
    yield "messages", sum(row["messages"] for row in round_rows)
    for column in ("frame_bytes", "message_bytes", "socket_bytes"):
        sizes = [row[column] for row in round_rows]
        yield column, None if None in sizes or not sizes else sum(sizes)
    outside_sizes = [row["socket_bytes"] for row in rows if not row["round"]]
    yield "outside_rounds", None if None in outside_sizes or not outside_sizes else sum(outside_sizes)


def save(path: Path, rows: Sequence[TransportRow]) -> None:
    """Write the rows to a Parquet file."""
    table = TableWriter(path, COLUMNS)
    for row in rows:
        table.append(row)
    table.close()
