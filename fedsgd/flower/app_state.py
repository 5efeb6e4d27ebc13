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

from fedsgd.arrays import Bools
from fedsgd.clients import ClientState
from fedsgd.compress import undone
from fedsgd.flower.app_model import Arrangement
from fedsgd.flower.app_settings import Terms
from fedsgd.flower.place import DAYS_KEPT, store_of
from fedsgd.flower.records import pack_records
from fedsgd.rounds import Plan
from fedsgd.runtime.folder import FolderStore, file_bytes
from fedsgd.schema import placed
from fedsgd.sizes import size_text
from fedsgd.state_plan import typical_state
from fedsgd.tables import Downlink, Uplink

_LOG = getLogger("flwr")
_SESSIONS = itertools.count(1)


def begin_terms(uplink: Uplink, downlink: Downlink, model: Arrangement, seed: int, previous: Terms | None) -> Terms:
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
    with placed("compressor"):
        uplink.scheme().check_layout(model.layout)
    with placed("downlink.compressor"):
        downlink.compressor.check_layout(model.layout)
    session = next(_SESSIONS)
    terms = Terms(uplink, downlink, model, seed, session, first=session if previous is None else previous.first)
    return replace(terms, state_bytes=measure_state(terms.plan()))


def measure_state(plan: Plan) -> int:
    """Return the size of a client's state after two rounds of random updates, 0 if the scheme stores nothing but a round."""
    state = typical_state(plan, plan.layout.size)
    return file_bytes(state) if state.latest else 0


def describe_state(terms: Terms, folder: Path | None = None) -> str:
    """Return a line about the state of a client: amount, place, and when it is removed.

    Args:
        terms: the session's terms.
        folder: the folder on the client's node; None on the server, for all clients.
    """
    whose, place = ("each client", "on the disk of its node") if folder is None else ("this client", f"in {folder}")
    n_bytes, size = _stored_bytes(terms), terms.model.layout.size
    amount = "none but the number of its last round"
    if n_bytes:
        amount = f"up to {size_text(n_bytes)} ({n_bytes / size:.3g} bytes x {size:,} numbers)"
        is_model = not terms.state_bytes
        amount = f"the model that it holds, {amount}" if is_model else f"{amount} and the app's records of its last reply"
        place = f"at most twice that with a newer model or state, {place}"
    return f"state of {whose}: {amount}, {place}, removed when another run begins {DAYS_KEPT} days after its last use"


def open_store(context: Context, terms: Terms, trains: bool) -> FolderStore:
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
    store = store_of(context, f"app-{terms.first}", terms.session, 2 * _stored_bytes(terms) * trains)
    if store.is_new:
        _LOG.info("fedsgd: %s", describe_state(terms, store.folder))
    return store


def with_reply(state: ClientState, content: RecordDict) -> ClientState:
    """Return the state to store with a whole reply, if that must not be made twice: the scheme would change its state twice.

    State and reply are one file, so there is never one without the other.
    """
    pending = state.pending
    if pending is None or pending.reply is None:
        return state
    return replace(state, pending=replace(pending, reply=pack_records(content)))


def without_loss(state: ClientState, missing: Bools) -> ClientState:
    """Return the state after a reply in which some coordinates are missing: for these, the reply counts as lost.

    A scheme encodes what it held back of all coordinates, but the server leaves out the arrays that the reply does not have.

    Args:
        state: the state after the reply.
        missing: [P] True for the coordinates that the reply does not have.
    """
    pending = state.pending
    if pending is None or not missing.any():
        return state
    lost = undone(pending.if_received, pending.undo)
    vectors = {name: value for name, value in pending.if_received.items() if value.shape == missing.shape and name in lost}
    kept = {name: np.where(missing, lost[name], value) for name, value in vectors.items()}
    return replace(state, pending=replace(pending, if_received={**pending.if_received, **kept}))


def _holds_model(terms: Terms) -> bool:
    return terms.downlink.link().needs_held


def _stored_bytes(terms: Terms) -> int:
    """Return the size of a client's state and of the model that it holds; the app's own records of a reply come in addition."""
    return terms.state_bytes + 4 * terms.model.layout.size * _holds_model(terms)
