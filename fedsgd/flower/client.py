"""The ClientApp of a fedsgd scenario: it answers for the clients of its node. What it does with a message is what a simulation
does (`fedsgd.runtime.host`)."""

from __future__ import annotations

import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsgd.errors import FedsgdError
from fedsgd.flower import node, said
from fedsgd.flower.place import commit, store_of
from fedsgd.flower.records import KEY, put, take
from fedsgd.runtime.folder import FolderStore
from fedsgd.torch_scope import isolated, only_one_thread

app = ClientApp()


@app.query()
@isolated()
def hello(message: Message, context: Context) -> Message:
    """Who this node is, and whether it is fit for the run: whether it trains by the engine that the server expects."""
    only_one_thread()
    partition, nodes = _place(context)
    values = ConfigRecord({"partition-id": partition, "num-partitions": nodes, "process": os.getpid()})
    try:
        chosen = str(_opened(context, store_of(context)).chosen)
        expected = str(dict(message.content[KEY]).get("hello", ""))
        if expected and chosen != expected:
            values["trouble"] = f"its engine would be {chosen}; the server expects {expected}"
    except FedsgdError as error:
        values["trouble"] = str(error)
    return Message(RecordDict({KEY: values}), reply_to=message)


@app.train()
@isolated()
def train(message: Message, context: Context) -> Message:
    """One round of all clients in the message."""
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
    """(which node this is, of how many)."""
    found = tuple(context.node_config.get(key) for key in ("partition-id", "num-partitions"))
    match found:
        case int(partition), int(nodes) if 0 <= partition < nodes:
            return partition, nodes
    raise ValueError(f"the node is partition {found[0]!r} of {found[1]!r}: start it with --node-config partition-id=... ")


def _opened(context: Context, store: FolderStore) -> node.Built:
    partition, nodes = _place(context)
    source = node.Source(*(str(context.run_config[key]) for key in ("scenario", "data")))
    return node.opened(store, source, lambda client: client % nodes == partition)
