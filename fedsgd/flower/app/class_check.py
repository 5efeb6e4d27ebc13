"""Set-up message about the user's classes: a node refuses classes that it lacks, has differently, or does not allow.

A strategy with a user's compressor sends this message before a node's first compressed message. `compression_mod` replies
without a call of the app. The node imports only classes that its own app allows, and unpickles nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsgd.config.component import ValidatedConfig
from fedsgd.config.user_classes import ClassIdentity, find_import_paths, identify_classes
from fedsgd.errors import ScenarioError
from fedsgd.flower.app.failures import ERROR_MARK, explain_error
from fedsgd.flower.user_classes import decode_identities, encode_identities, find_mismatch

CLASS_CHECK_KEY = "fedsgd-classes"
"""Name of the record with the identities of the server's classes, and of the reply's record."""
_IDENTITIES_KEY = "identities"


@dataclass(eq=False)
class ClassCheck:
    """Comparison of the server's classes outside fedsgd with those of each node.

    Attributes:
        identities: the server's classes; empty if all classes are fedsgd's, so that no message is sent.
        checked_nodes: Flower's ids of the nodes that have equal classes.
    """

    identities: Sequence[ClassIdentity]
    checked_nodes: set[int] = field(default_factory=set)

    @classmethod
    def from_settings(cls, *settings: ValidatedConfig) -> ClassCheck:
        """Return the check of all classes that settings use. ScenarioError for a class that cannot be imported."""
        return cls(identify_classes(sorted({path for section in settings for path in find_import_paths(section)})))

    def check_nodes(self, messages: Sequence[Message], grid: Grid, timeout: float | None) -> None:
        """Compare classes with all connected nodes that have not been compared.

        A node without `compression_mod` is not compared. Its failure is reported when it gets the compressed message.

        Args:
            messages: messages that follow, at least one; the set-up message has the type of the first.
            grid: Flower's grid.
            timeout: seconds, waiting time for the replies; None for no limit.

        Raises:
            ScenarioError: a node refuses a class; the message has Flower's id of the node and the class.
        """
        nodes = {*grid.get_node_ids(), *(message.metadata.dst_node_id for message in messages)} - self.checked_nodes
        if not self.identities or not nodes:
            return
        text = encode_identities(self.identities)
        kind = messages[0].metadata.message_type
        contents = {node: RecordDict({CLASS_CHECK_KEY: ConfigRecord({_IDENTITIES_KEY: text})}) for node in sorted(nodes)}
        replies = grid.send_and_receive([Message(content, node, kind) for node, content in contents.items()], timeout=timeout)
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error() and ERROR_MARK in (reply.error.reason or ""):
                problem = explain_error(reply.error, "", None).text.partition(": ")[2]
                raise ScenarioError(f"compressor: node {node} cannot take part: {problem}")
            if reply.has_content() and CLASS_CHECK_KEY in reply.content:
                self.checked_nodes.add(node)


def is_class_check(content: RecordDict) -> bool:
    """Return True for the content of a set-up message about classes."""
    return CLASS_CHECK_KEY in content


def check_classes(message: Message, allowed_paths: Collection[str]) -> Message:
    """Return a node's reply to a set-up message. Only allowed classes are imported.

    Args:
        message: set-up message of the server.
        allowed_paths: import paths that the node's app allows.

    Raises:
        ScenarioError: a class is not allowed, cannot be imported, or differs from the server's class.
    """
    record = message.content[CLASS_CHECK_KEY]
    server_classes = decode_identities(record.get(_IDENTITIES_KEY))
    for identity in server_classes:
        if identity.path not in allowed_paths:
            raise ScenarioError(f'{identity.path} is not allowed; expected compression_mod(allow=["{identity.path}"])')
        try:
            mismatch = find_mismatch([identity], identify_classes([identity.path]))
        except ScenarioError as error:
            raise ScenarioError(f"{identity.path}: {error}") from error
        if mismatch is not None:
            raise ScenarioError(mismatch)
    return Message(RecordDict({CLASS_CHECK_KEY: ConfigRecord()}), reply_to=message)


def parse_allowed_paths(allow: object) -> frozenset[str]:
    """Return the import paths of an `allow` argument. ScenarioError for anything but a list of "my_module:MyClass"."""
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise ScenarioError(f'allow: got {allow!r:.80}, expected a list of "my_package.my_module:MyClass"')
    for path in allow:
        if not isinstance(path, str) or path.count(":") != 1 or not all(path.split(":")):
            raise ScenarioError(f'allow: got {path!r:.80}, expected "my_package.my_module:MyClass"')
    return frozenset(allow)
