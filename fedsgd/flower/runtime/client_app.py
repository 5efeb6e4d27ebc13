"""ClientApp of a fedsgd scenario. It trains the clients of its node as a simulation does (`fedsgd.runtime.client_host`)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsgd.config.user_classes import ClassIdentity
from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.flower.records import RECORD_KEY, read_payload, write_payload
from fedsgd.flower.runtime import message_content, node
from fedsgd.flower.runtime.message_content import CLASSES_KEY, SCENARIO_ERROR_KEY
from fedsgd.flower.runtime.settings import read_client_config
from fedsgd.flower.state_directory import commit_state, open_state_store, prepare_cache_folder, use_state_store
from fedsgd.flower.user_classes import decode_identities
from fedsgd.runtime.stores.directory import FolderStore
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.torch_threads import pin_single_thread

app = ClientApp()


@app.query()
@isolate_global_state()
def report_identity(message: Message, context: Context) -> Message:
    """Reply with this node's partition, and with the reason if the node cannot take part.

    A node cannot take part if its engine differs from the server's, or if it lacks a class of the scenario or has another one.
    """
    pin_single_thread()
    partition, n_nodes = _read_partition(context)
    values = ConfigRecord({"partition-id": partition, "num-partitions": n_nodes, "process": os.getpid()})
    record = message.content.get(RECORD_KEY)
    settings = record if isinstance(record, ConfigRecord) else ConfigRecord()
    try:
        if CLASSES_KEY in settings:
            _check_classes(context, decode_identities(settings[CLASSES_KEY]))
        engine = str(_load_node(context, open_state_store(context, run_folder=_get_run_folder(context))).engine_choice)
        server_engine = str(settings.get("hello", ""))
        if server_engine and _remove_reason(engine) != _remove_reason(server_engine):
            values["trouble"] = f"its engine would be {engine}; the server expects {server_engine}"
    except FedsgdError as error:
        values["trouble"], values[SCENARIO_ERROR_KEY] = str(error), isinstance(error, ScenarioError)
    return Message(RecordDict({RECORD_KEY: values}), reply_to=message)


@app.train()
@isolate_global_state()
def train(message: Message, context: Context) -> Message:
    """Train all clients in the message for one round."""
    start = time.perf_counter()
    pin_single_thread()
    messages = message_content.decode_request(read_payload(message.content))
    with use_state_store(context, _get_run_folder(context)) as store:
        outcomes = list(node.create_runtime(store, _load_node(context, store)).exchange(messages, None))
        for client in store.unreadable_clients:
            print(f"fedsgd: the state of client {client} cannot be read; the client starts without state", flush=True)
        data = message_content.encode_reply(os.getpid(), time.perf_counter() - start, outcomes)
        commit_state(context, store)
    return Message(write_payload(RecordDict(), data), reply_to=message)


def _read_partition(context: Context) -> tuple[int, int]:
    """Return (partition of this node, number of partitions). ScenarioError if the node was started without them."""
    config = context.node_config
    match config.get("partition-id"), config.get("num-partitions"):
        case int(partition), int(n_nodes) if 0 <= partition < n_nodes:
            return partition, n_nodes
        case partition, n_nodes:
            got = f"got partition-id {partition!r} and num-partitions {n_nodes!r}"
    expected = (
        'expected whole numbers: start the SuperNode with --node-config "partition-id=I num-partitions=N", I from 0 to N - 1'
    )
    raise ScenarioError(f"node config: {got}, {expected}")


def _get_run_folder(context: Context) -> Path | None:
    """Return the folder of all nodes' states of a run that can be resumed; None for a run that cannot be resumed."""
    folder = read_client_config(context.run_config).state
    return Path(folder) if folder else None


def _remove_reason(engine: str) -> str:
    """Return an engine's text without its reason, because a resumed run names the engine that "auto" selected before."""
    return engine.partition(":")[0]


def _read_source(context: Context) -> node.NodeSource:
    config = read_client_config(context.run_config)
    return node.NodeSource(config.scenario, config.data)


def _check_classes(context: Context, server_classes: Sequence[ClassIdentity]) -> None:
    """Raise a ScenarioError if a class of the scenario is missing at this node, or differs from the server's class."""
    try:
        mismatch = node.find_class_mismatch(_read_source(context), server_classes)
    except ScenarioError as error:
        names = ", ".join(identity.path for identity in server_classes)
        raise ScenarioError(f"the scenario needs {names}: {error}") from error
    if mismatch is not None:
        raise ScenarioError(mismatch)


def _load_node(context: Context, store: FolderStore) -> node.NodeExperiment:
    partition, n_nodes = _read_partition(context)
    return node.load_node(
        prepare_cache_folder(context, store), _read_source(context), lambda client: client % n_nodes == partition
    )
