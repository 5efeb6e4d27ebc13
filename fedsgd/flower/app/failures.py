"""Causes of the failures of a user's ClientApp, as its node reports them and as the server explains them.

An error that comes through `compression_mod` is marked in its reason, which proves to the server that the mod was reached.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedsgd.errors import ClientAppError, FedsgdError, describe_error

ERROR_MARK = "compression_mod(): "
"""Text before the reason of an error that came through the mod."""
REMEDY = "expected ClientApp(mods=[compression_mod(), ...]), with compression_mod() first"
_FEDSGD_ERROR_PREFIX = "fedsgd.errors."
"""Text in the reason of an error of fedsgd's own, also of a release that does not mark its errors."""
_EXCEPTION_PATTERN = re.compile(r"<class '(?:.*\.)?(?P<name>\w+)(?:\(\w+\))?'>:<'(?P<text>.*)'>\s*", re.DOTALL)
"""Flower's form of an exception: its class and its text."""
_SIMULATION_ERROR = "ClientAppException"
"""Class that Flower's simulation engine raises in the place of each exception, with the same text."""


class ReplyFailure(NamedTuple):
    """Cause of a failure in one line, and its kind.

    Attributes:
        kind: "app", "order", "mod", "handler" or "flower".
        text: the cause, after the names of the nodes that it concerns.
    """

    kind: str
    text: str

    @property
    def cause(self) -> str:
        """The text without its numbers, which differ between rounds and nodes."""
        return re.sub(r"\d+", "0", self.text)


def wrap_app_error(error: Exception) -> ClientAppError:
    """Return the error to raise in the place of one that came through the mod."""
    where = "" if isinstance(error, FedsgdError) else "the app raised "
    return ClientAppError(f"{ERROR_MARK}{where}{describe_error(error)}")


def mark_error(reply: Message) -> Message:
    """Mark the error of a reply, if there is one, as an error that came through the mod."""
    if reply.has_error():
        reply.error = Error(reply.error.code, f"{ERROR_MARK}{reply.error.reason or _get_code_name(reply.error.code)}")
    return reply


def explain_error(error: Error, key: str, handler: str | None) -> ReplyFailure:
    """Explain an error in reply to a compressed message, from a node that has not replied to one as the mod does.

    Args:
        error: the error, as Flower reports it.
        key: name of the record that was compressed.
        handler: another handler of the node's ClientApp, in which it has the mod; None if there is none.
    """
    reason = error.reason or ""
    if ERROR_MARK in reason or _FEDSGD_ERROR_PREFIX in reason:
        return ReplyFailure("app", f"the ClientApp failed: {_extract_text(reason)}")
    text = _extract_text(reason) or _get_code_name(error.code)
    if error.code == ErrorCode.MOD_FAILED_PRECONDITION:
        return ReplyFailure("order", f"another mod got the compressed message and refused it ({text}); {REMEDY}")
    if error.code != ErrorCode.CLIENT_APP_RAISED_EXCEPTION or "function registered with name" in reason:
        return ReplyFailure("flower", f"no result: {text}")
    if "compression_mod() takes" in reason:
        return ReplyFailure("mod", f"the ClientApp has compression_mod without parentheses; {REMEDY}")
    failed = f"the ClientApp failed outside compression_mod() ({text})"
    if re.search(rf"['\"]{re.escape(key)}['\"]", reason):
        failed += f', as it got the compressed message, which has no record "{key}"'
    if handler is not None:
        return ReplyFailure("handler", f"{failed}; the mod is in @app.{handler}(mods=[...]) alone; {REMEDY}")
    return ReplyFailure("mod", f"{failed}; {REMEDY}")


def _extract_text(reason: str) -> str:
    """Return Flower's reason as one line, without the mark and in Python's form of an exception."""
    _, marked, text = reason.rpartition(ERROR_MARK)
    if marked:
        return text.partition("\n")[0].strip().removesuffix("'>")
    found = _EXCEPTION_PATTERN.fullmatch(reason)
    if found is None:
        return " ".join(reason.split())
    name, text = found.groups()
    if name in (_SIMULATION_ERROR, "RayTaskError"):
        return " ".join(text.rpartition(f"{_SIMULATION_ERROR} occurred. Message: ")[2].split())
    return " ".join(f"{name}: {text}".split())


def _get_code_name(code: int) -> str:
    """Return the name of one of Flower's error codes."""
    names = {value: name for name, value in vars(ErrorCode).items() if isinstance(value, int)}
    return f"error {code}, {names[code]}" if code in names else f"error {code}"
