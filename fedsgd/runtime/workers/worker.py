"""Loop of a worker process, which processes the server's messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedsgd.data import ClientData, Examples
from fedsgd.federation import FederationPlan
from fedsgd.models.task import LearningTask
from fedsgd.runtime.client_host import ClientHost
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.channel import Channel, SharedOutbox
from fedsgd.runtime.workers.protocol import MessageType, Packet
from fedsgd.training import LocalTraining, TrainingEngine

EngineFactory = Callable[[LearningTask, LocalTraining, Examples], TrainingEngine]
"""Function that creates an engine. An engine that records steps records them with the examples."""


@dataclass(frozen=True, eq=False)
class WorkerConfig:
    """Configuration that all workers share.

    Attributes:
        plan, task: plan of the federation; module that the run trains.
        make_engine: function that creates the worker's engine.
        evaluates_train_data: True if the model is also evaluated on all training examples.
        evaluates_by_client: True if the model is also evaluated on the examples that clients hold out.
        tests_on_clients: True if the examples that clients hold out are the test examples.
    """

    plan: FederationPlan
    task: LearningTask
    make_engine: EngineFactory
    evaluates_train_data: bool = False
    evaluates_by_client: bool = False
    tests_on_clients: bool = False

    def select_evaluation_sets(
        self, test: Examples, train: ClientData, held_out: ClientData | None, validation: ClientData | None
    ) -> list[Examples]:
        """Return the test examples, then all training, held-out and validation examples if the model is evaluated on them.

        `test` has the test examples of the dataset, which `tests_on_clients` replaces.
        """
        if self.tests_on_clients and held_out is not None:
            test = held_out.all_examples()
        parts = (train if self.evaluates_train_data else None, held_out if self.evaluates_by_client else None, validation)
        return [test, *(part.all_examples() for part in parts if part is not None)]


@dataclass(frozen=True, eq=False)
class JobProcessor:
    """Processor of jobs that trains clients of `host` and evaluates parts of `evaluation_sets`."""

    host: ClientHost
    evaluation_sets: Sequence[Examples]

    def process(self, head: bytes, frames: Sequence[bytes]) -> Iterator[Packet]:
        """Yield the answers to a TRAIN or EVALUATE message."""
        if protocol.message_type(head) is not MessageType.TRAIN:
            yield self._evaluate(head, frames)
            return
        for outcome in self.host.process_messages(protocol.decode_train_request(head, frames)):
            yield protocol.encode_outcome(outcome)

    def _evaluate(self, head: bytes, frames: Sequence[bytes]) -> Packet:
        set_index, start, stop, weights, buffers = protocol.decode_evaluation_request(head, frames)
        try:
            return protocol.encode_evaluation(
                self.host.engine.evaluate(weights, self.evaluation_sets[set_index].slice(start, stop), buffers)
            )
        except Exception as error:  # the user's module, loss or metrics
            return protocol.encode_failure(error)


@dataclass(frozen=True, eq=False)
class Worker:
    """Worker that processes one message after another."""

    channel: Channel
    outbox: SharedOutbox
    processor: JobProcessor
    on_message_processed: Callable[[], None] = lambda: None

    def serve(self) -> None:
        """Process messages until an END message, or until the channel raises EOFError or OSError: the server has died."""
        while True:
            head, frames = self.channel.receive()
            if protocol.message_type(head) is MessageType.END:
                return
            # Before message k, the server has read all answers to message k − 2, which this half of the file contains.
            self.outbox.flip()
            for packet in self.processor.process(head, frames):
                self.channel.send(*packet)
            sys.stdout.flush()  # otherwise the user's output would be lost if this process were killed
            self.on_message_processed()
            self.channel.send(*protocol.DONE)
