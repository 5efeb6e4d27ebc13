"""ClientApp of a fedsgd scenario: it answers for the clients of its node, as a simulation does (`fedsgd.runtime.host`)."""

from __future__ import annotations

import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsgd.errors import FedsgdError, ScenarioError
from fedsgd.flower import node, said
from fedsgd.flower.place import commit, store_of
from fedsgd.flower.records import KEY, put, take
from fedsgd.flower.settings import client_settings
from fedsgd.runtime.folder import FolderStore
from fedsgd.torch_scope import isolated, only_one_thread

app = ClientApp()


@app.query()
@isolated()
def hello(message: Message, context: Context) -> Message:
    """Reply with this node's partition, and with the reason if it cannot take part: it has another engine than the server."""
    only_one_thread()
    partition, nodes = _place(context)
    values = ConfigRecord({"partition-id": partition, "num-partitions": nodes, "process": os.getpid()})
    try:
        chosen = str(_opened(context, store_of(context)).chosen)
        record = message.content.get(KEY)
        expected = str(record.get("hello", "")) if isinstance(record, ConfigRecord) else ""
        if expected and chosen != expected:
            values["trouble"] = f"its engine would be {chosen}; the server expects {expected}"
    except FedsgdError as error:
        values["trouble"] = str(error)
    return Message(RecordDict({KEY: values}), reply_to=message)


@app.train()
@isolated()
def train(message: Message, context: Context) -> Message:
    """Train all clients in the message for one round."""
    begun = time.perf_counter()
    only_one_thread()
    store = store_of(context)
    messages = said.read_request(take(message.content))
    outcomes = list(node.runtime(store, _opened(context, store)).exchange(messages, None))
    for client in store.lost:
        print(f"fedsgd: the state of client {client} could not be read: it begins anew", flush=True)
    data = said.answer(os.getpid(), time.perf_counter() - begun, outcomes)
    commit(context, store)
    return Message(put(RecordDict(), data), reply_to=message)


def _place(context: Context) -> tuple[int, int]:
    """Return (partition of this node, number of partitions). ScenarioError if the node was started without them."""
    config = context.node_config
    match config.get("partition-id"), config.get("num-partitions"):
        case int(partition), int(nodes) if 0 <= partition < nodes:
            return partition, nodes
        case partition, nodes:
            got = f"got partition-id {partition!r} and num-partitions {nodes!r}"
    expected = (
        'expected whole numbers: start the SuperNode with --node-config "partition-id=I num-partitions=N", I from 0 to N - 1'
    )
    raise ScenarioError(f"node config: {got}, {expected}")


def _opened(context: Context, store: FolderStore) -> node.Built:
    partition, nodes = _place(context)
    settings = client_settings(context.run_config)
    return node.opened(store, node.Source(settings.scenario, settings.data), lambda client: client % nodes == partition)
