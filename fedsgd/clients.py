"""What each client remembers between the rounds in which it takes part.

An upload may never arrive, so what a client remembers is committed in two phases: `pending` with the upload, final when the
next TASK frame says which round the server accepted last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedsgd.compress import ClientId, Patch, State, undone


@dataclass(frozen=True, eq=False)
class Pending:
    """The state after the reply of `round` if the server accepts it, and what to undo in it if it does not."""

    round: int
    if_received: State
    undo: Mapping[str, Patch | None]


@dataclass(frozen=True, eq=False)
class ClientState:
    """scheme: what the scheme remembered before its last reply; pending: what it remembers once that reply's fate is known."""

    scheme: State = field(default_factory=dict)
    pending: Pending | None = None

    def settle(self, round: int, acknowledged: int) -> State:
        """The scheme's state for `round`, now that the server says which round's reply it accepted last (0: none).

        A TASK that is delivered twice starts twice from the same state. ValueError if the server knows of a reply that this
        state does not: it was restored from an older copy, and what it holds back may have been delivered since.
        """
        known = 0 if self.pending is None else self.pending.round
        if acknowledged > known:
            raise ValueError(f"the server accepted a reply of round {acknowledged}, this client's state ends at round {known}")
        if self.pending is None or self.pending.round == round:
            return self.scheme
        if acknowledged == self.pending.round:
            return self.pending.if_received
        return undone(self.pending.if_received, self.pending.undo)


class ClientStore(Protocol):
    """Where client states live. A client that was never seen has an empty state."""

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it."""


class MemoryStore:
    """In memory, for the clients that have been seen."""

    def __init__(self) -> None:
        self._states: dict[ClientId, ClientState] = {}

    def load(self, client: ClientId) -> ClientState:
        return self._states.get(client, ClientState())

    def save(self, client: ClientId, state: ClientState) -> None:
        self._states[client] = state
