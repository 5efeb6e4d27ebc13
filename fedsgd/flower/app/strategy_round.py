"""Messages of a strategy in one round, and the replies to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fedsgd.errors import WireError
from fedsgd.flower.app.failures import REMEDY, ReplyFailure, explain_error
from fedsgd.flower.app.messages import check_names, payload_bytes, replace_records
from fedsgd.flower.app.session import CompressionSession
from fedsgd.flower.app.traffic import RoundPhase, RoundTraffic
from fedsgd.flower.records import RECORD_KEY, RecordCache, count_message_bytes
from fedsgd.wire import Frame

LOG = getLogger("flwr")
MessageWriter = Callable[[Mapping[int, RecordDict], str], Mapping[int, RecordDict]]
"""Function of the contents of messages by node, and the name of the model's record: the compressed contents by node."""


@dataclass(eq=False)
class WarningLog:
    """Warnings of a strategy in Flower's log.

    Attributes:
        kinds: kinds of warnings that were logged. Each is logged once.
        heard: phases and Flower's ids of the nodes that have replied to a compressed message of that phase.
    """

    warned_kinds: set[str] = field(default_factory=set)
    responsive_nodes: set[tuple[RoundPhase, int]] = field(default_factory=set)

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, unless one of its kind was logged before."""
        if kind not in self.warned_kinds:
            self.warned_kinds.add(kind)
            LOG.warning("fedsgd: %s", text)


@dataclass(eq=False)
class StrategyRound:
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
    phase: RoundPhase
    arrays: ArrayRecord
    warning_log: WarningLog
    messages: dict[int, Message] = field(default_factory=dict)
    contents: dict[int, RecordDict] = field(default_factory=dict)
    uncompressed_messages: list[Message] = field(default_factory=list)
    replied_nodes: set[int] = field(default_factory=set)
    failures: dict[str, list[tuple[int, ReplyFailure]]] = field(default_factory=dict)
    traffic: RoundTraffic = field(init=False)
    _key: str = ""

    def __post_init__(self) -> None:
        self.traffic = RoundTraffic(self.round, self.phase, 0)

    def compress_messages(self, messages: Sequence[Message], writer: MessageWriter | None) -> None:
        """Compress each message that contains the model; of several to one node, the first.

        Args:
            messages: messages of the strategy, which are changed in place.
            write: function that compresses them; None to send all of them as they are.
        """
        key = next((found for m in messages if (found := _find_model_key(m.content, self.arrays)) is not None), None)
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type.split(".")[0]
            fits = key is not None and message.content.get(key) == self.arrays
            if writer is not None and fits and kind == self.phase and node not in self.messages:
                check_names("a message of the strategy", message.content)
                self.messages[node], self.contents[node] = message, message.content
                continue
            self.uncompressed_messages.append(message)
            if writer is not None:
                text = f'node {node}: a message of type "{message.metadata.message_type}" is not the first with the model for'
                self.warning_log.warn("plain", f'{text} "{self.phase}" in the round, and is sent uncompressed')
        self._key = key or ""
        if writer is not None and self.contents:
            for node, content in writer(self.contents, self._key).items():
                self.messages[node].content = content
                self._record_traffic(down=payload_bytes(content))

    def decompress_replies(
        self, session: CompressionSession | None, replies: Iterable[Message], grid: Grid, timeout: float | None
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
        resyncs = self._process_replies(session, replies, settled, accepted)
        if session is not None and resyncs:
            second_replies = grid.send_and_receive(self._create_second_messages(session, resyncs), timeout=timeout)
            for node in self._process_replies(session, second_replies, settled, accepted):
                settled.append(self._replace_with_error(node, "it requested another message twice"))
        for cause, ((node, failure), *others) in self.failures.items():
            more = f" and {len(others)} other nodes" if len(others) > 1 else " and another node" if others else ""
            self.warning_log.warn(f"{self.phase}: {cause}", f"node {node}{more}: {failure.text}")
        return settled, accepted

    def _create_second_messages(self, session: CompressionSession, resync_frames: Mapping[int, Frame]) -> list[Message]:
        """Return messages for nodes that could not follow the first ones, and count them."""
        frames = {session.client_ids[node]: frame for node, frame in resync_frames.items()}
        contents = session.compress_second_messages({node: self.contents[node] for node in resync_frames}, frames, self.arrays)
        messages = []
        for node, content in contents.items():
            was = self.messages[node].metadata
            self.messages[node] = Message(content, node, was.message_type, ttl=was.ttl, group_id=was.group_id)
            self.replied_nodes.discard(node)
            messages.append(self.messages[node])
            self._record_traffic(down=payload_bytes(content), message_down=count_message_bytes(messages[-1]))
        return messages

    def _process_replies(
        self,
        session: CompressionSession | None,
        replies: Iterable[Message],
        restored_replies: list[Message],
        accepted_nodes: list[int],
    ) -> dict[int, Frame]:
        """Return the RESYNC frames by node; append the other replies to `restored_replies`."""
        resyncs: dict[int, Frame] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            size = 0 if node == SUPERLINK_NODE_ID else count_message_bytes(reply)
            self._record_traffic(message_up=size)
            if session is None or not self.messages or reply.has_error() or RECORD_KEY not in reply.content:
                self._record_traffic(plain_up=size)
                self._diagnose_uncompressed_reply(session, reply)
                restored_replies.append(reply)
                continue
            if node not in self.messages:
                self._record_traffic(plain_up=size)
                self.warning_log.warn("unasked", f"node {node}: its reply answers no message of this round; it is left out")
                continue
            try:
                opened = self._decompress_reply(session, node, reply)
            except WireError as error:
                self._record_traffic(plain_up=size)
                restored_replies.append(self._replace_with_error(node, str(error) if error.offset else error.cause))
                continue
            if isinstance(opened, Frame):
                resyncs[node] = opened
                continue
            reply.content = opened
            self._record_traffic(plain_up=count_message_bytes(reply))
            restored_replies.append(reply)
            accepted_nodes.append(node)
        return resyncs

    def _decompress_reply(self, session: CompressionSession, node: int, reply: Message) -> RecordDict | Frame:
        """Return the restored content of a compressed reply, or its RESYNC frame.

        Raises:
            WireError: the reply cannot be used.
        """
        try:
            size = payload_bytes(reply.content)
        except WireError:
            raise WireError(0, f'a mod has changed its record "{RECORD_KEY}"; {REMEDY}') from None
        self._record_traffic(up=size)
        self.warning_log.responsive_nodes.add((self.phase, node))
        if node in self.replied_nodes:
            raise WireError(0, "it is the second reply to one message")
        restored = session.decompress_reply(reply)
        self.replied_nodes.add(node)  # not before: a late reply of another round does not stand in its way
        return restored

    def _replace_with_error(self, node: int, reason: str) -> Message:
        """Return an error in place of a reply that cannot be used."""
        self._record_failure(node, ReplyFailure("reply", f"its reply is left out: {reason}"))
        return Message(Error(ErrorCode.UNKNOWN, f"fedsgd: {reason}"), reply_to=self.messages[node])

    def _diagnose_uncompressed_reply(self, session: CompressionSession | None, reply: Message) -> None:
        """Note the cause where a compressed message got no compressed reply."""
        if session is not None and self.phase == "train" and reply.has_content():
            session.note_uncompressed_reply(reply.content)
        node = self._find_node(reply)
        if node is None or (self.phase, node) in self.warning_log.responsive_nodes:
            return
        failure = None
        if reply.has_error():
            handler = "train" if self.phase == "evaluate" and ("train", node) in self.warning_log.responsive_nodes else None
            failure = explain_error(reply.error, self._key, handler)
        elif self.phase == "evaluate":
            self.warning_log.responsive_nodes.add((self.phase, node))
        elif reply.content.array_records:
            failure = ReplyFailure(
                "arrays", f"the reply has plain arrays, which are taken as they are; to compress them, {REMEDY}"
            )
        if failure is not None:
            self._record_failure(node, failure)

    def _record_failure(self, node: int, failure: ReplyFailure) -> None:
        self.failures.setdefault(failure.cause, []).append((node, failure))

    def _find_node(self, reply: Message) -> int | None:
        """Return the node whose compressed message a reply answers; None if it answers another message.

        An error that the SuperLink makes has the SuperLink's id in place of the node's.
        """
        if not self.messages:
            return None
        answered = reply.metadata.reply_to_message_id
        if answered and any(message.metadata.message_id == answered for message in self.uncompressed_messages):
            return None
        if reply.metadata.src_node_id in self.messages:
            return reply.metadata.src_node_id
        return next((node for node, m in self.messages.items() if answered and m.metadata.message_id == answered), None)

    def _count_messages(self) -> None:
        """Count the messages of the strategy, as they were sent and as they would have been without compression."""
        cache: RecordCache = {}
        nodes = {message.metadata.dst_node_id for message in self.uncompressed_messages} | self.messages.keys()
        self.traffic = replace(self.traffic, nodes=len(nodes))
        for message in self.uncompressed_messages:
            size = count_message_bytes(message, cache=cache)
            self._record_traffic(message_down=size, plain_down=size)
        for node, message in self.messages.items():
            content = replace_records(message.content, RECORD_KEY, {self._key: self.contents[node][self._key]})
            self._record_traffic(
                message_down=count_message_bytes(message, cache=cache), plain_down=count_message_bytes(message, content, cache)
            )

    def _record_traffic(self, **n_bytes: int) -> None:
        """Add bytes to attributes of the traffic."""
        self.traffic = replace(self.traffic, **{name: getattr(self.traffic, name) + n for name, n in n_bytes.items()})


def _find_model_key(content: RecordDict, arrays: ArrayRecord) -> str | None:
    """Return the name of the record of a message that is the model."""
    return next((key for key, record in content.array_records.items() if record is arrays or record == arrays), None)
