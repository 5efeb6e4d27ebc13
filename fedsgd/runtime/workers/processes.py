"""Worker processes on this machine: their inputs, their start and their end."""

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
from fedsgd.runtime.client_host import ClientHost
from fedsgd.runtime.stores.shared import SlotModelCache, SlotStore
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.channel import PipeChannel, SharedOutbox
from fedsgd.runtime.workers.pool import WorkerHandle
from fedsgd.runtime.workers.protocol import MessageType
from fedsgd.runtime.workers.shared_memory import SharedFile, SharedPickle
from fedsgd.runtime.workers.worker import JobProcessor, Worker, WorkerConfig
from fedsgd.system.forkserver import (
    EXIT_MISSING_MAIN_GUARD,
    WORKER_NAME_PREFIX,
    choose_start_method,
    hide_missing_main,
    preload_workers,
    single_threaded_children,
)
from fedsgd.system.profiling import PHASES, PROFILE_FORMAT, Phase, Profile, profiling_into, unpack_seconds
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.torch_threads import pin_single_thread

EXIT_TIMEOUT_SECONDS = 5.0
"""Seconds that a process has to end by itself."""


@dataclass(frozen=True, eq=False)
class SharedInputs:
    """Inputs of all workers, in shared memory.

    Attributes:
        worker_config: a pickled `WorkerConfig`.
        data: pickled (dataset, clients' training, held-out and validation examples).
        store, model_cache: states and models of all clients.
        profile_file: file to which each worker writes its seconds by phase; None if no profile is measured.
    """

    worker_config: SharedPickle
    data: SharedPickle
    store: SlotStore
    model_cache: SlotModelCache
    profile_file: SharedFile | None = None

    def sum_phase_seconds(self, n_workers: int) -> dict[Phase, float]:
        """Return the seconds by phase, summed over `n_workers` workers."""
        total = dict.fromkeys(PHASES, 0.0)
        if self.profile_file is not None:
            size = calcsize(PROFILE_FORMAT)
            for number in range(n_workers):
                for phase, seconds in unpack_seconds(self.profile_file.read(number * size, size)).items():
                    total[phase] += seconds
        return total


@contextmanager
def start_workers(n_workers: int, inputs: SharedInputs, outbox: SharedOutbox) -> Iterator[list[WorkerHandle]]:
    """Return a context with `n_workers` ready workers.

    Workers end at the end of the context and when this process dies. After an error, workers are killed. A worker that cannot
    start raises its error, or a RunError if it died. A script without a main guard raises a ScenarioError.
    """
    preload_workers(n_workers)
    context = mp.get_context("forkserver") if choose_start_method() == "forkserver" else mp.get_context("spawn")
    processes: list[BaseProcess] = []
    workers: list[WorkerHandle] = []
    exit_timeout = 0.0
    try:
        for number in range(n_workers):
            server_pipe, worker_pipe = context.Pipe()
            inbox = SharedOutbox()
            arguments = (number, worker_pipe, inbox, outbox.file, inputs)
            process = context.Process(target=worker_main, args=arguments, name=f"{WORKER_NAME_PREFIX}{number}", daemon=True)
            with single_threaded_children(), hide_missing_main(), worker_pipe:
                process.start()
            processes.append(process)
            workers.append(WorkerHandle(PipeChannel(server_pipe, outbox, inbox.file), partial(_describe_exit, process)))
        for worker in workers:
            _wait_ready(worker)
        yield workers
        exit_timeout = EXIT_TIMEOUT_SECONDS
    finally:
        for worker in workers:
            worker.channel.close()
        _terminate(processes, exit_timeout)


def _wait_ready(worker: WorkerHandle) -> None:
    head, frames = b"", [b""]
    with suppress(EOFError, OSError):
        head, frames = worker.channel.receive()
    if not head:
        problem = "before it was ready: a worker imports the script, and the script's output may say more"
        raise RunError(1, None, f"{worker.describe_exit()} {problem}")
    if protocol.message_type(head) is not MessageType.READY:
        raise protocol.decode_failure(head, frames)[1]


def _describe_exit(process: BaseProcess) -> str:
    """Describe the end of a process. Raise a ScenarioError if the script has no main guard."""
    process.join(EXIT_TIMEOUT_SECONDS)
    status, number = process.exitcode, process.name.removeprefix(WORKER_NAME_PREFIX)
    if status == EXIT_MISSING_MAIN_GUARD:
        raise ScenarioError(
            "workers: each worker process imports the script that is run, and this script starts a run when it is imported: "
            'put the call under `if __name__ == "__main__":`'
        )
    if status is None:
        return f"worker {number} does not respond"
    if status >= 0:
        return f"worker {number} ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"worker {number} was killed by {name}{'; it may have run out of memory' if name == 'SIGKILL' else ''}"


def _terminate(processes: Sequence[BaseProcess], timeout: float) -> None:
    for process in processes:
        if timeout:
            process.join(timeout)
        process.kill()
    for process in processes:
        process.join()
        process.close()


# ------------------------------------------------------------------------------------------------------- in the worker process


def worker_main(number: int, pipe: Connection, outbox: SharedOutbox, inbox: SharedFile, inputs: SharedInputs) -> None:
    """Run a worker in its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt ends the server, whose end ends this process
    threading.Thread(target=_exit_with_server, daemon=True).start()
    pin_single_thread()
    channel = PipeChannel(pipe, outbox, inbox)
    with suppress(EOFError, OSError), isolate_global_state():
        try:
            profile = None if inputs.profile_file is None else Profile()
            worker = _create_worker(channel, outbox, inputs, partial(_publish_profile, number, inputs.profile_file, profile))
        except Exception as error:
            channel.send(*protocol.encode_failure(error))
            return
        with profiling_into(profile):
            worker.on_message_processed()
            channel.send(*protocol.READY)
            worker.serve()


def _publish_profile(number: int, profile_file: SharedFile | None, profile: Profile | None) -> None:
    """Write this process's seconds by phase to the shared profile file."""
    if profile_file is not None and profile is not None:
        profile.accrue()
        profile_file.write(number * calcsize(PROFILE_FORMAT), profile.pack())


def _create_worker(
    channel: PipeChannel, outbox: SharedOutbox, inputs: SharedInputs, on_message_processed: Callable[[], None]
) -> Worker:
    config: WorkerConfig = inputs.worker_config.load()
    dataset, train, held_out, validation = inputs.data.load()
    engine = config.make_engine(config.task, config.plan.local_training, dataset.train)
    host = ClientHost(config.plan, engine, inputs.store, train, inputs.model_cache)
    processor = JobProcessor(host, config.select_evaluation_sets(dataset.test, train, held_out, validation))
    return Worker(channel, outbox, processor, on_message_processed)


def _exit_with_server() -> None:
    server = mp.parent_process()
    if server is not None:
        server.join()
        os._exit(1)
