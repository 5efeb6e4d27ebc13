"""Tests of the table of bytes on the way between server and nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fedsgd.flower.deployment import transport_table
from fedsgd.flower.deployment.counting_proxy import SocketTraffic


def build_message(round: int, node: int, direction: str, n: int, process: int = 0) -> dict[str, Any]:
    """Return a message with n frame bytes, and with 0.5 s if a process replied."""
    sizes = {"round": round, "node": node, "direction": direction, "frame_bytes": n, "message_bytes": n + 300}
    return {**sizes, "process": process, "seconds": 0.5 if process else 0.0}


MESSAGES = [
    build_message(1, 0, "down", 1000),
    build_message(1, 0, "up", 10, 77),
    build_message(1, 1, "down", 2000),
    build_message(2, 0, "down", 1000),
    build_message(2, 0, "down", 1),  # the second message after RESYNC
    build_message(2, 0, "up", 10, 78),
    build_message(2, 0, "up", 5, 79),
]
SOCKET_TRAFFIC = {
    0: [
        SocketTraffic(9.0, "up", 1),
        SocketTraffic(10.5, "up", 100),
        SocketTraffic(11.0, "down", 7000),
        SocketTraffic(15.0, "up", 200),
        SocketTraffic(21.0, "up", 5),
    ],
    1: [],
}


def test_socket_bytes_belong_to_the_round_of_their_time(tmp_path: Path) -> None:
    """The nodes are ready at 10; the rounds end at 11 and 20."""
    rows = transport_table.transport_rows(MESSAGES, [10.0, 11.0, 20.0], SOCKET_TRAFFIC)
    transport_table.save(tmp_path / "transport.parquet", rows)
    assert pq.read_table(tmp_path / "transport.parquet").to_pylist() == rows
    assert list(rows[0]) == list(transport_table.COLUMNS)
    values_by_key = {(r["round"], r["node"], r["direction"]): list(r.values())[3:] for r in rows}
    assert values_by_key == {
        (0, 0, "up"): [0, 0, 0, 6, None, None],
        (1, 0, "down"): [1, 1000, 1300, 7000, None, None],
        (1, 0, "up"): [1, 10, 310, 100, 77, 0.5],
        (1, 1, "down"): [1, 2000, 2300, 0, None, None],
        (2, 0, "down"): [2, 1001, 1601, 0, None, None],
        (2, 0, "up"): [2, 15, 615, 200, 79, 1.0],
    }
    assert transport_table.sum_by_direction(rows) == {
        "down": {"messages": 4, "frame_bytes": 4001, "message_bytes": 5201, "socket_bytes": 7000, "outside_rounds": None},
        "up": {"messages": 3, "frame_bytes": 25, "message_bytes": 925, "socket_bytes": 300, "outside_rounds": 6},
    }


def test_socket_bytes_without_measurement_are_null() -> None:
    rows = transport_table.transport_rows(MESSAGES, [10.0, 11.0, 20.0], None)
    assert {row["socket_bytes"] for row in rows} == {None}
    assert {totals["socket_bytes"] for totals in transport_table.sum_by_direction(rows).values()} == {None}
