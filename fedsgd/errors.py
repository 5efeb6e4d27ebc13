"""Every error that fedsgd raises on purpose.

    FedsgdError
    ├── ScenarioError      a setting is wrong: where, what was got, what was expected   (also a ValueError)
    ├── DataError          a dataset is missing, corrupt, or cannot be split as asked
    ├── ModelError         a module, loss or metric cannot be used as asked
    ├── WireError          bytes that are not a valid frame: offset and cause           (also a ValueError)
    ├── LawError           a compressor, scheme or ledger breaks its contract           (also an AssertionError)
    ├── OutputError        the run folder cannot be written as asked
    ├── ReportError        a finished run cannot be read, priced or compared as asked
    ├── DeploymentError    processes of a deployment do not start, or died
    ├── ClientAppError     a Flower ClientApp failed behind compression_mod()
    └── RunError           a run stopped: the round, and the client where there is one
        └── NonFiniteError an update or a model is not finite

Anything else that escapes is a bug of ours or of the user's own code.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class FedsgdError(Exception):
    """Base of all errors below; the CLI prints its message without a traceback."""


class ScenarioError(FedsgdError, ValueError):
    """A setting is wrong. The message starts with where it is (`file: table.key: ...`)."""


class DataError(FedsgdError):
    """A dataset is missing or corrupt, or cannot be split as asked."""


class ModelError(FedsgdError):
    """A module, a loss or a metric cannot be used as asked."""


class WireError(FedsgdError, ValueError):
    """Bytes that are not a valid frame.

    offset: where in the frame the fault is, in bytes from its start; cause: what is wrong there; where: whose frame it is, and
    client: that client, once that is known.
    """

    def __init__(self, offset: int, cause: str, location: str = "", client: int | None = None) -> None:
        super().__init__(f"{location}byte {offset}: {cause}")
        self.offset = offset
        self.cause = cause
        self.location = location
        self.client = client

    def __reduce__(self) -> tuple[type[WireError], tuple[int, str, str, int | None]]:
        return type(self), (self.offset, self.cause, self.location, self.client)


@contextmanager
def shift_offset(offset: int) -> Iterator[None]:
    """What reads a stretch of a frame counts from its own start: an error that leaves here counts from `offset` before it."""
    try:
        yield
    except WireError as error:
        raise WireError(offset + error.offset, error.cause, error.location, error.client) from None


class LawError(FedsgdError, AssertionError):
    """A component breaks a law of its family; the message names the law and the figures."""


class OutputError(FedsgdError):
    """The run folder exists already, or cannot be written."""


def make_write_error(path: object, error: OSError) -> OutputError:
    """Return the error for a file or folder that cannot be written: which one, and the system's reason in a few words."""
    reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
    return OutputError(f"{path}: cannot be written ({reason})")


class ReportError(FedsgdError):
    """A finished run cannot be read, priced or compared as asked."""


class DeploymentError(FedsgdError):
    """Processes that a deployment is made of did not start, or died: which, and where its log is."""


class ClientAppError(FedsgdError):
    """A Flower ClientApp, or the mod itself, failed behind `compression_mod()`; the cause is `__cause__`."""


class RunError(FedsgdError):
    """A run stopped in `round`, at `client` (None: at the server)."""

    def __init__(self, round: int, client: int | None, cause: str) -> None:
        where = "server" if client is None else f"client {client}"
        super().__init__(f"round {round}, {where}: {cause}")
        self.round = round
        self.client = client
        self.cause = cause

    def __reduce__(self) -> tuple[type[RunError], tuple[int, int | None, str]]:
        return type(self), (self.round, self.client, self.cause)


class NonFiniteError(RunError):
    """An update or a model holds an infinity or a NaN."""


_MAX_LISTED_NAMES = 30
"""Names that a message lists at most."""
_MIN_SIMILARITY, _MIN_SIMILARITY_OTHER_INITIAL = 0.6, 0.7
"""Likeness from which a name is suggested: "iid" is none of "noniid"."""


class ModelWarning(UserWarning):
    """A module keeps state that no client carries from round to round."""


class ScenarioWarning(UserWarning):
    """Settings that a component is not made for. The message starts with the dotted key."""


_ISSUED_WARNINGS: set[tuple[str, str, int]] = set()
"""(message, file, line) of each warning that `warn_once` issued."""


def warn_once(text: str, category: type[Warning], stacklevel: int) -> None:
    """Issue a warning, once for each line of the caller, unless a filter asks for all of them or for errors.

    Python's own record of what it has shown is lost whenever filters change, as they do for a while in every run.

    Args:
        text: the message.
        category: class of the warning.
        stacklevel: number of callers between this function and the line that the warning is about.
    """
    actions = (action for action, message, kind, *_ in warnings.filters if issubclass(category, kind) and message is None)
    frame = sys._getframe(stacklevel)
    place = text, frame.f_code.co_filename, frame.f_lineno
    if next(actions, "default") not in ("default", "module", "once") or place not in _ISSUED_WARNINGS:
        _ISSUED_WARNINGS.add(place)
        warnings.warn(text, category, stacklevel=stacklevel + 1)


def describe_error(error: Exception) -> str:
    """Return the message of an error in one line, after its class if it is not one of fedsgd."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FedsgdError) else f"{type(error).__name__}: {text}"


def suggest_name(word: str, options: Iterable[str]) -> str:
    """Return `, did you mean "top-k"?` where a valid name is near, else a list of at most 30 valid names.

    Args:
        word: the name that is not valid.
        options: the names that are valid where `word` was given, and no others.
    """
    known = sorted(options)
    near = max(known, key=lambda name: _similarity(word, name), default="")
    if near and _similarity(word, near) >= (
        _MIN_SIMILARITY if word[:1].lower() == near[:1].lower() else _MIN_SIMILARITY_OTHER_INITIAL
    ):
        return f', did you mean "{near}"?'
    more = f" and {len(known) - _MAX_LISTED_NAMES} more" if len(known) > _MAX_LISTED_NAMES else ""
    return ", expected one of: " + ", ".join(f'"{name}"' for name in known[:_MAX_LISTED_NAMES]) + more if known else ""


def _similarity(word: str, name: str) -> float:
    """Return how alike two names are, from 0 to 1, whatever their case; the same ending of two files counts for nothing."""
    (word, end), (name, other_end) = _split_extension(word.lower()), _split_extension(name.lower())
    same_end = end == other_end
    return difflib.SequenceMatcher(None, word + end * (not same_end), name + other_end * (not same_end)).ratio()


def _split_extension(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending with its dot."""
    stem, dot, end = name.rpartition(".")
    return (stem, dot + end) if dot else (name, "")
