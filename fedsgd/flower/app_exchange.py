"""Messages of a strategy in one round, and the replies to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from logging import getLogger

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsgd.errors import WireError
from fedsgd.flower.app_arrays import n_bytes
from fedsgd.flower.app_session import Session
from fedsgd.flower.app_terms import ours
from fedsgd.flower.app_traffic import Phase, Traffic
from fedsgd.flower.records import KEY
from fedsgd.wire import Frame

_UNKNOWN = 0
"""Flower's code of an error that has none."""
LOG = getLogger("flwr")


@dataclass(eq=False)
class Notices:
    """Warnings of a strategy in Flower's log.

    Attributes:
        kinds: kinds of warnings that were logged. Each is logged once.
        heard: Flower's ids of the nodes that have replied to a compressed message.
    """

    kinds: set[str] = field(default_factory=set)
    heard: set[int] = field(default_factory=set)

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, unless one of its kind was logged before."""
        if kind not in self.kinds:
            self.kinds.add(kind)
            LOG.warning("fedsgd: %s", text)


@dataclass(eq=False)
class Exchange:
    """Messages of one round or evaluation that were compressed, and their replies.

    Attributes:
        round: Flower's number of the round.
        phase: "train" or "evaluate".
        arrays: the model that the strategy sends.
        notices: log of the strategy.
        messages: the compressed message of each node.
        contents: the content of each node's message before it was compressed.
        answered: nodes that have replied.
    """

    round: int
    phase: Phase
    arrays: ArrayRecord
    notices: Notices
    messages: dict[int, Message] = field(default_factory=dict)
    contents: dict[int, RecordDict] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    down: int = 0
    up: int = 0
    plain_up: int = 0

    def write(self, messages: Sequence[Message], write: Callable[..., dict[int, RecordDict]]) -> None:
        """Compress each message that contains the model; of several to one node, the first."""
        key = next((found for m in messages if (found := _key_of(m.content, self.arrays)) is not None), None)
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type.split(".")[0]
            fits = key is not None and message.content.get(key) == self.arrays
            if fits and kind == self.phase and node not in self.messages:
                self.messages[node], self.contents[node] = message, message.content
            else:
                text = f"the strategy sends node {node} something else than the model: it is sent as it is"
                self.notices.warn("plain", text)
        for node, content in write(self.contents, key).items() if self.contents else ():
            self.messages[node].content = content
            self.down += ours(content)

    def settle(
        self, session: Session, replies: Iterable[Message], grid: Grid, timeout: float | None
    ) -> tuple[list[Message], list[int]]:
        """Return the replies as they would be uncompressed, and the nodes whose updates are in them.

        Nodes that replied RESYNC are sent a second message.
        """
        settled: list[Message] = []
        accepted: list[int] = []
        resyncs = self._open(session, replies, settled, accepted)
        if resyncs:
            frames = {session.numbers[node]: frame for node, frame in resyncs.items()}
            contents = session.again({node: self.contents[node] for node in resyncs}, frames, self.arrays)
            messages = []
            for node, content in contents.items():
                was = self.messages[node].metadata
                messages.append(Message(content, node, was.message_type, ttl=was.ttl, group_id=was.group_id))
                self.messages[node] = messages[-1]
                self.answered.discard(node)
                self.down += ours(content)
            more = grid.send_and_receive(messages, timeout=timeout)
            for node in self._open(session, more, settled, accepted):
                settled.append(self._failed(node, "it requested another message twice"))
        return settled, accepted

    def traffic(self) -> Traffic:
        """Return the bytes that crossed."""
        plain_down = len(self.contents) * n_bytes(self.arrays)
        return Traffic(self.round, self.phase, len(self.contents), self.down, self.up, plain_down, self.plain_up)

    def _open(
        self, session: Session, replies: Iterable[Message], settled: list[Message], accepted: list[int]
    ) -> dict[int, Frame]:
        """Return the RESYNC frames by node; append the other replies to `settled`."""
        resyncs: dict[int, Frame] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error() or KEY not in reply.content:
                self._suspect(session, node, reply)
                settled.append(reply)
                continue
            self.notices.heard.add(node)
            if node not in self.messages:
                self.notices.warn("unasked", f"node {node} replies to no message of this round")
                continue
            try:
                self.up += ours(reply.content)
                if node in self.answered:
                    raise WireError(0, "the second reply to one message")
                self.answered.add(node)
                opened = session.restored(reply)
            except WireError as error:
                settled.append(self._failed(node, str(error)))
                continue
            if isinstance(opened, Frame):
                resyncs[node] = opened
                continue
            reply.content = opened
            plain = sum(map(n_bytes, opened.array_records.values()))
            self.plain_up += plain
            self.up += plain if node in session.uncompressed else 0
            settled.append(reply)
            accepted.append(node)
        return resyncs

    def _failed(self, node: int, reason: str) -> Message:
        """Return an error in place of a reply that cannot be used."""
        LOG.warning("fedsgd: the reply of node %d is left out: %s", node, reason)
        return Message(Error(_UNKNOWN, f"fedsgd: {reason}"), reply_to=self.messages[node])

    def _suspect(self, session: Session, node: int, reply: Message) -> None:
        """Log a possible cause where a compressed message got no compressed reply."""
        if self.phase == "train" and not reply.has_error():
            session.taken_plain(reply.content)
        if node in self.notices.heard or node not in self.messages:
            return
        remedy = "its ClientApp needs mods=[compression_mod()]"
        if reply.has_error():
            failed = f"node {node} failed at its first compressed message ({reply.error.reason})"
            self.notices.warn("error", f"{failed}; if it has not, {remedy}")
        elif reply.content.array_records:
            text = f"node {node} replies with plain arrays, which are taken as they are; to compress them, {remedy}"
            self.notices.warn("arrays", text)


def _key_of(content: RecordDict, arrays: ArrayRecord) -> str | None:
    """Return the name of the record of a message that is the model."""
    return next((key for key, record in content.array_records.items() if record is arrays or record == arrays), None)
