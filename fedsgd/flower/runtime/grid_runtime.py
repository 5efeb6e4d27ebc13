"""Runtime over Flower's transport.

In a round the server sends one message to each node, with the frames of all of the node's clients in the cohort. Client c
belongs to the node with partition-id c mod `n_nodes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid

from fedsgd.compression import ClientId
from fedsgd.config.user_classes import ClassIdentity
from fedsgd.errors import RunError, ScenarioError, WireError
from fedsgd.federation import Message
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome
from fedsgd.flower.records import RECORD_KEY, count_message_bytes, read_payload, write_payload
from fedsgd.flower.runtime import message_content
from fedsgd.flower.runtime.message_content import CLASSES_KEY, SCENARIO_ERROR_KEY
from fedsgd.flower.user_classes import encode_identities
from fedsgd.wire import decode_frame, frame_overhead

POLL_SECONDS = 0.02, 0.25
"""First and maximum interval between two polls for replies. (`Grid.send_and_receive` waits for three seconds.)"""
TTL_MARGIN_SECONDS = 1.0
"""Time for which Flower stores a message after the timeout, so that this module reports the timeout, and not Flower."""
RESTART_TIMEOUT_SECONDS = 30.0
"""Time limit for a restarted node to report its partition, before a round continues without the node."""


@dataclass(frozen=True)
class MessageEvent:
    """Message between the server and a node.

    Attributes:
        node: partition-id of the node.
        frame_bytes: bytes of all frames in the message; a frame that clients share counts once.
        message_bytes: bytes of the message as Flower stores and sends it.
        process: id of the node's process that replied, 0 for "down".
        seconds: time from the node's receipt of the message to its reply, 0.0 for "down".
    """

    round: int
    node: int
    direction: Literal["down", "up"]
    frame_bytes: int
    message_bytes: int
    process: int = 0
    seconds: float = 0.0


class FlowerRuntime:
    """Runtime that exchanges messages with clients over a Flower Grid.

    Args:
        n_clients: N, number of registered clients.
        n_nodes: number of SuperNodes that the run needs.
        grid: Flower's grid.
        timeout: seconds, time limit for the replies to the messages of one `exchange`; None for no limit.
        on_message: called with each message that is sent or received.
        expected_engine: server's engine choice as text, which all nodes must select too; "" accepts any engine.
        server_classes: the server's classes outside fedsgd, which all nodes must have too.
    """

    def __init__(
        self,
        grid: Grid,
        n_clients: int,
        n_nodes: int,
        timeout: float | None = None,
        on_message: Callable[[MessageEvent], None] = lambda event: None,
        expected_engine: str = "",
        server_classes: Sequence[ClassIdentity] = (),
    ) -> None:
        self.timeout = timeout
        self._grid = grid
        self._n_clients = n_clients
        self._n_nodes = n_nodes
        self._on_message = on_message
        self._setup_values: dict[str, str] = {"hello": expected_engine}
        if server_classes:
            self._setup_values[CLASSES_KEY] = encode_identities(server_classes)
        self._nodes: dict[int, int] = {}  # partition → Flower's id of the node, which changes with each start
        self._contacted_nodes: set[int] = set()
        self._pending_queries: dict[str, int] = {}  # id of a query without a reply → Flower's id of the node

    def list_clients(self) -> Sequence[ClientId]:
        """Return all registered clients, ascending."""
        return range(self._n_clients)

    def wait_for_nodes(self, timeout: float) -> None:
        """Wait until all nodes have reported their partition.

        Raises:
            RunError: a node is too late or cannot take part.
            ScenarioError: a node cannot import a class of the scenario, or has another class or release of the same name.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._query_identity(set(self._grid.get_node_ids()) - self._contacted_nodes)
            for reply in list(self._pull(self._pending_queries)):
                self._register_node(self._pending_queries.pop(reply.metadata.reply_to_message_id), reply)
            silent_nodes = sorted(set(range(self._n_nodes)) - set(self._nodes))
            if not silent_nodes:
                return
            if time.monotonic() >= deadline:
                cause = f"node{'s' * (len(silent_nodes) > 1)} {', '.join(map(str, silent_nodes))} did not answer"
                raise RunError(1, None, f"{len(self._nodes)} of {self._n_nodes} nodes are ready after {timeout:g} s: {cause}")
            time.sleep(POLL_SECONDS[1])

    def exchange(self, messages: Mapping[ClientId, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        """Send messages to clients, and yield each client's outcome as nodes reply.

        If a node fails or replies too late, all of its clients have failed. The runtime's timeout applies if `timeout` is None.
        """
        limit = self.timeout if timeout is None else timeout
        self._admit_restarted_nodes()
        deadline = None if limit is None else time.monotonic() + limit
        messages_by_node: dict[int, dict[ClientId, Message]] = {}
        for client, message in messages.items():
            messages_by_node.setdefault(client % self._n_nodes, {})[client] = message
        (round,) = {_read_round(message) for message in messages.values()}
        pending_messages: dict[str, int] = {}
        for node, message_id in self._push(round, messages_by_node, None if limit is None else limit + TTL_MARGIN_SECONDS):
            if message_id is None:
                yield from self._create_failures(messages_by_node[node], node, "not connected")
            else:
                pending_messages[message_id] = node
        for node, reply in self._receive_replies(pending_messages, deadline):
            yield from self._decode_outcomes(round, node, messages_by_node[node], reply)
        for node in pending_messages.values():
            yield from self._create_failures(messages_by_node[node], node, f"no answer within {limit:g} s", TimeoutError)

    def _push(
        self, round: int, messages_by_node: Mapping[int, Mapping[ClientId, Message]], ttl: float | None
    ) -> Iterator[tuple[int, str | None]]:
        """Send one message to each node. Yield (node, Flower's id of the message, None if the message could not be sent)."""
        flower_messages: dict[int, FlowerMessage] = {}
        for node, messages in messages_by_node.items():
            if node not in self._nodes:
                yield node, None
                continue
            data = message_content.encode_request(messages)
            content = write_payload(RecordDict(), data)
            message = FlowerMessage(content, self._nodes[node], MessageType.TRAIN, ttl=ttl, group_id=str(round))
            size = message_content.count_frame_bytes(data)
            self._on_message(MessageEvent(round, node, "down", size, count_message_bytes(message)))
            flower_messages[node] = message
        ids = self._grid.push_messages(list(flower_messages.values())) if flower_messages else ()
        yield from zip(flower_messages, (message_id or None for message_id in ids), strict=True)

    def _receive_replies(self, pending_messages: dict[str, int], deadline: float | None) -> Iterator[tuple[int, FlowerMessage]]:
        """Yield (node, reply) for each reply until the deadline, and remove its message from `pending_messages`."""
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
            node_reply = message_content.decode_reply(data, round, messages)
        except WireError as error:
            yield from self._create_failures(messages, node, f"its reply cannot be decoded: {error}")
            return
        size = message_content.count_frame_bytes(data)
        event = MessageEvent(round, node, "up", size, count_message_bytes(reply), node_reply.process, node_reply.seconds)
        self._on_message(event)
        yield from node_reply.outcomes
        missing_clients = set(messages) - {outcome.client for outcome in node_reply.outcomes}
        yield from self._create_failures(sorted(missing_clients), node, "its reply has no outcome of this client")

    def _create_failures(
        self, clients: Iterable[ClientId], node: int, reason: str, error_class: type[OSError] = ConnectionError
    ) -> Iterator[ClientFailure]:
        for client in clients:
            yield ClientFailure(client, error_class(f"node {node}: {reason}"))

    def _admit_restarted_nodes(self) -> None:
        """Query the partition of new nodes, because a node has a new id after a restart. Ignore nodes that cannot take part.

        A node that does not reply within `RESTART_TIMEOUT_SECONDS` is admitted in a later round.
        """
        new_nodes = set(self._grid.get_node_ids()) - self._contacted_nodes
        self._query_identity(new_nodes)
        deadline = time.monotonic() + (RESTART_TIMEOUT_SECONDS if new_nodes else 0.0)
        for node, reply in self._receive_replies(self._pending_queries, deadline):
            try:
                self._register_node(node, reply)
            except (RunError, ScenarioError) as error:
                text = error.cause if isinstance(error, RunError) else error
                print(f"fedsgd: {text}; the run continues without this node", flush=True)

    def _query_identity(self, nodes: Collection[int]) -> None:
        """Send a query for the partition to nodes, by Flower's ids."""
        self._contacted_nodes |= set(nodes)
        messages = []
        for node in nodes:
            content = RecordDict({RECORD_KEY: ConfigRecord(dict(self._setup_values))})
            messages.append(FlowerMessage(content, node, MessageType.QUERY, group_id="0"))
        ids = self._grid.push_messages(messages) if messages else ()
        self._pending_queries.update((message_id, node) for message_id, node in zip(ids, nodes, strict=True) if message_id)

    def _register_node(self, node: int, reply: FlowerMessage) -> None:
        """Store the partition that a node reports. RunError or ScenarioError if the node cannot take part in the run."""
        if reply.has_error():
            raise RunError(1, None, f"a node cannot take part: {_describe_error(reply)}")
        record = reply.content.get(RECORD_KEY)
        values = dict(record) if isinstance(record, ConfigRecord) else {}
        partition, n_partitions, problem = (values.get(key) for key in ("partition-id", "num-partitions", "trouble"))
        if not isinstance(partition, int) or n_partitions != self._n_nodes or not 0 <= partition < self._n_nodes:
            expected = f"expected a partition-id from 0 to {self._n_nodes - 1} of {self._n_nodes}"
            raise RunError(1, None, f"a node reports partition {partition!r} of {n_partitions!r}, {expected}")
        if problem and values.get(SCENARIO_ERROR_KEY):
            raise ScenarioError(f"node {partition}: cannot take part: {problem!s}")
        if problem:
            raise RunError(1, None, f"node {partition}: cannot take part: {problem!s}")
        self._nodes[partition] = node

    def _pull(self, pending_messages: Mapping[str, int]) -> Iterator[FlowerMessage]:
        replies = self._grid.pull_messages(list(pending_messages)) if pending_messages else ()
        return (reply for reply in replies if reply.metadata.reply_to_message_id in pending_messages)


def _read_round(message: Message) -> int:
    return decode_frame(message[0], frame_overhead(0)).header.round


def _describe_error(reply: FlowerMessage) -> str:
    """Return the error of a reply in words, because Flower's reason has only the error's class and text."""
    code, reason = reply.error.code, reply.error.reason or "without a reason"
    return f"{_ERROR_TEXTS.get(code, f'error {code}')}: {reason}"


_ERROR_TEXTS = {
    1: "its app cannot be loaded",
    2: "its app raised an error",
    3: "message lost",
    4: "reply lost",
    5: "unavailable",
    8: "its app died",
}
"""Texts by Flower's error code."""
