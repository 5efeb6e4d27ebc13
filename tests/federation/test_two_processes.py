"""Clients in another process, which receives only frames and stores its own states.

Bytes and model are the same as in one process.
"""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest

from fedsgd.compression import COMPRESSORS, CompressionScheme
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.ledger import Ledger
from fedsgd.federation import Message, Reply, client_update
from fedsgd.federation.client_state import InMemoryClientStore
from fedsgd.federation.round_loop import ClientOutcome
from fedsgd.scenario.parsing import dump_table
from fedsgd.scenario.scenario import Scenario, parse_scenario
from tests.effort import nightly_unless
from tests.executions import run_rounds, start_in_process

pytestmark = pytest.mark.slow

ROUNDS = 4


def serve_clients(pipe: Connection) -> None:
    """Serve clients in the other process. A scenario starts new clients; a message of a client is answered; None ends the
    process.
    """
    pipe.send(os.getpid())
    experiment, store = None, InMemoryClientStore()
    while (request := pipe.recv()) is not None:
        if isinstance(request, dict):
            experiment, store = build_experiment(parse_scenario(request)), InMemoryClientStore()
            continue
        client, message = request
        data = experiment.train.examples_of(client)
        reply, state = client_update(experiment.plan, experiment.engine, client, message, store.load(client), data)
        store.save(client, state)
        pipe.send(reply.frames)


class PipeRuntime:
    """Runtime whose clients are in another process, which sends and receives bytes."""

    def __init__(self, pipe: Connection, clients: int) -> None:
        self.pipe = pipe
        self.n_clients = clients

    def list_clients(self) -> Sequence[int]:
        return range(self.n_clients)

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        for client, message in messages.items():
            assert all(isinstance(frame, bytes) for frame in message)
            self.pipe.send((client, message))
            yield Reply(client, self.pipe.recv(), 0.0, 0.0)


def build_scenario(name: str, scenario: Any) -> Scenario:
    uniform = {"server.weighting": "uniform"} if name in ("ef21", "scaffold") else {}
    plain = {"client.optimizer.name": "sgd"} if name == "scaffold" else {}
    built: Scenario = scenario(
        {
            "rounds": ROUNDS,
            "server.cohort": 3,
            "uplink.compressor.name": name,
            "uplink.error_feedback": "none",
            **uniform,
            **plain,
        }
    )
    return built


def run_to_outcome(s: Scenario, runtime: Any = None) -> tuple[bytes, str, int]:
    """Return the final weights, the ledger's digest and the uplink bytes of a few rounds."""
    experiment = build_experiment(s)
    ledger = Ledger()
    rounds = run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        runtime or start_in_process(experiment).runtime,
        experiment.participation,
        ledger,
    )
    for server, _ in rounds:
        if server.round > ROUNDS:
            return server.weights.tobytes(), ledger.sha256, ledger.totals["up"].n_bytes
    raise AssertionError("run_rounds does not end by itself")


@pytest.fixture(scope="module")
def client_process() -> Iterator[Connection]:
    """Start the other process and yield the connection to it."""
    connection, child_connection = mp.Pipe()
    process = mp.get_context("spawn").Process(target=serve_clients, args=(child_connection,), daemon=True)
    process.start()
    assert connection.recv() != os.getpid()
    yield connection
    connection.send(None)
    process.join(20)
    assert process.exitcode == 0


SCHEMES = ["dgc", "stc", "ef21", "cafe", "power-sgd", "fetch-sgd", "scaffold", "demo"]


@pytest.mark.sampled
@pytest.mark.parametrize("name", nightly_unless(("dgc", "cafe", "fetch-sgd", "scaffold").__contains__, SCHEMES))
def test_clients_in_another_process_give_the_same_bytes(name: str, client_process: Connection, scenario: Any) -> None:
    s = build_scenario(name, scenario)
    client_process.send(dump_table(s))
    assert run_to_outcome(s, PipeRuntime(client_process, len(build_experiment(s).train))) == run_to_outcome(s)


def test_scheme_list_has_every_scheme_with_state() -> None:
    assert set(SCHEMES) == {name for name in COMPRESSORS if issubclass(COMPRESSORS[name], CompressionScheme)}
