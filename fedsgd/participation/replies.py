"""Which replies make it into a round."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from fedsgd.rng import stream


def in_time(seconds: Mapping[int, float], wanted: int, deadline: float | None) -> list[int]:
    """The clients whose replies are accepted, ascending: the first `wanted` of those that took at most `deadline` seconds.

    seconds: client → how long it took; of equally fast clients the lower one comes first. Over-selection takes the first m of
    more than m clients that were asked (Bonawitz et al. 2019, section 2.2). deadline: None for no such limit.
    """
    punctual = ((took, client) for client, took in seconds.items() if deadline is None or took <= deadline)
    return sorted(client for _, client in heapq.nsmallest(wanted, punctual))


def lost(seed: int, round: int, client: int, probability: float) -> bool:
    """Whether a client's reply gets lost on the way, with `probability` in [0, 1]: each independently of all others."""
    return bool(stream(seed, "dropout", round, client).random() < probability)
