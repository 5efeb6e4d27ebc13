"""Identities of classes and functions outside fedsgd, which both ends of a deployment compare.

A frame names a user's codec by a number only. So server and node compare these identities before round 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedsgd.config.user_classes import ClassIdentity
from fedsgd.errors import WireError


def find_mismatch(expected: Sequence[ClassIdentity], actual: Sequence[ClassIdentity]) -> str | None:
    """Return the first difference between the classes of server and node in words; None if all are equal.

    Releases are compared where both are known, because a module that travels in an app is not installed at the node.

    Args:
        expected: the server's classes.
        actual: the node's classes.
    """
    actual_by_path = {identity.path: identity for identity in actual}
    for server in expected:
        node = actual_by_path.get(server.path)
        if node is None:
            return f"{server.path} is not among the node's classes {sorted(actual_by_path)}"
        has_other_release = server.release != node.release and server.release and node.release
        if has_other_release or server.sha256 != node.sha256:
            return f"{server.path} is not the server's: the node has {node}; the server has {server}"
    return None


def encode_identities(identities: Sequence[ClassIdentity]) -> str:
    """Return identities as JSON.

    Args:
        identities: identities of classes.
    """
    return json.dumps(identities)


def decode_identities(text: object) -> list[ClassIdentity]:
    """Return the identities that `encode_identities` encoded. WireError for any other text.

    Args:
        text: received value.
    """
    try:
        identities = [ClassIdentity(*entry) for entry in json.loads(text if isinstance(text, str) else "")]
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the identities of the user's classes cannot be read") from None
    if not all(isinstance(value, str) for identity in identities for value in identity):
        raise WireError(0, "the identities of the user's classes cannot be read")
    return identities
