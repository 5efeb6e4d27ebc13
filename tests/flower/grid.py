"""A grid whose SuperNodes run in this process.

Messages are packed and unpacked by Flower, and each node has its own Context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

RUN = 77


@contextmanager
def identity(node: int) -> Iterator[None]:
    """Create messages as this node; 1 is the SuperLink."""
    attributes = {name: getattr(TaskIdentity, name) for name in ("_run_id", "_node_id", "_task_id")}
    try:
        for name, value in zip(attributes, (RUN, node, 1), strict=True):
            setattr(TaskIdentity, name, value)
        yield
    finally:
        for name, value in attributes.items():
            setattr(TaskIdentity, name, value)


def transfer_message(message: Message) -> Message:
    """Return the message that arrives: packed into Flower's objects and unpacked."""
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    received = inflate_object_from_contents(message.object_id, objects)
    assert isinstance(received, Message)
    received.metadata.__dict__["_message_id"] = message.object_id
    return received


@dataclass(eq=False)
class InProcessNode:
    """A SuperNode.

    Attributes:
        partition: number of the node's partition.
        nodes: number of nodes.
        settings: run configuration.
        state: `context.state`, as Flower stores it between messages.
        n_messages: number of messages that the node received.
    """

    partition: int
    nodes: int
    settings: Mapping[str, Any]
    state: RecordDict = field(default_factory=RecordDict)
    n_messages: int = 0


@dataclass(eq=False)
class InProcessGrid:
    """Grid of SuperNodes in this process.

    Attributes:
        app: ClientApp of all nodes.
        nodes: nodes by Flower's id.
        unavailable_nodes: nodes whose messages get Flower's error for an unavailable node.
        silent_nodes: nodes that never reply.
        unreachable_nodes: nodes to which no message can be sent.
        alter_reply: function of a node and its reply's content that returns the content that arrives.
        sent_messages: all messages that were sent.
    """

    app: ClientApp
    nodes: dict[int, InProcessNode]
    unavailable_nodes: set[int] = field(default_factory=set)
    silent_nodes: set[int] = field(default_factory=set)
    unreachable_nodes: set[int] = field(default_factory=set)
    alter_reply: Callable[[int, RecordDict], RecordDict] = lambda node, content: content
    sent_messages: list[Message] = field(default_factory=list)
    _replies: dict[str, Message] = field(default_factory=dict)

    @staticmethod
    def of(app: ClientApp, n: int, **settings: Any) -> InProcessGrid:
        """Return a grid of n nodes with ids of Flower's size."""
        return InProcessGrid(app, {2**60 + 7919 * (n - p): InProcessNode(p, n, settings) for p in range(n)})

    def find_id(self, partition: int) -> int:
        """Return Flower's id of a partition's node."""
        return next(id for id, node in self.nodes.items() if node.partition == partition)

    def restart(self, partition: int) -> None:
        """Replace a node by a new node of the same partition, with another id and an empty memory."""
        node = self.nodes.pop(self.find_id(partition))
        self.nodes[max(self.nodes, default=0) + 1] = InProcessNode(partition, node.nodes, node.settings)

    def get_node_ids(self) -> list[int]:
        """Return the ids of the connected nodes."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        """Send messages. Each node replies immediately."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, each reply once."""
        return [self._replies.pop(id) for id in list(message_ids) if id in self._replies]

    def _push(self, message: Message) -> str | None:
        node_id = message.metadata.dst_node_id
        if node_id in self.unreachable_nodes:
            return None
        self.sent_messages.append(message)
        received = transfer_message(message)
        if node_id not in self.silent_nodes:
            with identity(node_id):
                reply = transfer_message(self._reply(node_id, received))
            reply.metadata.__dict__["_src_node_id"] = node_id
            reply.metadata.__dict__["_reply_to_message_id"] = message.object_id
            self._replies[message.object_id] = reply
        return message.object_id

    def _reply(self, node_id: int, message: Message) -> Message:
        if node_id in self.unavailable_nodes or node_id not in self.nodes:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        node = self.nodes[node_id]
        node.n_messages += 1
        config = {"partition-id": node.partition, "num-partitions": node.nodes}
        context = Context(RUN, node_id, config, node.state, dict(node.settings))
        try:
            reply = self.app(message, context)
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        finally:
            node.state = context.state
        return Message(reply.error if reply.has_error() else self.alter_reply(node_id, reply.content), reply_to=message)
