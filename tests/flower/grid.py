"""A Grid whose SuperNodes are in this process: messages go through Flower's own packing, and each node has a Context of its own."""

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
    """Messages that are made meanwhile come from this node; 1 is the SuperLink."""
    before = {name: getattr(TaskIdentity, name) for name in ("_run_id", "_node_id", "_task_id")}
    try:
        for name, value in zip(before, (RUN, node, 1), strict=True):
            setattr(TaskIdentity, name, value)
        yield
    finally:
        for name, known in before.items():
            setattr(TaskIdentity, name, known)


def carried(message: Message) -> Message:
    """What arrives of a message: through Flower's objects and back."""
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    out = inflate_object_from_contents(message.object_id, objects)
    assert isinstance(out, Message)
    out.metadata.__dict__["_message_id"] = message.object_id
    return out


@dataclass(eq=False)
class NodeHere:
    """A SuperNode. state: what Flower keeps for its app; asked: how many messages it got."""

    partition: int
    nodes: int
    settings: Mapping[str, Any]
    state: RecordDict = field(default_factory=RecordDict)
    asked: int = 0


@dataclass(eq=False)
class GridHere:
    """app: what all nodes run. nodes: by Flower's id; gone: whose messages get Flower's error; silent: who never answers;
    altered: what becomes of a reply's content on its way; unsent: to whom nothing can be sent."""

    app: ClientApp
    nodes: dict[int, NodeHere]
    gone: set[int] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)
    unsent: set[int] = field(default_factory=set)
    altered: Callable[[int, RecordDict], RecordDict] = lambda node, content: content
    pushed: list[Message] = field(default_factory=list)
    _replies: dict[str, Message] = field(default_factory=dict)

    @staticmethod
    def of(app: ClientApp, n: int, **settings: Any) -> GridHere:
        """n nodes with ids as Flower has them."""
        return GridHere(app, {2**60 + 7919 * (n - p): NodeHere(p, n, settings) for p in range(n)})

    def id_of(self, partition: int) -> int:
        """Flower's id of a partition's node."""
        return next(id for id, node in self.nodes.items() if node.partition == partition)

    def restart(self, partition: int) -> None:
        """The node is there under another id, and its memory is empty."""
        node = self.nodes.pop(self.id_of(partition))
        self.nodes[max(self.nodes, default=0) + 1] = NodeHere(partition, node.nodes, node.settings)

    def get_node_ids(self) -> list[int]:
        """Who is online."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        """Each node answers at once."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """What is there, once."""
        return [self._replies.pop(id) for id in list(message_ids) if id in self._replies]

    def _push(self, message: Message) -> str | None:
        to = message.metadata.dst_node_id
        if to in self.unsent:
            return None
        self.pushed.append(message)
        arrived = carried(message)
        if to not in self.silent:
            with identity(to):
                reply = carried(self._answer(to, arrived))
            reply.metadata.__dict__["_src_node_id"] = to
            reply.metadata.__dict__["_reply_to_message_id"] = message.object_id
            self._replies[message.object_id] = reply
        return message.object_id

    def _answer(self, to: int, message: Message) -> Message:
        if to in self.gone or to not in self.nodes:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        node = self.nodes[to]
        node.asked += 1
        config = {"partition-id": node.partition, "num-partitions": node.nodes}
        context = Context(RUN, to, config, node.state, dict(node.settings))
        try:
            reply = self.app(message, context)
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        finally:
            node.state = context.state
        return Message(reply.error if reply.has_error() else self.altered(to, reply.content), reply_to=message)
