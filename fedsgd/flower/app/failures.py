"""Failures of a user's ClientApp: the error that a node reports, and the server's explanation.

`compression_mod` marks the reason of each error in reply to a compressed message. A marked error proves that the ClientApp has
the mod.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedsgd.errors import ClientAppError, FedsgdError, describe_error

ERROR_MARK = "compression_mod(): "
"""Text before the reason of an error that passed the mod."""
REMEDY = "expected ClientApp(mods=[compression_mod(), ...]), with compression_mod() first"
_FEDSGD_ERROR_PREFIX = "fedsgd.errors."
"""Text in the reason of fedsgd's own errors, including errors of releases without marks."""
_EXCEPTION_PATTERN = re.compile(r"<class '(?:.*\.)?(?P<name>\w+)(?:\(\w+\))?'>:<'(?P<text>.*)'>\s*", re.DOTALL)
"""Flower's text form of an exception, with its class and its message."""
_SIMULATION_ERROR = "ClientAppException"
"""Class that Flower's simulation engine raises instead of the original exception, with the same text."""


class ReplyFailure(NamedTuple):
    """Failure of a node: kind ("app", "order", "mod", "handler", "flower", "reply" or "arrays") and text, one line."""

    kind: str
    text: str

    @property
    def cause(self) -> str:
        """Text with all numbers set to 0, which is the same for equal failures in different rounds and at different nodes."""
        return re.sub(r"\d+", "0", self.text)


def wrap_app_error(error: Exception) -> ClientAppError:
    """Return the marked error that the mod raises instead of an error of the app or of fedsgd."""
    prefix = "" if isinstance(error, FedsgdError) else "the app raised "
    return ClientAppError(f"{ERROR_MARK}{prefix}{describe_error(error)}")


def mark_error(reply: Message) -> Message:
    """Mark the error of a reply, if it has one, as an error that passed the mod."""
    if reply.has_error():
        reply.error = Error(reply.error.code, f"{ERROR_MARK}{reply.error.reason or _get_code_name(reply.error.code)}")
    return reply


def explain_error(error: Error, key: str, handler: str | None) -> ReplyFailure:
    """Explain an error in reply to a compressed message, for a node that has not sent a compressed reply yet.

    Args:
        error: error as Flower reports it.
        key: name of the record that was compressed.
        handler: another handler of the node's ClientApp, which is known to have the mod; None if no handler is known.
    """
    reason = error.reason or ""
    if ERROR_MARK in reason or _FEDSGD_ERROR_PREFIX in reason:
        return ReplyFailure("app", f"the ClientApp failed: {_extract_text(reason)}")
    text = _extract_text(reason) or _get_code_name(error.code)
    if error.code == ErrorCode.MOD_FAILED_PRECONDITION:
        return ReplyFailure("order", f"another mod received the compressed message and refused it ({text}); {REMEDY}")
    if error.code != ErrorCode.CLIENT_APP_RAISED_EXCEPTION or "function registered with name" in reason:
        return ReplyFailure("flower", f"no result: {text}")
    if "compression_mod() takes" in reason:
        return ReplyFailure("mod", f"the ClientApp has compression_mod without parentheses; {REMEDY}")
    problem = f"the ClientApp failed outside compression_mod() ({text})"
    if re.search(rf"['\"]{re.escape(key)}['\"]", reason):
        problem += f'; it received the compressed message, which has no record "{key}"'
    if handler is not None:
        return ReplyFailure("handler", f"{problem}; only @app.{handler}(mods=[...]) has the mod; {REMEDY}")
    return ReplyFailure("mod", f"{problem}; {REMEDY}")


def _extract_text(reason: str) -> str:
    """Return Flower's reason as one line without the mark, in Python's form of an exception ("ValueError: ...")."""
    _, mark, text = reason.rpartition(ERROR_MARK)
    if mark:
        return text.partition("\n")[0].strip().removesuffix("'>")
    match = _EXCEPTION_PATTERN.fullmatch(reason)
    if match is None:
        return " ".join(reason.split())
    name, text = match.groups()
    if name in (_SIMULATION_ERROR, "RayTaskError"):
        return " ".join(text.rpartition(f"{_SIMULATION_ERROR} occurred. Message: ")[2].split())
    return " ".join(f"{name}: {text}".split())


def _get_code_name(code: int) -> str:
    """Return the number of Flower's error code, and the code's name if Flower has a name."""
    names = {value: name for name, value in vars(ErrorCode).items() if isinstance(value, int)}
    return f"error {code}, {names[code]}" if code in names else f"error {code}"
