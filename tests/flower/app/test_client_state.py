"""Size of stored client state: the log line, and the files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.messages import decode_reply
from fedsgd.flower.app.settings import decode_settings
from fedsgd.flower.records import unpack_records
from fedsgd.runtime.stores.directory import FolderStore, compute_file_size
from tests.flower.app.fixed_updates import (
    EXACT_SETTINGS,
    NODES,
    ROUNDED_SETTINGS,
    SETTINGS,
    SIZE,
    create_strategy,
    find_client_folder,
    make_grid,
    make_model,
    run_rounds,
)

MARGIN = " (at most twice that while a newer version is written)"
STATE_SIZES = [
    ({"error_feedback": "none", "downlink": None}, "only the number of its last round"),
    ({"error_feedback": "none"}, "its model, up to 884 B (4 bytes x 221 numbers)" + MARGIN),
    ({"downlink": None}, "up to 1.48 kB (6.68 bytes x 221 numbers) of state and its last reply's other records" + MARGIN),
    ({}, "up to 2.36 kB (10.7 bytes x 221 numbers) of state and its last reply's other records" + MARGIN),
]


@pytest.mark.parametrize(("settings", "amount"), STATE_SIZES)
def test_state_size_of_a_session_is_logged_once_by_the_server_and_each_node(
    state_root: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], amount: str
) -> None:
    grid = make_grid(nodes=NODES[:2])
    with caplog.at_level(logging.INFO, "flwr"):
        list(run_rounds(CompressedStrategy(FedAvg(), **{**SETTINGS, **settings}), grid, make_model(), 3))
    lines = [record.message for record in caplog.records if " stores " in record.message]
    removal = "a later run removes it 7 days after its last use"
    node_lines = [
        f"fedsgd: this client stores {amount} in {find_client_folder(state_root, node)}; {removal}"
        for node in grid.nodes.values()
    ]
    assert lines[0] == f"fedsgd: each client stores {amount} on the disk of its node; {removal}"
    assert sorted(lines[1:]) == sorted(node_lines)


@pytest.mark.sampled
@pytest.mark.parametrize(("settings", "downlink"), EXACT_SETTINGS + ROUNDED_SETTINGS)
def test_measured_state_size_is_the_size_of_the_stored_state(
    state_root: Path, settings: dict[str, Any], downlink: dict[str, Any] | None
) -> None:
    grid, strategy = make_grid(nodes=NODES[:2]), CompressedStrategy(FedAvg(), downlink=downlink, **settings)
    list(run_rounds(strategy, grid, make_model(), 4))
    assert strategy._session is not None
    session_settings = strategy._session.settings
    folder = find_client_folder(state_root, grid.nodes[NODES[1]])
    (client,) = folder.glob("client-*")
    state = FolderStore(folder).load(int(client.name.removeprefix("client-")))
    if not session_settings.state_bytes:
        assert not state.state_if_accepted
        return
    uncommitted = state.uncommitted_state
    assert uncommitted is not None
    assert uncommitted.reply_frame is not None
    (frame,) = decode_reply(unpack_records(uncommitted.reply_frame), session_settings.array_layout).frames
    stored_bytes = compute_file_size(replace(state, uncommitted_state=replace(uncommitted, reply_frame=frame)))
    assert 0.9 * session_settings.state_bytes <= stored_bytes <= 1.1 * session_settings.state_bytes, (
        "the encoded size depends on the positions and values"
    )


def test_state_size_and_first_session_are_encoded_in_the_settings() -> None:
    settings = replace(create_strategy()._get_session(make_model()).settings, first=3)
    assert settings.state_bytes > 4 * SIZE
    assert decode_settings(settings.encode()) == settings
