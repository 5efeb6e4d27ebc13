"""Server side of the workers: dispatch clients and evaluations, and collect the results."""

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
    from fedsgd.runtime.workers.worker import JobProcessor

MAX_QUEUED_JOBS = 2
"""Maximum number of a worker's jobs: the current job, and the next job, so that the worker need not wait."""
EVALUATION_PARTS_PER_WORKER = 4
"""Parts of an evaluation for each worker."""
MIN_DISTRIBUTED_EVALUATION = 10**7
"""Minimum of parameters times examples for which workers evaluate faster than the server's process."""


@dataclass(eq=False)
class WorkerHandle:
    """Server's handle of a worker, with the numbers of the worker's jobs, oldest first.

    `describe_exit` waits a few seconds for the worker to end, and describes the exit.
    """

    channel: Channel
    describe_exit: Callable[[], str]
    jobs: deque[int] = field(default_factory=deque)


class WorkerPool:
    """Runtime that trains clients in workers, and evaluator that distributes examples to the workers.

    Attributes:
        workers: workers that have not ended.
        outbox: outbox of all workers' channels.
        engine: the server's own engine, for evaluations that are too small to distribute.
        evaluation_sets: examples in the order of `WorkerConfig.select_evaluation_sets`.

    With a `processor`, this process takes jobs, too: the next one whenever no worker waits for an answer or a job.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        outbox: SharedOutbox,
        engine: TrainingEngine,
        data: ClientData,
        evaluation_sets: Sequence[Examples],
        task: LearningTask,
        processor: JobProcessor | None = None,
    ) -> None:
        self.workers = list(workers)
        self._processor = processor
        self.outbox = outbox
        self.engine = engine
        self.data = data
        self.evaluation_sets = evaluation_sets
        self.metrics = tuple(task.metrics)
        self.n_parameters = task.layout.size
        self.loss_reduction = task.loss_reduction
        self.stores_outputs = task.stores_outputs
        self._last_error = ChildProcessError("there are no workers")

    @property
    def n_processes(self) -> int:
        """Number of processes that do jobs, at least 1."""
        return max(1, len(self.workers) + (self._processor is not None))

    def list_clients(self) -> Sequence[ClientId]:
        """Return all clients, ascending."""
        return range(len(self.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """Yield one outcome for each client, in any order. The unfinished clients of a worker that ends have failed."""
        clients_per_worker = -(-len(messages) // self.n_processes)
        clients, part_size = list(messages), max(1, min(self.engine.preferred_batch_of_clients, clients_per_worker))
        parts = chunk_by_size(clients, self.data.sizes_of(clients), part_size)
        jobs = [protocol.encode_train_request({client: messages[client] for client in part}) for part in parts]
        pending_clients = {client: None for part in parts for client in part}
        for job, answer in self._dispatch(jobs, timeout):
            if isinstance(answer, Exception):
                lost_clients = [client for client in parts[job] if client in pending_clients]
                outcomes: list[ClientOutcome] = [ClientFailure(client, answer) for client in lost_clients]
            else:
                outcomes = [protocol.decode_outcome(*answer)]
            for outcome in outcomes:
                pending_clients.pop(outcome.client, None)
                yield outcome
        for client in pending_clients:
            yield ClientFailure(client, TimeoutError("no reply" if timeout is None else f"no reply within {timeout:g} s"))

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Evaluate a model with weights [P] and buffers [S]. The result has the same bits as the result of one engine.

        A loss or metric that needs all outputs at once is computed in this process: workers would have to send the outputs.
        """
        set_index = self.find_distributable_set(examples)
        if set_index is None:
            return self.engine.evaluate(weights, examples, buffers)
        return self.evaluate_range(set_index, 0, len(examples), weights, buffers)

    def find_distributable_set(self, examples: Examples) -> int | None:
        """Return the number of the evaluation set to distribute; None if this process evaluates it faster, or must."""
        set_index = next((i for i, candidate in enumerate(self.evaluation_sets) if _is_same_data(candidate, examples)), None)
        is_small = len(examples) <= EVALUATION_SLICE_SIZE or len(examples) * self.n_parameters < MIN_DISTRIBUTED_EVALUATION
        needs_outputs = self.stores_outputs or self.loss_reduction.select_kind(len(examples)) == "whole"
        return None if is_small or needs_outputs else set_index

    def evaluate_range(self, set_index: int, start: int, stop: int, weights: F32, buffers: F32 | None) -> EvaluationResult:
        """Evaluate a model on examples [start, stop) of a set; `start` is a multiple of the size of a slice."""
        n_slices = -(-(stop - start) // EVALUATION_SLICE_SIZE)
        length = -(-n_slices // (EVALUATION_PARTS_PER_WORKER * self.n_processes)) * EVALUATION_SLICE_SIZE
        data = [values.tobytes() for values in (weights, buffers) if values is not None]
        jobs = [
            protocol.encode_evaluation_request(set_index, first, min(first + length, stop), data)
            for first in range(start, stop, length)
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
        """Yield (job number, answer) as the answers arrive; a ChildProcessError answers the jobs of a worker that ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._finish_earlier_jobs()
        self.outbox.flip()
        pending_jobs = deque(range(len(jobs)))
        own_jobs = deque[int]()
        for _ in range(MAX_QUEUED_JOBS):
            for worker in self.workers:
                _send_next_job(worker, pending_jobs, jobs)
            if self._processor is not None and pending_jobs and not own_jobs:
                own_jobs.append(pending_jobs.popleft())
        while (busy_workers := {worker.channel.fileno(): worker for worker in self.workers if worker.jobs}) or own_jobs:
            seconds = 0.0 if own_jobs else None if deadline is None else max(0.0, deadline - time.monotonic())
            ready_numbers = wait(busy_workers, seconds)
            if not ready_numbers and own_jobs and self._processor is not None:
                job = own_jobs.popleft()
                yield from ((job, answer) for answer in self._processor.process(*jobs[job]))
                if pending_jobs:
                    own_jobs.append(pending_jobs.popleft())
            elif not ready_numbers:
                return
            for worker in (worker for number, worker in busy_workers.items() if number in ready_numbers):
                job = worker.jobs[0]
                answer = self._receive(worker)
                if isinstance(answer, Exception):
                    yield from ((lost_job, answer) for lost_job in worker.jobs)
                elif protocol.message_type(answer[0]) is MessageType.DONE:
                    _send_next_job(worker, pending_jobs, jobs)
                else:
                    yield job, answer
        yield from ((job, self._last_error) for job in pending_jobs)

    def _receive(self, worker: WorkerHandle) -> Packet | Exception:
        """Return the worker's next message. A worker that has ended is removed, and its error is returned."""
        try:
            packet = worker.channel.receive()
        except (EOFError, OSError):
            self.workers.remove(worker)
            self._last_error = ChildProcessError(worker.describe_exit())
            return self._last_error
        if protocol.message_type(packet[0]) is MessageType.DONE:
            worker.jobs.popleft()
        return packet

    def _finish_earlier_jobs(self) -> None:
        """Receive the remaining answers to earlier jobs, whose caller stopped early or reached the timeout."""
        for worker in list(self.workers):
            while worker.jobs and worker in self.workers:
                self._receive(worker)


def _send_next_job(worker: WorkerHandle, pending_jobs: deque[int], jobs: Sequence[Packet]) -> None:
    if pending_jobs:
        worker.jobs.append(pending_jobs.popleft())
        with suppress(OSError):  # the worker has ended, which the next receive reports
            worker.channel.send(*jobs[worker.jobs[-1]])


def _is_same_data(a: Examples, b: Examples) -> bool:
    return a.x is b.x and a.y is b.y and a.rows is b.rows
