"""Messages of a strategy in one round, and the replies to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fedsgd.errors import WireError
from fedsgd.flower.app_failures import REMEDY, Failure, explain_error
from fedsgd.flower.app_session import Session
from fedsgd.flower.app_terms import check_names, ours, without
from fedsgd.flower.app_traffic import Phase, Traffic
from fedsgd.flower.records import KEY, RecordCache, message_bytes
from fedsgd.wire import Frame

LOG = getLogger("flwr")
Write = Callable[[Mapping[int, RecordDict], str], Mapping[int, RecordDict]]
"""Function of the contents of messages by node, and the name of the model's record: the compressed contents by node."""


@dataclass(eq=False)
class Notices:
    """Warnings of a strategy in Flower's log.

    Attributes:
        kinds: kinds of warnings that were logged. Each is logged once.
        heard: phases and Flower's ids of the nodes that have replied to a compressed message of that phase.
    """

    kinds: set[str] = field(default_factory=set)
    heard: set[tuple[Phase, int]] = field(default_factory=set)

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, unless one of its kind was logged before."""
        if kind not in self.kinds:
            self.kinds.add(kind)
            LOG.warning("fedsgd: %s", text)


@dataclass(eq=False)
class Exchange:
    """Messages of one round or evaluation, and their replies.

    Attributes:
        round: Flower's number of the round.
        phase: "train" or "evaluate".
        arrays: the model that the strategy sends.
        notices: log of the strategy.
        messages: the compressed message of each node.
        contents: the content of each node's message before it was compressed.
        plain: messages that are sent as they are.
        answered: nodes that have replied.
        failures: nodes and failures of each cause.
        traffic: bytes that have crossed.
    """

    round: int
    phase: Phase
    arrays: ArrayRecord
    notices: Notices
    messages: dict[int, Message] = field(default_factory=dict)
    contents: dict[int, RecordDict] = field(default_factory=dict)
    plain: list[Message] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    failures: dict[str, list[tuple[int, Failure]]] = field(default_factory=dict)
    traffic: Traffic = field(init=False)
    _key: str = ""

    def __post_init__(self) -> None:
        self.traffic = Traffic(self.round, self.phase, 0)

    def write(self, messages: Sequence[Message], write: Write | None) -> None:
        """Compress each message that contains the model; of several to one node, the first.

        Args:
            messages: messages of the strategy, which are changed in place.
            write: function that compresses them; None to send all of them as they are.
        """
        key = next((found for m in messages if (found := _key_of(m.content, self.arrays)) is not None), None)
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type.split(".")[0]
            fits = key is not None and message.content.get(key) == self.arrays
            if write is not None and fits and kind == self.phase and node not in self.messages:
                check_names("a message of the strategy", message.content)
                self.messages[node], self.contents[node] = message, message.content
                continue
            self.plain.append(message)
            if write is not None:
                text = f'node {node}: a message of type "{message.metadata.message_type}" is not the first with the model for'
                self.notices.warn("plain", f'{text} "{self.phase}" in the round, and is sent uncompressed')
        self._key = key or ""
        if write is not None and self.contents:
            for node, content in write(self.contents, self._key).items():
                self.messages[node].content = content
                self._count(down=ours(content))

    def settle(
        self, session: Session | None, replies: Iterable[Message], grid: Grid, timeout: float | None
    ) -> tuple[list[Message], list[int]]:
        """Return the replies as they would be uncompressed, and the nodes whose updates are in them.

        Nodes that replied RESYNC are sent a second message. Failures are logged, and all bytes are counted.

        Args:
            session: session that wrote the messages; None if all of them were sent as they are.
            replies: replies that came. Their contents are changed in place.
            grid: Flower's grid, for second messages.
            timeout: seconds to wait for the replies to second messages.
        """
        settled: list[Message] = []
        accepted: list[int] = []
        self._count_messages()
        resyncs = self._open(session, replies, settled, accepted)
        if session is not None and resyncs:
            second_replies = grid.send_and_receive(self._second_messages(session, resyncs), timeout=timeout)
            for node in self._open(session, second_replies, settled, accepted):
                settled.append(self._failed(node, "it requested another message twice"))
        for cause, ((node, failure), *others) in self.failures.items():
            more = f" and {len(others)} other nodes" if len(others) > 1 else " and another node" if others else ""
            self.notices.warn(f"{self.phase}: {cause}", f"node {node}{more}: {failure.text}")
        return settled, accepted

    def _second_messages(self, session: Session, resyncs: Mapping[int, Frame]) -> list[Message]:
        """Return messages for nodes that could not follow the first ones, and count them."""
        frames = {session.numbers[node]: frame for node, frame in resyncs.items()}
        contents = session.again({node: self.contents[node] for node in resyncs}, frames, self.arrays)
        messages = []
        for node, content in contents.items():
            was = self.messages[node].metadata
            self.messages[node] = Message(content, node, was.message_type, ttl=was.ttl, group_id=was.group_id)
            self.answered.discard(node)
            messages.append(self.messages[node])
            self._count(down=ours(content), message_down=message_bytes(messages[-1]))
        return messages

    def _open(
        self, session: Session | None, replies: Iterable[Message], settled: list[Message], accepted: list[int]
    ) -> dict[int, Frame]:
        """Return the RESYNC frames by node; append the other replies to `settled`."""
        resyncs: dict[int, Frame] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            size = 0 if node == SUPERLINK_NODE_ID else message_bytes(reply)
            self._count(message_up=size)
            if session is None or not self.messages or reply.has_error() or KEY not in reply.content:
                self._count(plain_up=size)
                self._inspect(session, reply)
                settled.append(reply)
                continue
            if node not in self.messages:
                self._count(plain_up=size)
                self.notices.warn("unasked", f"node {node}: its reply answers no message of this round; it is left out")
                continue
            try:
                opened = self._read(session, node, reply)
            except WireError as error:
                self._count(plain_up=size)
                settled.append(self._failed(node, str(error) if error.offset else error.cause))
                continue
            if isinstance(opened, Frame):
                resyncs[node] = opened
                continue
            reply.content = opened
            self._count(plain_up=message_bytes(reply))
            settled.append(reply)
            accepted.append(node)
        return resyncs

    def _read(self, session: Session, node: int, reply: Message) -> RecordDict | Frame:
        """Return the restored content of a compressed reply, or its RESYNC frame.

        Raises:
            WireError: the reply cannot be used.
        """
        try:
            size = ours(reply.content)
        except WireError:
            raise WireError(0, f'a mod has changed its record "{KEY}"; {REMEDY}') from None
        self._count(up=size)
        self.notices.heard.add((self.phase, node))
        if node in self.answered:
            raise WireError(0, "it is the second reply to one message")
        restored = session.restored(reply)
        self.answered.add(node)  # not before: a late reply of another round does not stand in its way
        return restored

    def _failed(self, node: int, reason: str) -> Message:
        """Return an error in place of a reply that cannot be used."""
        self._note(node, Failure("reply", f"its reply is left out: {reason}"))
        return Message(Error(ErrorCode.UNKNOWN, f"fedsgd: {reason}"), reply_to=self.messages[node])

    def _inspect(self, session: Session | None, reply: Message) -> None:
        """Note the cause where a compressed message got no compressed reply."""
        if session is not None and self.phase == "train" and reply.has_content():
            session.taken_plain(reply.content)
        node = self._node_of(reply)
        if node is None or (self.phase, node) in self.notices.heard:
            return
        failure = None
        if reply.has_error():
            handler = "train" if self.phase == "evaluate" and ("train", node) in self.notices.heard else None
            failure = explain_error(reply.error, self._key, handler)
        elif self.phase == "evaluate":
            self.notices.heard.add((self.phase, node))
        elif reply.content.array_records:
            failure = Failure("arrays", f"the reply has plain arrays, which are taken as they are; to compress them, {REMEDY}")
        if failure is not None:
            self._note(node, failure)

    def _note(self, node: int, failure: Failure) -> None:
        self.failures.setdefault(failure.cause, []).append((node, failure))

    def _node_of(self, reply: Message) -> int | None:
        """Return the node whose compressed message a reply answers; None if it answers another message.

        An error that the SuperLink makes has the SuperLink's id in place of the node's.
        """
        if not self.messages:
            return None
        answered = reply.metadata.reply_to_message_id
        if answered and any(message.metadata.message_id == answered for message in self.plain):
            return None
        if reply.metadata.src_node_id in self.messages:
            return reply.metadata.src_node_id
        return next((node for node, m in self.messages.items() if answered and m.metadata.message_id == answered), None)

    def _count_messages(self) -> None:
        """Count the messages of the strategy, as they were sent and as they would have been without compression."""
        cache: RecordCache = {}
        nodes = {message.metadata.dst_node_id for message in self.plain} | self.messages.keys()
        self.traffic = replace(self.traffic, nodes=len(nodes))
        for message in self.plain:
            size = message_bytes(message, cache=cache)
            self._count(message_down=size, plain_down=size)
        for node, message in self.messages.items():
            content = without(message.content, KEY, {self._key: self.contents[node][self._key]})
            self._count(message_down=message_bytes(message, cache=cache), plain_down=message_bytes(message, content, cache))

    def _count(self, **n_bytes: int) -> None:
        """Add bytes to attributes of the traffic."""
        self.traffic = replace(self.traffic, **{name: getattr(self.traffic, name) + n for name, n in n_bytes.items()})


def _key_of(content: RecordDict, arrays: ArrayRecord) -> str | None:
    """Return the name of the record of a message that is the model."""
    return next((key for key, record in content.array_records.items() if record is arrays or record == arrays), None)
