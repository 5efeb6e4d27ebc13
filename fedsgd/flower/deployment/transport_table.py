"""What became of the frames on their way: frame → Flower message → socket, for each round, node and direction.

| column | type | meaning |
|---|---|---|
| round | int | from 1; 0: before the first round and after the last (registration, the app's bundle, polls) |
| node | int | the partition-id |
| direction | str | "down" or "up" |
| messages | int | between the server and the node |
| frame_bytes | int | of the frames in them; one that several of the node's clients share is in a message once |
| message_bytes | int | of the objects that Flower makes of them |
| socket_bytes | int | all that the node's connections carried meanwhile; null if it was not measured |
| process | int | the id of the process that answered last; null if none did |
| seconds | float | that it took, from having the message to its answer; null if none did |
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
) -> list[TransportRow]:
    """A row for each round, node and direction in which anything crossed, in this order. carried: the messages, as
    `fedsgd.flower.runtime.grid_runtime.MessageEvent` has them; ends: when the nodes were ready, and when each round was over;
    seen:
    what each
    node's proxy saw, None if nothing was measured."""
    made: dict[tuple[int, int, str], TransportRow] = {}

    def find_row(round: int, node: int, direction: str) -> TransportRow:
        empty = dict.fromkeys(("messages", "frame_bytes", "message_bytes"), 0)
        start = {
            "round": round,
            "node": node,
            "direction": direction,
            **empty,
            "socket_bytes": None if socket_traffic is None else 0,
        }
        return made.setdefault((round, node, direction), {**start, "process": None, "seconds": None})

    for message in messages:
        found = find_row(message["round"], message["node"], message["direction"])
        found["messages"] += 1
        for key in ("frame_bytes", "message_bytes"):
            found[key] += message[key]
        if message["process"]:
            found["process"], found["seconds"] = message["process"], (found["seconds"] or 0.0) + message["seconds"]
    for node, events in (socket_traffic or {}).items():
        for event in events:
            round = bisect_left(round_boundaries, event.time)
            find_row(round if 0 < round < len(round_boundaries) else 0, node, event.direction)["socket_bytes"] += event.n_bytes
    return [made[key] for key in sorted(made)]


def sum_by_direction(rows: Sequence[TransportRow]) -> dict[str, dict[str, int | None]]:
    """Direction → bytes in rounds of each kind, and `outside_rounds`, those of sockets before and after."""
    return {direction: dict(_sum_rows([row for row in rows if row["direction"] == direction])) for direction in _DIRECTIONS}


def _sum_rows(rows: Sequence[TransportRow]) -> Iterator[tuple[str, int | None]]:
    within = [row for row in rows if row["round"]]
    yield "messages", sum(row["messages"] for row in within)
    for key in ("frame_bytes", "message_bytes", "socket_bytes"):
        figures = [row[key] for row in within]
        yield key, None if None in figures or not figures else sum(figures)
    outside = [row["socket_bytes"] for row in rows if not row["round"]]
    yield "outside_rounds", None if None in outside or not outside else sum(outside)


def save(path: Path, rows: Sequence[TransportRow]) -> None:
    """As Parquet."""
    table = TableWriter(path, COLUMNS)
    for row in rows:
        table.append(row)
    table.close()
