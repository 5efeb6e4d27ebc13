"""A worker's side: it does what the server's messages ask, until the server is gone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsgd.data import ClientData, Examples
from fedsgd.engine import Engine, Recipe
from fedsgd.models import Task
from fedsgd.rounds import Plan, Reply
from fedsgd.runtime import protocol
from fedsgd.runtime.channel import Channel, Outbox
from fedsgd.runtime.host import Host
from fedsgd.runtime.protocol import Said, Verb

MakeEngine = Callable[[Task, Recipe, Examples], Engine]
"""From a task, how clients train, and training examples to record its steps on."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """All that a worker is told before the first round, pickled once for all. training, by_client: whether the model is
    evaluated on what clients train on, and on what they are tested on, too."""

    plan: Plan
    task: Task
    make_engine: MakeEngine
    training: bool = False
    by_client: bool = False

    def sets(self, test: Examples, train: ClientData, held_out: ClientData | None) -> list[Examples]:
        """What the model is evaluated on, in an order that server and workers agree on. Nothing else: examples of all clients
        may have to be made."""
        parts = (train if self.training else None, held_out if self.by_client else None)
        return [test, *(part.all() for part in parts if part is not None)]


class Worker:
    """Trains its host's clients and evaluates parts of `sets`, one message after the other. done: called after each."""

    def __init__(
        self, channel: Channel, outbox: Outbox, host: Host, sets: Sequence[Examples], done: Callable[[], None]
    ) -> None:
        self.done = done
        self.channel = channel
        self.outbox = outbox
        self.host = host
        self.sets = sets

    def serve(self) -> None:
        """Until the server is gone: EOFError or OSError."""
        while True:
            head, frames = self.channel.receive()
            # The server sends a message when it has read all answers to the one before the last.
            self.outbox.turn()
            if protocol.verb(head) is Verb.TRAIN:
                for outcome in self.host.answer(protocol.read_train(head, frames)):
                    if isinstance(outcome, Reply):
                        self._say(protocol.reply(outcome))
                    else:
                        self._say(protocol.failed(outcome.error, outcome.client))
            else:
                self._say(self._evaluate(head, frames))
            sys.stdout.flush()  # what the user's own code printed, should this process be killed
            self.done()
            self._say(protocol.DONE)

    def _evaluate(self, head: bytes, frames: Sequence[bytes]) -> Said:
        which, start, stop, weights, buffers = protocol.read_evaluate(head, frames)
        try:
            return protocol.evaluated(self.host.engine.evaluate(weights, self.sets[which].part(start, stop), buffers))
        except Exception as error:  # the user's module, loss or metrics
            return protocol.failed(error)

    def _say(self, said: Said) -> None:
        self.channel.send(*said)
