"""Stored state of a Flower app's client: the state's size, its folder on the node, and the last reply in the same file."""

from __future__ import annotations

import itertools
from dataclasses import replace
from logging import getLogger
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict

from fedsgd.compression import apply_rollback
from fedsgd.config.quantities import format_bytes
from fedsgd.experiment.state_budget import representative_state
from fedsgd.federation import FederationPlan
from fedsgd.federation.client_state import ClientState
from fedsgd.flower.app.array_layout import ArrayLayout
from fedsgd.flower.app.settings import CompressionSettings
from fedsgd.flower.records import pack_records
from fedsgd.flower.state_directory import RETENTION_DAYS, open_state_store
from fedsgd.numerics.arrays import BoolArray
from fedsgd.runtime.stores.directory import FolderStore, compute_file_size
from fedsgd.scenario.parsing import errors_in_section
from fedsgd.scenario.resolution import build_downlink, build_scheme
from fedsgd.scenario.sections import DownlinkConfig, UplinkConfig

_LOG = getLogger("flwr")
_SESSION_COUNTER = itertools.count(1)


def create_settings(
    uplink: UplinkConfig,
    downlink: DownlinkConfig,
    array_layout: ArrayLayout,
    seed: int,
    previous_settings: CompressionSettings | None,
) -> CompressionSettings:
    """Return the settings of a new session. Nodes remove the state of the strategy's previous session.

    Raises:
        ScenarioError: a compressor cannot be used for the model.
    """
    with errors_in_section("compressor"):
        build_scheme(uplink).check_layout(array_layout.layout)
    with errors_in_section("downlink.compressor"):
        downlink.compressor.check_layout(array_layout.layout)
    session = next(_SESSION_COUNTER)
    settings = CompressionSettings(
        uplink, downlink, array_layout, seed, session, first=session if previous_settings is None else previous_settings.first
    )
    return replace(settings, state_bytes=measure_state_bytes(settings.build_plan()))


def measure_state_bytes(plan: FederationPlan) -> int:
    """Return the bytes of a client's state after two rounds of random updates; 0 if it is only a round number."""
    state = representative_state(plan, plan.layout.size)
    return compute_file_size(state) if state.state_if_accepted else 0


def describe_state(settings: CompressionSettings, folder: Path | None = None) -> str:
    """Return a log line about the stored state of all clients, or of the client whose folder is given."""
    client, place = ("each client", "on the disk of its node") if folder is None else ("this client", f"in {folder}")
    n_bytes, size = _compute_stored_bytes(settings), settings.array_layout.layout.size
    content = "only the number of its last round"
    if n_bytes:
        amount = f"up to {format_bytes(n_bytes)} ({n_bytes / size:.3g} bytes x {size:,} numbers)"
        is_model = not settings.state_bytes
        content = f"its model, {amount}" if is_model else f"{amount} of state and its last reply's other records"
        content += " (at most twice that while a newer version is written)"
    return f"{client} stores {content} {place}; a later run removes it {RETENTION_DAYS} days after its last use"


def open_store(context: Context, settings: CompressionSettings, is_training: bool) -> FolderStore:
    """Open the folder of a session on this node. For a new folder, log a line and remove folders of earlier sessions.

    Before training, disk and budget must have space for the state. An evaluation stores at most the model, for which space is
    checked at its write.
    """
    store = open_state_store(
        context, f"app-{settings.first}", settings.session, 2 * _compute_stored_bytes(settings) * is_training
    )
    if store.is_new:
        _LOG.info("fedsgd: %s", describe_state(settings, store.folder))
    return store


def attach_reply(state: ClientState, content: RecordDict) -> ClientState:
    """Return the state with the whole reply, if the scheme stores its reply; otherwise return the state unchanged.

    A repeated message gets the stored reply, because a second reply would change the scheme's state twice. One file has both
    state and reply, so neither is stored without the other.
    """
    uncommitted = state.uncommitted_state
    if uncommitted is None or uncommitted.reply_frame is None:
        return state
    return replace(state, uncommitted_state=replace(uncommitted, reply_frame=pack_records(content)))


def revert_missing_coordinates(state: ClientState, missing_mask: BoolArray) -> ClientState:
    """Return the state after a reply that lacks the coordinates in `missing_mask` [P], for which the reply counts as lost.

    A scheme encodes the residual of all coordinates, but the server omits the arrays that the reply lacks.
    """
    uncommitted = state.uncommitted_state
    if uncommitted is None or not missing_mask.any():
        return state
    accepted_state = uncommitted.state_if_accepted
    lost = apply_rollback(accepted_state, uncommitted.rollback)
    vectors = {name: value for name, value in accepted_state.items() if value.shape == missing_mask.shape and name in lost}
    reverted = {name: np.where(missing_mask, lost[name], value) for name, value in vectors.items()}
    return replace(state, uncommitted_state=replace(uncommitted, state_if_accepted={**accepted_state, **reverted}))


def _has_stored_model(settings: CompressionSettings) -> bool:
    return build_downlink(settings.downlink).clients_keep_model


def _compute_stored_bytes(settings: CompressionSettings) -> int:
    """Return the bytes of a client's state and its model, without the app's own records in a stored reply."""
    return settings.state_bytes + 4 * settings.array_layout.layout.size * _has_stored_model(settings)
