"""The server's side of workers: who gets which clients, and what came back. Their channels know how they are reached."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from fedsgd.arrays import F32
from fedsgd.compress import ClientId
from fedsgd.data import ClientData, Examples
from fedsgd.engine import EVALUATION_SLICE, Engine, Evaluated
from fedsgd.loop import Failure, Outcome
from fedsgd.models import Task
from fedsgd.rounds import Message
from fedsgd.runtime import protocol
from fedsgd.runtime.channel import Channel, Outbox
from fedsgd.runtime.host import chunks
from fedsgd.runtime.protocol import Said, Verb

AHEAD = 2
"""Jobs that a worker holds at most: the one that it is at, and one so that it need not wait for the next."""
PARTS = 4
"""Parts of an evaluation for each worker."""
SMALL = 10**7
"""An evaluation of fewer parameters times examples than this takes less time than handing it out."""


@dataclass(eq=False)
class Line:
    """A worker, as the server sees it. ended: waits until it has ended and says how; held: its jobs, oldest first."""

    channel: Channel
    ended: Callable[[], str]
    held: deque[int] = field(default_factory=deque)


class Workers:
    """A runtime whose clients are wherever there is a worker for them, and an evaluator that shares out what it is given.

    outbox: that of all the lines; engine: one like the workers', for what is too small to be sent anywhere; data: what clients
    train on; sets: as `Assignment.sets` has them; task: what is trained.
    """

    def __init__(
        self, lines: Sequence[Line], outbox: Outbox, engine: Engine, data: ClientData, sets: Sequence[Examples], task: Task
    ) -> None:
        self.lines = list(lines)
        self.outbox = outbox
        self.engine = engine
        self.data = data
        self.sets = sets
        self.metrics = tuple(task.metrics)
        self.size = task.layout.size
        self.reduction = task.loss_reduction
        self._lost = ChildProcessError("there are no workers")

    def clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""
        return range(len(self.data))

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[Outcome]:
        """One outcome per client, as they come; those of a worker that ends have failed, and so has who takes too long."""
        each = -(-len(messages) // max(len(self.lines), 1))  # so that there is a part for every worker
        clients = list(messages)
        parts = chunks(clients, self.data.sizes_of(clients), max(1, min(self.engine.together, each)))
        jobs = [protocol.train({client: messages[client] for client in part}) for part in parts]
        unheard = {client: None for part in parts for client in part}
        for job, answer in self._share_out(jobs, timeout):
            if isinstance(answer, Exception):
                outcomes: list[Outcome] = [Failure(client, answer) for client in parts[job] if client in unheard]
            elif protocol.verb(answer[0]) is Verb.REPLY:
                outcomes = [protocol.read_reply(*answer)]
            else:
                outcomes = [Failure(*protocol.read_failed(*answer))]
            for outcome in outcomes:
                unheard.pop(outcome.client, None)
                yield outcome
        for client in unheard:
            yield Failure(client, TimeoutError("no reply" if timeout is None else f"no reply within {timeout:g} s"))

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> Evaluated:
        """The loss and the metrics of the model with these weights [P] and running statistics [S]: bit for bit what one engine
        gives. A loss that is computed in one call is left to the engine here: the outputs would have to be sent."""
        which = next((i for i, known in enumerate(self.sets) if _same(known, examples)), None)
        slices = -(-len(examples) // EVALUATION_SLICE)
        small = slices < 2 or len(examples) * self.size < SMALL
        if which is None or small or self.reduction.of(len(examples)) == "whole":
            return self.engine.evaluate(weights, examples, buffers)
        length = -(-slices // (PARTS * max(len(self.lines), 1))) * EVALUATION_SLICE
        data = [values.tobytes() for values in (weights, buffers) if values is not None]
        jobs = [
            protocol.evaluate(which, start, min(start + length, len(examples)), data)
            for start in range(0, len(examples), length)
        ]
        answers = dict(self._share_out(jobs, None))
        parts = []
        for _, answer in sorted(answers.items()):
            if isinstance(answer, Exception):
                raise answer
            if protocol.verb(answer[0]) is Verb.FAILED:
                raise protocol.read_failed(*answer)[1]
            parts.append(protocol.read_evaluated(*answer, self.metrics))
        return Evaluated.joined(parts)

    def _share_out(self, jobs: Sequence[Said], timeout: float | None) -> Iterator[tuple[int, Said | Exception]]:
        """(a job's number, an answer to it) as they come; ChildProcessError for what a worker still had when it ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._finish_earlier_jobs()
        self.outbox.turn()
        left = deque(range(len(jobs)))
        for _ in range(AHEAD):
            for line in self.lines:
                _hand_over(line, left, jobs)
        while busy := {line.channel.fileno(): line for line in self.lines if line.held}:
            ready = wait(busy, None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready:
                return
            for line in (line for number, line in busy.items() if number in ready):
                job = line.held[0]
                answer = self._hear(line)
                if isinstance(answer, Exception):
                    yield from ((lost, answer) for lost in line.held)
                elif protocol.verb(answer[0]) is Verb.DONE:
                    _hand_over(line, left, jobs)
                else:
                    yield job, answer
        yield from ((job, self._lost) for job in left)

    def _hear(self, line: Line) -> Said | Exception:
        """The next message; the line is taken out if there will be none."""
        try:
            said = line.channel.receive()
        except (EOFError, OSError):
            self.lines.remove(line)
            self._lost = ChildProcessError(line.ended())
            return self._lost
        if protocol.verb(said[0]) is Verb.DONE:
            line.held.popleft()
        return said

    def _finish_earlier_jobs(self) -> None:
        """Of an exchange whose caller did not want all outcomes, or not any longer."""
        for line in list(self.lines):
            while line.held and line in self.lines:
                self._hear(line)


def _hand_over(line: Line, left: deque[int], jobs: Sequence[Said]) -> None:
    if left:
        line.held.append(left.popleft())
        with suppress(OSError):  # it has ended: what is received next says so
            line.channel.send(*jobs[line.held[-1]])


def _same(a: Examples, b: Examples) -> bool:
    return a.x is b.x and a.y is b.y and a.rows is b.rows
