"""Clients in another process, which get frames and nothing else, and keep their own state: the same bytes and the same model."""

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
from fedsgd.federation.round_loop import ClientOutcome, run_rounds
from fedsgd.scenario.parsing import dump_table
from fedsgd.scenario.scenario import Scenario, parse_scenario

ROUNDS = 4


def clients_of(pipe: Connection) -> None:
    """The other process. A scenario starts a federation's clients anew; a message of one of them is answered; None ends it."""
    pipe.send(os.getpid())
    experiment, store = None, InMemoryClientStore()
    while (asked := pipe.recv()) is not None:
        if isinstance(asked, dict):
            experiment, store = build_experiment(parse_scenario(asked)), InMemoryClientStore()
            continue
        client, message = asked
        data = experiment.train.examples_of(client)
        reply, state = client_update(experiment.plan, experiment.engine, client, message, store.load(client), data)
        store.save(client, state)
        pipe.send(reply.frames)


class OverAPipe:
    """A runtime whose clients live elsewhere: bytes out, bytes in."""

    def __init__(self, pipe: Connection, clients: int) -> None:
        self.pipe = pipe
        self.n_clients = clients

    def clients(self) -> Sequence[int]:
        return range(self.n_clients)

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        for client, message in messages.items():
            assert all(isinstance(frame, bytes) for frame in message)
            self.pipe.send((client, message))
            yield Reply(client, self.pipe.recv(), 0.0, 0.0)


def of(name: str, scenario: Any) -> Scenario:
    uniform = {"server.weighting": "uniform"} if name in ("ef21", "scaffold") else {}
    plain = {"client.optimizer.name": "sgd"} if name == "scaffold" else {}
    made: Scenario = scenario(
        {
            "rounds": ROUNDS,
            "server.cohort": 3,
            "uplink.compressor.name": name,
            "uplink.error_feedback": "none",
            **uniform,
            **plain,
        }
    )
    return made


def outcome(s: Scenario, runtime: Any = None) -> tuple[bytes, str, int]:
    """(the final weights, the ledger's digest, bytes up) of some rounds."""
    experiment = build_experiment(s)
    ledger = Ledger()
    rounds = run_rounds(
        experiment.plan, experiment.initial_server_state, runtime or experiment.runtime, experiment.participation, ledger
    )
    for server, _ in rounds:
        if server.round > ROUNDS:
            return server.weights.tobytes(), ledger.sha256, ledger.totals["up"].n_bytes
    raise AssertionError("a run has no end of its own")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Connection]:
    """The other process, by its end of a pipe."""
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=clients_of, args=(there,), daemon=True)
    process.start()
    assert here.recv() != os.getpid()
    yield here
    here.send(None)
    process.join(20)
    assert process.exitcode == 0


MEMORY = ["dgc", "stc", "ef21", "cafe", "power-sgd", "fetch-sgd", "scaffold"]


@pytest.mark.parametrize("name", MEMORY)
def test_frames_are_all_that_client_and_server_share(name: str, elsewhere: Connection, scenario: Any) -> None:
    s = of(name, scenario)
    elsewhere.send(dump_table(s))
    assert outcome(s, OverAPipe(elsewhere, len(build_experiment(s).train))) == outcome(s)


def test_every_scheme_with_a_memory_is_tried() -> None:
    assert set(MEMORY) == {name for name in COMPRESSORS if issubclass(COMPRESSORS[name], CompressionScheme)}
