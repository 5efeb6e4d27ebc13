"""Compression of a strategy's messages in one round, and decompression of the replies."""

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
"""Function that compresses contents by node, given the contents by node and the name of the model's record."""


@dataclass(eq=False)
class WarningLog:
    """Warnings of a strategy in Flower's log, each kind once.

    Attributes:
        warned_kinds: kinds of warnings that were logged.
        responsive_nodes: (phase, Flower's id) of each node whose reply showed that its handler of the phase has the mod.
    """

    warned_kinds: set[str] = field(default_factory=set)
    responsive_nodes: set[tuple[RoundPhase, int]] = field(default_factory=set)

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, unless a warning of this kind was logged before."""
        if kind not in self.warned_kinds:
            self.warned_kinds.add(kind)
            LOG.warning("fedsgd: %s", text)


@dataclass(eq=False)
class StrategyRound:
    """Messages of one round's training or evaluation, and their replies.

    Attributes:
        round: Flower's number of the round.
        arrays: model that the strategy sends.
        messages: compressed messages, by node.
        contents: contents of these messages before compression, by node.
        uncompressed_messages: messages that are sent as they are.
        replied_nodes: nodes whose replies were decompressed.
        failures: nodes and failures, by cause.
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
        """Compress each node's first message with the model in place. Without a writer, all messages are sent as they are."""
        keys = (_find_model_key(message.content, self.arrays) for message in messages)
        key = next((key for key in keys if key is not None), None)
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type.split(".")[0]
            has_model = key is not None and message.content.get(key) == self.arrays
            if writer is not None and has_model and kind == self.phase and node not in self.messages:
                check_names("a message of the strategy", message.content)
                self.messages[node], self.contents[node] = message, message.content
                continue
            self.uncompressed_messages.append(message)
            if writer is not None:
                text = f'node {node}: a message of type "{message.metadata.message_type}" is sent uncompressed'
                self.warning_log.warn("plain", f'{text}: only the first "{self.phase}" message with the model is compressed')
        self._key = key or ""
        if writer is not None and self.contents:
            for node, content in writer(self.contents, self._key).items():
                self.messages[node].content = content
                self._record_traffic(down=payload_bytes(content))

    def decompress_replies(
        self, session: CompressionSession | None, replies: Iterable[Message], grid: Grid, timeout: float | None
    ) -> tuple[list[Message], list[int]]:
        """Return the replies, decompressed in place, and the nodes whose updates are in these replies.

        Nodes that replied with a RESYNC frame are sent a second message. Failures are logged, and all bytes are counted.

        Args:
            session: present session, which compressed the messages if any are compressed; None without a session.
            replies: replies of the nodes.
            grid: Flower's grid, for second messages.
            timeout: seconds, waiting time for replies to second messages; None for no limit.
        """
        restored_replies: list[Message] = []
        accepted_nodes: list[int] = []
        self._count_messages()
        resync_frames = self._process_replies(session, replies, restored_replies, accepted_nodes)
        if session is not None and resync_frames:
            second_replies = grid.send_and_receive(self._create_second_messages(session, resync_frames), timeout=timeout)
            for node in self._process_replies(session, second_replies, restored_replies, accepted_nodes):
                restored_replies.append(self._replace_with_error(node, "the node requested another message twice"))
        for cause, ((node, failure), *rest) in self.failures.items():
            more = f" and {len(rest)} other nodes" if len(rest) > 1 else " and another node" if rest else ""
            self.warning_log.warn(f"{self.phase}: {cause}", f"node {node}{more}: {failure.text}")
        return restored_replies, accepted_nodes

    def _create_second_messages(self, session: CompressionSession, resync_frames: Mapping[int, Frame]) -> list[Message]:
        """Return second messages for nodes that replied with a RESYNC frame, and count the messages."""
        frames = {session.client_ids[node]: frame for node, frame in resync_frames.items()}
        contents = session.compress_second_messages({node: self.contents[node] for node in resync_frames}, frames, self.arrays)
        messages = []
        for node, content in contents.items():
            metadata = self.messages[node].metadata
            self.messages[node] = Message(content, node, metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id)
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
        """Return the RESYNC frames by node. Append the other replies and the nodes of decompressed replies to the two lists."""
        resync_frames: dict[int, Frame] = {}
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
                self.warning_log.warn("unexpected", f"node {node}: the reply is discarded: it answers no message of this round")
                continue
            try:
                content = self._decompress_reply(session, node, reply)
            except WireError as error:
                self._record_traffic(plain_up=size)
                restored_replies.append(self._replace_with_error(node, str(error) if error.offset else error.cause))
                continue
            if isinstance(content, Frame):
                resync_frames[node] = content
                continue
            reply.content = content
            self._record_traffic(plain_up=count_message_bytes(reply))
            restored_replies.append(reply)
            accepted_nodes.append(node)
        return resync_frames

    def _decompress_reply(self, session: CompressionSession, node: int, reply: Message) -> RecordDict | Frame:
        """Return the decompressed content of a reply, or its RESYNC frame. WireError for a reply that cannot be used."""
        try:
            size = payload_bytes(reply.content)
        except WireError:
            raise WireError(0, f'a mod has changed the record "{RECORD_KEY}"; {REMEDY}') from None
        self._record_traffic(up=size)
        self.warning_log.responsive_nodes.add((self.phase, node))
        if node in self.replied_nodes:
            raise WireError(0, "the node already replied to this message")
        content = session.decompress_reply(reply)
        self.replied_nodes.add(node)  # only now: after an unreadable reply, such as a late reply, a second reply may follow
        return content

    def _replace_with_error(self, node: int, reason: str) -> Message:
        """Return an error instead of a reply that cannot be used."""
        self._record_failure(node, ReplyFailure("reply", f"the reply is discarded: {reason}"))
        return Message(Error(ErrorCode.UNKNOWN, f"fedsgd: {reason}"), reply_to=self.messages[node])

    def _diagnose_uncompressed_reply(self, session: CompressionSession | None, reply: Message) -> None:
        """Record why a compressed message got no compressed reply."""
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
                "arrays", f"the reply has uncompressed arrays, which the strategy uses; to compress them, {REMEDY}"
            )
        if failure is not None:
            self._record_failure(node, failure)

    def _record_failure(self, node: int, failure: ReplyFailure) -> None:
        self.failures.setdefault(failure.cause, []).append((node, failure))

    def _find_node(self, reply: Message) -> int | None:
        """Return the node whose compressed message a reply or a SuperLink's error answers; None for other replies."""
        if not self.messages:
            return None
        message_id = reply.metadata.reply_to_message_id
        if message_id and any(message.metadata.message_id == message_id for message in self.uncompressed_messages):
            return None
        if reply.metadata.src_node_id in self.messages:
            return reply.metadata.src_node_id
        return next((node for node, m in self.messages.items() if message_id and m.metadata.message_id == message_id), None)

    def _count_messages(self) -> None:
        """Count the messages of the strategy with and without compression."""
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
        """Add bytes to fields of the traffic, by the fields' names."""
        self.traffic = replace(self.traffic, **{name: getattr(self.traffic, name) + n for name, n in n_bytes.items()})


def _find_model_key(content: RecordDict, arrays: ArrayRecord) -> str | None:
    """Return the name of a message's record with the model; None if no record has the model."""
    return next((key for key, record in content.array_records.items() if record is arrays or record == arrays), None)
