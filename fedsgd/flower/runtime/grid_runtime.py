"""The runtime that carries frames over Flower's transport: one message for each node and round, with the frames of all of the
round's clients that live there. Client c of N nodes lives at node c mod N, the one whose partition-id that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid

from fedsgd.compression import ClientId
from fedsgd.errors import RunError, WireError
from fedsgd.federation import Message
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.flower.records import RECORD_KEY, count_message_bytes, read_payload, write_payload
from fedsgd.flower.runtime import message_content
from fedsgd.wire import decode_frame, frame_overhead

POLL_SECONDS = 0.02, 0.25
"""Between two looks for replies: at first, and at most. (`Grid.send_and_receive` waits for three seconds.)"""
TTL_MARGIN_SECONDS = 1.0
"""That Flower keeps a message longer than we wait, so that it is we who say what was late."""
RESTART_TIMEOUT_SECONDS = 30.0
"""For a node that has come back to say who it is, before a round goes on without waiting for it."""


@dataclass(frozen=True)
class MessageEvent:
    """A message that crossed between the server and a node. frame_bytes: of all frames in it, those that clients share once;
    message_bytes: of the objects that Flower makes of it; process: which answered, 0 on the way down; seconds: that it took
    there, 0.0 on the way down."""

    round: int
    node: int
    direction: Literal["down", "up"]
    frame_bytes: int
    message_bytes: int
    process: int = 0
    seconds: float = 0.0


class FlowerRuntime:
    """A runtime over a Grid.

    clients: N; nodes: how many SuperNodes there are to be; timeout: seconds that a round may take, None: as long as it takes;
    on_carried: sees every message; hello: what a node says to the first message, if it is ready.
    """

    def __init__(
        self,
        grid: Grid,
        n_clients: int,
        n_nodes: int,
        timeout: float | None = None,
        on_message: Callable[[MessageEvent], None] = lambda carried: None,
        expected_engine: str = "",
    ) -> None:
        self.timeout = timeout
        self._grid = grid
        self._n_clients = n_clients
        self._n_nodes = n_nodes
        self._on_message = on_message
        self._expected_engine = expected_engine
        self._nodes: dict[int, int] = {}  # partition → Flower's id of the node, which is another after each start
        self._contacted_nodes: set[int] = set()
        self._pending_queries: dict[str, int] = {}  # who has not said yet who it is: message id → node

    def list_clients(self) -> Sequence[ClientId]:
        """All clients there are, ascending."""
        return range(self._n_clients)

    def wait_for_nodes(self, timeout: float) -> None:
        """Wait until all nodes are there and know who they are. RunError if they are not within this time, or if one is not fit
        for the run."""
        deadline = time.monotonic() + timeout
        while True:
            self._query_identity(set(self._grid.get_node_ids()) - self._contacted_nodes)
            for reply in list(self._pull(self._pending_queries)):
                self._register_node(self._pending_queries.pop(reply.metadata.reply_to_message_id), reply)
            missing = sorted(set(range(self._n_nodes)) - set(self._nodes))
            if not missing:
                return
            if time.monotonic() >= deadline:
                cause = f"node{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} did not answer"
                raise RunError(1, None, f"{len(self._nodes)} of {self._n_nodes} nodes are ready after {timeout:g} s: {cause}")
            time.sleep(POLL_SECONDS[1])

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """One outcome per client, as nodes answer; the clients of a node that fails have failed, and so have those of one that
        takes too long."""
        limit = self.timeout if timeout is None else timeout
        self._admit_restarted_nodes()
        deadline = None if limit is None else time.monotonic() + limit
        by_node: dict[int, dict[ClientId, Message]] = {}
        for client, message in messages.items():
            by_node.setdefault(client % self._n_nodes, {})[client] = message
        (round,) = {_read_round(message) for message in messages.values()}
        waiting: dict[str, int] = {}
        for node, pushed in self._push(round, by_node, None if limit is None else limit + TTL_MARGIN_SECONDS):
            if pushed is None:
                yield from self._create_failures(by_node[node], node, "it is not connected")
            else:
                waiting[pushed] = node
        for node, reply in self._receive_replies(waiting, deadline):
            yield from self._decode_outcomes(round, node, by_node[node], reply)
        for node in waiting.values():
            yield from self._create_failures(by_node[node], node, f"no answer within {limit:g} s", TimeoutError)

    def _push(
        self, round: int, by_node: Mapping[int, Mapping[ClientId, Message]], ttl: float | None
    ) -> Iterator[tuple[int, str | None]]:
        """(node, Flower's id of the message to it, None if it could not be sent)."""
        made: dict[int, FlowerMessage] = {}
        for node, messages in by_node.items():
            if node not in self._nodes:
                yield node, None
                continue
            data = message_content.encode_request(messages)
            content, to = write_payload(RecordDict(), data), self._nodes[node]
            made[node] = FlowerMessage(content, to, MessageType.TRAIN, ttl=ttl, group_id=str(round))
            self._on_message(
                MessageEvent(round, node, "down", message_content.count_frame_bytes(data), count_message_bytes(made[node]))
            )
        ids = self._grid.push_messages(list(made.values())) if made else ()
        yield from zip(made, (pushed or None for pushed in ids), strict=True)

    def _receive_replies(self, pending_messages: dict[str, int], deadline: float | None) -> Iterator[tuple[int, FlowerMessage]]:
        """(node, its reply) as they come, each taken out of those that are waited for, until the deadline."""
        pause = POLL_SECONDS[0]
        while pending_messages:
            replies = list(self._pull(pending_messages))
            for reply in replies:
                yield pending_messages.pop(reply.metadata.reply_to_message_id), reply
            if deadline is not None and time.monotonic() >= deadline:
                return
            pause = POLL_SECONDS[0] if replies else min(1.5 * pause, POLL_SECONDS[1])
            if pending_messages:
                time.sleep(pause)

    def _decode_outcomes(
        self, round: int, node: int, messages: Mapping[ClientId, Message], reply: FlowerMessage
    ) -> Iterator[ClientOutcome]:
        if reply.has_error():
            yield from self._create_failures(messages, node, _describe_error(reply))
            return
        try:
            data = read_payload(reply.content)
            answered = message_content.decode_reply(data, round, messages)
        except WireError as error:
            yield from self._create_failures(messages, node, f"its answer cannot be read: {error}")
            return
        size = message_content.count_frame_bytes(data)
        self._on_message(MessageEvent(round, node, "up", size, count_message_bytes(reply), answered.process, answered.seconds))
        yield from answered.outcomes
        silent = set(messages) - {outcome.client for outcome in answered.outcomes}
        yield from self._create_failures(sorted(silent), node, "its answer says nothing of this client")

    def _create_failures(
        self, clients: Iterable[ClientId], node: int, reason: str, error_class: type[OSError] = ConnectionError
    ) -> Iterator[ClientFailure]:
        for client in clients:
            yield ClientFailure(client, error_class(f"node {node}: {reason}"))

    def _admit_restarted_nodes(self) -> None:
        """A node that was started again has another id: ask those that are new who they are. One that does not answer soon is
        heard later, and one that is not fit is left alone."""
        new = set(self._grid.get_node_ids()) - self._contacted_nodes
        self._query_identity(new)
        until = time.monotonic() + (RESTART_TIMEOUT_SECONDS if new else 0.0)
        for node, reply in self._receive_replies(self._pending_queries, until):
            try:
                self._register_node(node, reply)
            except RunError as error:
                print(f"fedsgd: {error.cause}; the run goes on without it", flush=True)

    def _query_identity(self, nodes: Collection[int]) -> None:
        """Ask them who they are."""
        self._contacted_nodes |= set(nodes)
        messages = [
            FlowerMessage(
                RecordDict({RECORD_KEY: ConfigRecord({"hello": self._expected_engine})}), node, MessageType.QUERY, group_id="0"
            )
            for node in nodes
        ]
        ids = self._grid.push_messages(messages) if messages else ()
        self._pending_queries.update((pushed, node) for pushed, node in zip(ids, nodes, strict=True) if pushed)

    def _register_node(self, node: int, reply: FlowerMessage) -> None:
        """Who a node says it is. RunError if it is not fit for the run."""
        if reply.has_error():
            raise RunError(1, None, f"a node cannot take part: {_describe_error(reply)}")
        record = reply.content.get(RECORD_KEY)
        values = dict(record) if isinstance(record, ConfigRecord) else {}
        partition, n, trouble = (values.get(key) for key in ("partition-id", "num-partitions", "trouble"))
        if not isinstance(partition, int) or n != self._n_nodes or not 0 <= partition < self._n_nodes:
            expected = f"expected a partition-id below {self._n_nodes} of as many"
            raise RunError(1, None, f"a node says that it is partition {partition!r} of {n!r}, {expected}")
        if trouble:
            raise RunError(1, None, f"node {partition}: cannot take part: {trouble!s}")
        self._nodes[partition] = node

    def _pull(self, pending_messages: Mapping[str, int]) -> Iterator[FlowerMessage]:
        replies = self._grid.pull_messages(list(pending_messages)) if pending_messages else ()
        return (reply for reply in replies if reply.metadata.reply_to_message_id in pending_messages)


def _read_round(message: Message) -> int:
    return decode_frame(message[0], frame_overhead(0)).header.round


def _describe_error(reply: FlowerMessage) -> str:
    """Flower's error in words: those of its own are put together from a class and a text."""
    code, reason = reply.error.code, reply.error.reason or "no reason was given"
    return f"{_ERROR_TEXTS.get(code, f'error {code}')}: {reason}"


_ERROR_TEXTS = {
    1: "its app cannot be loaded",
    2: "its app raised",
    3: "message lost",
    4: "reply lost",
    5: "it is gone",
    8: "its app died",
}
