"""Settings of a run that decide whether a compressor suits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsgd.numerics.parameter_layout import ParameterLayout

FeedbackPolicy = Literal["none", "persist", "decay", "reset"]
"""Policy for the part of an update that a client has not sent: see `[uplink] error_feedback`."""
STALE_ROUNDS = 100
"""Mean number of rounds between a client's participations from which residuals that persist gain nothing.

Top-k 1 % on MNIST, two classes a client, 200 rounds, three seeds (scenarios/participation). With two of a hundred clients a
round: accuracy 0.824 with residuals that persist, 0.815 if they decay, 0.792 without residuals. With one client a round:
0.695, 0.724 and 0.717.
"""
MAX_NOISE_RATIO = 4.0
"""Maximum error of the mean over a cohort, as a multiple of an update's energy, that costs almost no accuracy.

Scaled rand-k instead of top-k in the quickstart, at the best of three learning rates: accuracy 0.985, 0.978 and 0.976 at an
error of 0.3, 0.9 and 1.9; 0.963 at 4.9, with a fifth of the learning rate; 0.869 at 9.9, where the scenario's own learning
rate diverges.
"""


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run that decide whether a compressor suits the run.

    Attributes:
        key: dotted key of the compressor, for messages: "uplink.compressor".
        layout: tensors of the vector that is compressed.
        rounds, clients: R and N; `rounds` is None if R is not known.
        cohort: C, number of clients whose updates are averaged in a round.
        local_steps: maximum number of a client's local steps in a round; None if it is not known.
        client_momentum, server_momentum: momentum of each optimizer; 0 without momentum, or if momentum has no effect.
        error_feedback: policy for the part of an update that an operator drops. With "none" this part is lost.
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
        """Mean number of rounds between two participations of a client: N / C."""
        return self.clients / self.cohort

    @property
    def participations(self) -> float | None:
        """Mean number of rounds in which a client takes part; None if it is not known."""
        return None if self.rounds is None else self.rounds / self.rounds_between_participations

    def find_noise_warnings(self, relative_error: float) -> Iterator[str]:
        """Warn if the error of the mean over the cohort is too large.

        Args:
            relative_error: E|C(x) − x|² / |x|² of one client.
        """
        if relative_error > MAX_NOISE_RATIO * self.cohort:
            messages = "one message" if self.cohort == 1 else f"the mean of {self.cohort:,} messages"
            yield (
                f"{self.key}.density: {messages} has an error of {relative_error / self.cohort:.2g} times the energy "
                "of an update; set a larger density, or smaller learning rates"
            )

    def find_second_momenta(self) -> Iterator[tuple[str, str]]:
        """Yield each momentum in addition to the compressor's own, and the setting that removes it."""
        if self.client_momentum:
            yield "local training has a momentum of its own", 'client.optimizer.name = "sgd"'
        if self.server_momentum:
            yield "the server's optimizer has a momentum of its own", 'server.optimizer.name = "sgd"'

    def find_momentum_warnings(self, momentum: float, rule: str, mismatches: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Warn of a compressor's momentum in a run that it does not suit.

        Args:
            momentum: the compressor's momentum, above 0.
            rule: clause of the message that says which runs the momentum suits.
            mismatches: each difference of this run from such a run, and the setting that removes the difference.
        """
        differences, remedies = [*zip(*mismatches, strict=True)] or [(), ()]
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
