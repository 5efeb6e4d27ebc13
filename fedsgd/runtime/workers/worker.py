"""A worker's side: it does what the server's messages ask, until the server is gone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsgd.data import ClientData, Examples
from fedsgd.federation import FederationPlan, Reply
from fedsgd.models.task import LearningTask
from fedsgd.runtime.client_host import ClientHost
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.channel import Channel, SharedOutbox
from fedsgd.runtime.workers.protocol import MessageType, Packet
from fedsgd.training import LocalTraining, TrainingEngine

EngineFactory = Callable[[LearningTask, LocalTraining, Examples], TrainingEngine]
"""From a task, how clients train, and training examples to record its steps on."""


@dataclass(frozen=True, eq=False)
class WorkerConfig:
    """All that a worker is told before the first round, pickled once for all. training, by_client: whether the model is
    evaluated on what clients train on, and on what they are tested on, too."""

    plan: FederationPlan
    task: LearningTask
    make_engine: EngineFactory
    evaluates_train_data: bool = False
    evaluates_by_client: bool = False

    def select_evaluation_sets(self, test: Examples, train: ClientData, held_out: ClientData | None) -> list[Examples]:
        """What the model is evaluated on, in an order that server and workers agree on. Nothing else: examples of all clients
        may have to be made."""
        parts = (train if self.evaluates_train_data else None, held_out if self.evaluates_by_client else None)
        return [test, *(part.all_examples() for part in parts if part is not None)]


class Worker:
    """Trains its host's clients and evaluates parts of `sets`, one message after the other. done: called after each."""

    def __init__(
        self,
        channel: Channel,
        outbox: SharedOutbox,
        host: ClientHost,
        evaluation_sets: Sequence[Examples],
        on_message_processed: Callable[[], None],
    ) -> None:
        self.on_message_processed = on_message_processed
        self.channel = channel
        self.outbox = outbox
        self.host = host
        self.evaluation_sets = evaluation_sets

    def serve(self) -> None:
        """Until the server is gone: EOFError or OSError."""
        while True:
            head, frames = self.channel.receive()
            # The server sends a message when it has read all answers to the one before the last.
            self.outbox.flip()
            if protocol.message_type(head) is MessageType.TRAIN:
                for outcome in self.host.process_messages(protocol.decode_train_request(head, frames)):
                    if isinstance(outcome, Reply):
                        self._send(protocol.encode_reply(outcome))
                    else:
                        self._send(protocol.encode_failure(outcome.error, outcome.client))
            else:
                self._send(self._evaluate(head, frames))
            sys.stdout.flush()  # what the user's own code printed, should this process be killed
            self.on_message_processed()
            self._send(protocol.DONE)

    def _evaluate(self, head: bytes, frames: Sequence[bytes]) -> Packet:
        which, start, stop, weights, buffers = protocol.decode_evaluation_request(head, frames)
        try:
            return protocol.encode_evaluation(
                self.host.engine.evaluate(weights, self.evaluation_sets[which].slice(start, stop), buffers)
            )
        except Exception as error:  # the user's module, loss or metrics
            return protocol.encode_failure(error)

    def _send(self, packet: Packet) -> None:
        self.channel.send(*packet)
