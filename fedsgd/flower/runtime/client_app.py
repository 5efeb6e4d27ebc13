"""ClientApp of a fedsgd scenario. It trains the clients of its node as a simulation does (`fedsgd.runtime.client_host`)."""

from __future__ import annotations

import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.flower.records import RECORD_KEY, read_payload, write_payload
from fedsgd.flower.runtime import message_content, node
from fedsgd.flower.runtime.settings import read_client_config
from fedsgd.flower.state_directory import commit_state, open_state_store
from fedsgd.runtime.stores.directory import FolderStore
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.torch_threads import pin_single_thread

app = ClientApp()


@app.query()
@isolate_global_state()
def report_identity(message: Message, context: Context) -> Message:
    """Reply with this node's partition, and with the reason if the node cannot take part, such as a different engine."""
    pin_single_thread()
    partition, n_nodes = _read_partition(context)
    values = ConfigRecord({"partition-id": partition, "num-partitions": n_nodes, "process": os.getpid()})
    try:
        engine = str(_load_node(context, open_state_store(context)).engine_choice)
        record = message.content.get(RECORD_KEY)
        server_engine = str(record.get("hello", "")) if isinstance(record, ConfigRecord) else ""
        if server_engine and engine != server_engine:
            values["trouble"] = f"its engine would be {engine}; the server expects {server_engine}"
    except FedsgdError as error:
        values["trouble"] = str(error)
    return Message(RecordDict({RECORD_KEY: values}), reply_to=message)


@app.train()
@isolate_global_state()
def train(message: Message, context: Context) -> Message:
    """Train all clients in the message for one round."""
    start = time.perf_counter()
    pin_single_thread()
    store = open_state_store(context)
    messages = message_content.decode_request(read_payload(message.content))
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


def _load_node(context: Context, store: FolderStore) -> node.NodeExperiment:
    partition, n_nodes = _read_partition(context)
    config = read_client_config(context.run_config)
    return node.load_node(store, node.NodeSource(config.scenario, config.data), lambda client: client % n_nodes == partition)
