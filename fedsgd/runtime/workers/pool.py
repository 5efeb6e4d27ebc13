"""The server's side of workers: who gets which clients, and what came back. Their channels know how they are reached."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from fedsgd.compression import ClientId
from fedsgd.data import ClientData, Examples
from fedsgd.federation import Message
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.numerics.arrays import F32
from fedsgd.runtime.client_host import chunk_by_size
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.channel import Channel, SharedOutbox
from fedsgd.runtime.workers.protocol import MessageType, Packet
from fedsgd.training import EVALUATION_SLICE_SIZE, EvaluationResult, TrainingEngine

if TYPE_CHECKING:
    from fedsgd.models.task import LearningTask

MAX_QUEUED_JOBS = 2
"""Jobs that a worker holds at most: the one that it is at, and one so that it need not wait for the next."""
EVALUATION_PARTS_PER_WORKER = 4
"""Parts of an evaluation for each worker."""
MIN_DISTRIBUTED_EVALUATION = 10**7
"""An evaluation of fewer parameters times examples than this takes less time than handing it out."""


@dataclass(eq=False)
class WorkerHandle:
    """A worker, as the server sees it. ended: waits until it has ended and says how; held: its jobs, oldest first."""

    channel: Channel
    describe_exit: Callable[[], str]
    jobs: deque[int] = field(default_factory=deque)


class WorkerPool:
    """A runtime whose clients are wherever there is a worker for them, and an evaluator that shares out what it is given.

    outbox: that of all the lines; engine: one like the workers', for what is too small to be sent anywhere; data: what clients
    train on; sets: as `WorkerConfig.select_evaluation_sets` has them; task: what is trained.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        outbox: SharedOutbox,
        engine: TrainingEngine,
        data: ClientData,
        evaluation_sets: Sequence[Examples],
        task: LearningTask,
    ) -> None:
        self.workers = list(workers)
        self.outbox = outbox
        self.engine = engine
        self.data = data
        self.evaluation_sets = evaluation_sets
        self.metrics = tuple(task.metrics)
        self.n_parameters = task.layout.size
        self.loss_reduction = task.loss_reduction
        self._last_error = ChildProcessError("there are no workers")

    def list_clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""
        return range(len(self.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """One outcome per client, as they come; those of a worker that ends have failed, and so has who takes too long."""
        each = -(-len(messages) // max(len(self.workers), 1))  # so that there is a part for every worker
        clients = list(messages)
        parts = chunk_by_size(clients, self.data.sizes_of(clients), max(1, min(self.engine.preferred_batch_of_clients, each)))
        jobs = [protocol.encode_train_request({client: messages[client] for client in part}) for part in parts]
        unheard = {client: None for part in parts for client in part}
        for job, answer in self._dispatch(jobs, timeout):
            if isinstance(answer, Exception):
                outcomes: list[ClientOutcome] = [ClientFailure(client, answer) for client in parts[job] if client in unheard]
            elif protocol.message_type(answer[0]) is MessageType.REPLY:
                outcomes = [protocol.decode_reply(*answer)]
            else:
                outcomes = [ClientFailure(*protocol.decode_failure(*answer))]
            for outcome in outcomes:
                unheard.pop(outcome.client, None)
                yield outcome
        for client in unheard:
            yield ClientFailure(client, TimeoutError("no reply" if timeout is None else f"no reply within {timeout:g} s"))

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """The loss and the metrics of the model with these weights [P] and running statistics [S]: bit for bit what one engine
        gives. A loss that is computed in one call is left to the engine here: the outputs would have to be sent."""
        which = next((i for i, known in enumerate(self.evaluation_sets) if _is_same_data(known, examples)), None)
        slices = -(-len(examples) // EVALUATION_SLICE_SIZE)
        small = slices < 2 or len(examples) * self.n_parameters < MIN_DISTRIBUTED_EVALUATION
        if which is None or small or self.loss_reduction.select_kind(len(examples)) == "whole":
            return self.engine.evaluate(weights, examples, buffers)
        length = -(-slices // (EVALUATION_PARTS_PER_WORKER * max(len(self.workers), 1))) * EVALUATION_SLICE_SIZE
        data = [values.tobytes() for values in (weights, buffers) if values is not None]
        jobs = [
            protocol.encode_evaluation_request(which, start, min(start + length, len(examples)), data)
            for start in range(0, len(examples), length)
        ]
        answers = dict(self._dispatch(jobs, None))
        parts = []
        for _, answer in sorted(answers.items()):
            if isinstance(answer, Exception):
                raise answer
            if protocol.message_type(answer[0]) is MessageType.FAILED:
                raise protocol.decode_failure(*answer)[1]
            parts.append(protocol.decode_evaluation(*answer, self.metrics))
        return EvaluationResult.join(parts)

    def _dispatch(self, jobs: Sequence[Packet], timeout: float | None) -> Iterator[tuple[int, Packet | Exception]]:
        """(a job's number, an answer to it) as they come; ChildProcessError for what a worker still had when it ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._finish_earlier_jobs()
        self.outbox.flip()
        left = deque(range(len(jobs)))
        for _ in range(MAX_QUEUED_JOBS):
            for line in self.workers:
                _send_next_job(line, left, jobs)
        while busy := {line.channel.fileno(): line for line in self.workers if line.jobs}:
            ready = wait(busy, None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            for line in (line for number, line in busy.items() if number in ready):
                job = line.jobs[0]
                answer = self._receive(line)
                if isinstance(answer, Exception):
                    yield from ((lost, answer) for lost in line.jobs)
                elif protocol.message_type(answer[0]) is MessageType.DONE:
                    _send_next_job(line, left, jobs)
                else:
                    yield job, answer
        yield from ((job, self._last_error) for job in left)

    def _receive(self, worker: WorkerHandle) -> Packet | Exception:
        """The next message; the line is taken out if there will be none."""
        try:
            said = worker.channel.receive()
        except (EOFError, OSError):
            self.workers.remove(worker)
            self._last_error = ChildProcessError(worker.describe_exit())
            return self._last_error
        if protocol.message_type(said[0]) is MessageType.DONE:
            worker.jobs.popleft()
        return said

    def _finish_earlier_jobs(self) -> None:
        """Of an exchange whose caller did not want all outcomes, or not any longer."""
        for line in list(self.workers):
            while line.jobs and line in self.workers:
                self._receive(line)


def _send_next_job(worker: WorkerHandle, pending_jobs: deque[int], jobs: Sequence[Packet]) -> None:
    if pending_jobs:
        worker.jobs.append(pending_jobs.popleft())
        with suppress(OSError):  # it has ended: what is received next says so
            worker.channel.send(*jobs[worker.jobs[-1]])


def _is_same_data(a: Examples, b: Examples) -> bool:
    return a.x is b.x and a.y is b.y and a.rows is b.rows
