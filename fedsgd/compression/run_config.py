"""Settings of a run, as far as they decide whether a compressor suits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsgd.numerics.parameter_layout import ParameterLayout

FeedbackPolicy = Literal["none", "persist", "decay", "reset"]
"""Policy for what a client has not sent: see `[uplink] error_feedback`."""
STALE_ROUNDS = 100
"""Mean number of rounds from one in which a client takes part to its next, from which residuals that persist gain nothing.

Top-k 1 % on MNIST, two classes a client, 200 rounds, three seeds (scenarios/participation). With two of a hundred clients a
round: accuracy 0.824 with residuals that persist, 0.815 if they decay, 0.792 without them; with one: 0.695, 0.724, 0.717.
"""
MAX_NOISE_RATIO = 4.0
"""Largest error of the mean over a cohort, as a multiple of an update's energy, that costs next to nothing.

Scaled rand-k in the quickstart's place of top-k, at the best of three step sizes: accuracy 0.985, 0.978 and 0.976 at an error
of 0.3, 0.9 and 1.9; 0.963 at 4.9, with a fifth of the step size; 0.869 at 9.9, where the scenario's own step size diverges.
"""


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run that decide whether a compressor suits it.

    Attributes:
        key: dotted key of the compressor, for messages: "uplink.compressor".
        layout: tensors of the vector that is compressed, P numbers.
        rounds: number of rounds, None if not known.
        clients: N, all clients.
        cohort: m, the clients whose updates are averaged in a round.
        local_steps: most local steps that a client makes in a round, None if not known.
        client_momentum: momentum of local training, 0 if it has none or if it never acts.
        server_momentum: momentum of the server's optimizer, 0 for none.
        error_feedback: policy for what an operator leaves out; "none": it is lost.
    """

    key: str
    layout: ParameterLayout
    rounds: int | None
    clients: int
    cohort: int
    local_steps: int | None = None
    client_momentum: float = 0.0
    server_momentum: float = 0.0
    error_feedback: FeedbackPolicy = "none"

    @property
    def rounds_between_participations(self) -> float:
        """Mean number of rounds from one in which a client takes part to its next: N / m."""
        return self.clients / self.cohort

    @property
    def participations(self) -> float | None:
        """Mean number of rounds in which a client takes part, None if not known."""
        return None if self.rounds is None else self.rounds / self.rounds_between_participations

    def find_noise_warnings(self, relative_error: float) -> Iterator[str]:
        """Warn of an unbiased operator if the mean over the cohort has an error of more than `MAX_NOISE_RATIO`.

        Args:
            error: E|C(x) − x|² / |x|² of one client's update.
        """
        if relative_error > MAX_NOISE_RATIO * self.cohort:
            messages = "one message" if self.cohort == 1 else f"the mean of {self.cohort:,} messages"
            yield (
                f"{self.key}.density: {messages} has an error of {relative_error / self.cohort:.2g} times the energy "
                "of an update; set a larger density, or smaller step sizes"
            )

    def find_second_momenta(self) -> Iterator[tuple[str, str]]:
        """Yield (a momentum in addition to the compressor's own, the setting that removes it)."""
        if self.client_momentum:
            yield "local training has a momentum of its own", 'client.optimizer.name = "sgd"'
        if self.server_momentum:
            yield "the server's optimizer has a momentum of its own", 'server.optimizer.name = "sgd"'

    def find_momentum_warnings(self, momentum: float, rule: str, faults: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Warn of a compressor's momentum outside the setting that it is made for.

        Args:
            momentum: coefficient of the momentum, above 0.
            rule: sentence about the setting that it is made for.
            faults: (how the run differs from that setting, the setting that removes the difference).
        """
        differences, remedies = [*zip(*faults, strict=True)] or [(), ()]
        if differences:
            yield (
                f"{self.key}.momentum = {momentum:g}: {rule}, but {_join_with_and(differences)}; "
                f"set {self.key}.momentum = 0, or {_join_with_and(remedies)}"
            )

    @property
    def feedback_key(self) -> str:
        """Dotted key of the error feedback that belongs to the compressor."""
        return f"{self.key.rpartition('compressor')[0]}error_feedback"


def _join_with_and(texts: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
