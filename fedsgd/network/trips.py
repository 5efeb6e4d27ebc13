"""What the clients of a stretch of rounds carried and did, as a ledger has it.

T trips: one for each client of each round that was sent a message.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsgd.arrays import F64, I64, Bools


@dataclass(frozen=True, eq=False)
class Trips:
    """Arrays [T], ascending by round, then client. down_bytes, up_bytes: of all its frames in the round; down_messages,
    up_messages: how many messages these were (two each way where the client asked for another one); examples: that its steps
    took in, each counted as often as it was in a batch, 0 if nothing was heard of it; taken: whether its reply is in the
    model.

    For each of the rounds first, first + 1, ... [R] down_distinct_bytes: those of the downlink with each distinct frame counted
    once.
    """

    first: int
    round: I64
    client: I64
    down_bytes: I64
    up_bytes: I64
    down_messages: I64
    up_messages: I64
    examples: I64
    taken: Bools
    down_distinct_bytes: F64
