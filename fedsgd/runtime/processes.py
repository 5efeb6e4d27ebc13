"""Worker processes on this machine: what they are given, and how they end."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from struct import calcsize

from fedsgd.errors import RunError, ScenarioError
from fedsgd.forking import NAME, UNGUARDED, begin, main_is_importable, one_thread_each, start_method
from fedsgd.profiling import LAYOUT, PHASES, Phase, Profile, measured, unpack
from fedsgd.runtime import protocol
from fedsgd.runtime.channel import Outbox, PipeChannel
from fedsgd.runtime.host import Host
from fedsgd.runtime.protocol import Verb
from fedsgd.runtime.shared import Blob, SharedFile
from fedsgd.runtime.store import SlotModels, SlotStore
from fedsgd.runtime.worker import Assignment, Worker
from fedsgd.runtime.workers import Line
from fedsgd.torch_scope import isolated, only_one_thread

SECONDS = 5.0
"""What a process is given to end by itself."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What all workers are given, in memory that they share. assignment: an Assignment; data: (dataset, what clients train on,
    what they are tested on); models: those that clients keep; clock: where each writes what it spends its time on, None if
    nobody asks."""

    assignment: Blob
    data: Blob
    store: SlotStore
    models: SlotModels
    clock: SharedFile | None = None

    def spent(self, workers: int) -> dict[Phase, float]:
        """Seconds by phase, of so many workers together."""
        total = dict.fromkeys(PHASES, 0.0)
        if self.clock is not None:
            for number in range(workers):
                for phase, seconds in unpack(self.clock.read(number * calcsize(LAYOUT), calcsize(LAYOUT))).items():
                    total[phase] += seconds
        return total


@contextmanager
def hired(n: int, shared: Shared, outbox: Outbox) -> Iterator[list[Line]]:
    """n workers that are ready, for as long as the context lasts. They end by themselves where all went well, and when this
    process dies; if an error leaves the context they are killed."""
    begin(n)
    context = mp.get_context("forkserver") if start_method() == "forkserver" else mp.get_context("spawn")
    processes: list[BaseProcess] = []
    lines: list[Line] = []
    patience = 0.0
    try:
        for number in range(n):
            here, there = context.Pipe()
            inbox = Outbox()
            given = (number, there, inbox, outbox.file, shared)
            process = context.Process(target=work, args=given, name=f"{NAME}{number}", daemon=True)
            with one_thread_each(), main_is_importable(), there:
                process.start()
            processes.append(process)
            lines.append(Line(PipeChannel(here, outbox, inbox.file), partial(_end_of, process)))
        for line in lines:
            _await(line)
        yield lines
        patience = SECONDS
    finally:
        for line in lines:
            line.channel.close()
        _end(processes, patience)


def _await(line: Line) -> None:
    head, frames = b"", [b""]
    with suppress(EOFError, OSError):
        head, frames = line.channel.receive()
    if not head:
        raise RunError(1, None, f"{line.ended()}, before it was ready: it imports the script, and may have said more")
    if protocol.verb(head) is not Verb.READY:
        raise protocol.read_failed(head, frames)[1]


def _end_of(process: BaseProcess) -> str:
    """How it ended; ScenarioError if that is the script's fault."""
    process.join(SECONDS)
    status, number = process.exitcode, process.name.removeprefix(NAME)
    if status == UNGUARDED:
        raise ScenarioError(
            "workers: each worker process imports the script that is run, and this one starts a run when it is imported: "
            'put that under `if __name__ == "__main__":`'
        )
    if status is None:
        return f"worker {number} no longer answers"
    if status >= 0:
        return f"worker {number} ended, with exit status {status}"
    name = signal.Signals(-status).name
    return f"worker {number} was killed by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"


def _end(processes: Sequence[BaseProcess], patience: float) -> None:
    for process in processes:
        if patience:
            process.join(patience)
        process.kill()
    for process in processes:
        process.join()
        process.close()


# ------------------------------------------------------------------------------------------------------- in the worker process


def work(number: int, pipe: Connection, outbox: Outbox, inbox: SharedFile, shared: Shared) -> None:
    """All that a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the server, whose end is noticed here
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    only_one_thread()
    channel = PipeChannel(pipe, outbox, inbox)
    with suppress(EOFError, OSError), isolated():
        try:
            profile = None if shared.clock is None else Profile()
            worker = _worker(channel, outbox, shared, partial(_note, number, shared.clock, profile))
        except Exception as error:
            channel.send(*protocol.failed(error))
            return
        with measured(profile):
            worker.done()
            channel.send(*protocol.READY)
            worker.serve()


def _note(number: int, clock: SharedFile | None, profile: Profile | None) -> None:
    """Write what this process has spent its time on to where the server finds it."""
    if clock is not None and profile is not None:
        profile.charge()
        clock.write(number * calcsize(LAYOUT), profile.pack())


def _worker(channel: PipeChannel, outbox: Outbox, shared: Shared, done: Callable[[], None]) -> Worker:
    assignment: Assignment = shared.assignment.load()
    dataset, train, held_out = shared.data.load()
    engine = assignment.make_engine(assignment.task, assignment.plan.recipe, dataset.train)
    host = Host(assignment.plan, engine, shared.store, train, shared.models)
    return Worker(channel, outbox, host, assignment.sets(dataset.test, train, held_out), done)


def _end_with_the_server() -> None:
    server = mp.parent_process()
    if server is not None:
        server.join()
        os._exit(1)
