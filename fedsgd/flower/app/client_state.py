"""State of an app's client on its node: amount, place, and the last reply with it.

P numbers in the vector of the model's arrays.
"""

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
    """Return the terms of a new session.

    Args:
        uplink: settings of the updates.
        downlink: settings of the model's way to the nodes.
        model: names, shapes and order of the app's arrays.
        seed: seed of the randomness that both ends share.
        previous: terms of the strategy's session before, whose state nodes remove; None if there is none.

    Raises:
        ScenarioError: a compressor cannot be used for the model.
    """
    with errors_in_section("compressor"):
        uplink.build_scheme().check_layout(array_layout.layout)
    with errors_in_section("downlink.compressor"):
        downlink.compressor.check_layout(array_layout.layout)
    session = next(_SESSION_COUNTER)
    terms = CompressionSettings(
        uplink, downlink, array_layout, seed, session, first=session if previous_settings is None else previous_settings.first
    )
    return replace(terms, state_bytes=measure_state_bytes(terms.build_plan()))


def measure_state_bytes(plan: FederationPlan) -> int:
    """Return the size of a client's state after two rounds of random updates, 0 if the scheme stores nothing but a round."""
    state = representative_state(plan, plan.layout.size)
    return compute_file_size(state) if state.state_if_accepted else 0


def describe_state(settings: CompressionSettings, folder: Path | None = None) -> str:
    """Return a line about the state of a client: amount, place, and when it is removed.

    Args:
        terms: the session's terms.
        folder: the folder on the client's node; None on the server, for all clients.
    """
    whose, place = ("each client", "on the disk of its node") if folder is None else ("this client", f"in {folder}")
    n_bytes, size = _compute_stored_bytes(settings), settings.array_layout.layout.size
    amount = "none but the number of its last round"
    if n_bytes:
        amount = f"up to {format_bytes(n_bytes)} ({n_bytes / size:.3g} bytes x {size:,} numbers)"
        is_model = not settings.state_bytes
        amount = f"the model that it holds, {amount}" if is_model else f"{amount} and the app's records of its last reply"
        place = f"at most twice that with a newer model or state, {place}"
    return f"state of {whose}: {amount}, {place}, removed when another run begins {RETENTION_DAYS} days after its last use"


def open_store(context: Context, settings: CompressionSettings, is_training: bool) -> FolderStore:
    """Open the folder of a session on this node; where it is new, log a line about it and remove the folder that it replaces.

    Args:
        context: Flower's context of the node.
        terms: the session's terms.
        trains: True for a message that changes the client's state, for which there must be room beforehand. An evaluation
            stores the model at most, for which there must be room when it is stored.

    Raises:
        ModelError: the app has a record of its own under our name in `context.state`.
        OutputError: the folder cannot be used, or there is no room for the state.
        ScenarioError: the budget cannot be read.
    """
    store = open_state_store(
        context, f"app-{settings.first}", settings.session, 2 * _compute_stored_bytes(settings) * is_training
    )
    if store.is_new:
        _LOG.info("fedsgd: %s", describe_state(settings, store.folder))
    return store


def attach_reply(state: ClientState, content: RecordDict) -> ClientState:
    """Return the state to store with a whole reply, if that must not be made twice: the scheme would change its state twice.

    State and reply are one file, so there is never one without the other.
    """
    pending = state.uncommitted_state
    if pending is None or pending.reply_frame is None:
        return state
    return replace(state, uncommitted_state=replace(pending, reply_frame=pack_records(content)))


def revert_missing_coordinates(state: ClientState, missing_mask: BoolArray) -> ClientState:
    """Return the state after a reply in which some coordinates are missing: for these, the reply counts as lost.

    A scheme encodes what it held back of all coordinates, but the server leaves out the arrays that the reply does not have.

    Args:
        state: the state after the reply.
        missing: [P] True for the coordinates that the reply does not have.
    """
    pending = state.uncommitted_state
    if pending is None or not missing_mask.any():
        return state
    lost = apply_rollback(pending.state_if_accepted, pending.rollback)
    vectors = {
        name: value for name, value in pending.state_if_accepted.items() if value.shape == missing_mask.shape and name in lost
    }
    kept = {name: np.where(missing_mask, lost[name], value) for name, value in vectors.items()}
    return replace(state, uncommitted_state=replace(pending, state_if_accepted={**pending.state_if_accepted, **kept}))


def _has_stored_model(settings: CompressionSettings) -> bool:
    return settings.downlink.build_downlink().clients_keep_model


def _compute_stored_bytes(settings: CompressionSettings) -> int:
    """Return the size of a client's state and of the model that it holds; the app's own records of a reply come in addition."""
    return settings.state_bytes + 4 * settings.array_layout.layout.size * _has_stored_model(settings)
