"""Exceptions and warnings of the package.

    FedsgdError
    ├── ScenarioError      a setting is wrong: key, value, expected value          (also a ValueError)
    ├── DataError          a dataset is missing, corrupt, or cannot be partitioned
    ├── ModelError         a module, loss or metric cannot be used
    ├── WireError          bytes are not a valid frame: offset and cause           (also a ValueError)
    ├── LawError           a compressor, scheme or ledger breaks its contract      (also an AssertionError)
    ├── OutputError        the run directory cannot be written
    │   └── CheckpointError    a run cannot be resumed
    ├── ReportError        a finished run cannot be read, priced or compared
    ├── DeploymentError    processes of a deployment do not start, or died
    ├── ClientAppError     a Flower ClientApp failed behind compression_mod()
    └── RunError           a run stopped: round, and client where there is one
        └── NonFiniteError an update or a model is not finite

Any other exception is a fault of the package or of the user's own code, except RunInterrupted, which is a KeyboardInterrupt.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager


class FedsgdError(Exception):
    """Base class of all errors of the package; the command line prints their message without a traceback."""


class ScenarioError(FedsgdError, ValueError):
    """Wrong setting. The message begins with the place of the setting (`file: table.key: ...`)."""


class DataError(FedsgdError):
    """Dataset that is missing or corrupt, or that cannot be partitioned."""


class ModelError(FedsgdError):
    """Module, loss or metric that cannot be used."""


class WireError(FedsgdError, ValueError):
    """Bytes that are not a valid frame.

    Attributes:
        offset: position of the fault, bytes from the start of the frame.
        cause: description of the fault.
        location: origin of the frame, such as "client 3: ", once it is known.
        client: client that sent the frame, once it is known.
    """

    def __init__(self, offset: int, cause: str, location: str = "", client: int | None = None) -> None:
        super().__init__(f"{location}byte {offset}: {cause}")
        self.offset = offset
        self.cause = cause
        self.location = location
        self.client = client

    def __reduce__(self) -> tuple[type[WireError], tuple[int, str, str, int | None]]:
        return type(self), (self.offset, self.cause, self.location, self.client)


def shift_offset(offset: int) -> AbstractContextManager[None]:
    """Add `offset` to the offset of a WireError of the body, which decodes a part of a frame."""
    return _OffsetShift(offset)


class _OffsetShift(AbstractContextManager[None]):
    """Context of `shift_offset`: a class takes less time than a generator, and a message has several parts."""

    __slots__ = ("_offset",)

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, WireError):
            raise WireError(self._offset + error.offset, error.cause, error.location, error.client) from None


class LawError(FedsgdError, AssertionError):
    """Component that breaks a law of its family; the message has the law and its figures."""


class OutputError(FedsgdError):
    """Run directory that exists already, or that cannot be written."""


class CheckpointError(OutputError):
    """Run that cannot be resumed: no checkpoint that can be used, or other settings, data, code or versions."""


def make_write_error(path: object, error: OSError) -> OutputError:
    """Return the error for a file or folder that cannot be written, with the system's reason."""
    reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
    return OutputError(f"{path}: cannot be written ({reason})")


class ReportError(FedsgdError):
    """Finished run that cannot be read, priced or compared."""


class DeploymentError(FedsgdError):
    """Process of a deployment that did not start, or that died; the message has the name and the log of the process."""


class ClientAppError(FedsgdError):
    """Failure of a Flower ClientApp behind `compression_mod()`, or of the mod; `__cause__` is the original error."""


class RunError(FedsgdError):
    """Run that stopped.

    Attributes:
        round: round in which the run stopped.
        client: client that failed, None for the server.
        cause: description of the failure.
    """

    def __init__(self, round: int, client: int | None, cause: str) -> None:
        participant = "server" if client is None else f"client {client}"
        super().__init__(f"round {round}, {participant}: {cause}")
        self.round = round
        self.client = client
        self.cause = cause

    def __reduce__(self) -> tuple[type[RunError], tuple[int, int | None, str]]:
        return type(self), (self.round, self.client, self.cause)


class NonFiniteError(RunError):
    """Update or model with an infinity or a NaN."""


_MAX_LISTED_NAMES = 30
"""Maximum number of names in a message."""
_MIN_SIMILARITY, _MIN_SIMILARITY_OTHER_INITIAL = 0.6, 0.7
"""Minimum similarity for a suggestion, for names with equal and with other initials: "iid" is not near "noniid"."""


class RunInterrupted(KeyboardInterrupt):
    """Run that Ctrl-C stopped after a round, with a checkpoint.

    Attributes:
        situation: what was stopped, and where.
        remedy: command that continues the run, "" if `situation` says how.
    """

    def __init__(self, situation: str, remedy: str = "") -> None:
        super().__init__(f"{situation}; to continue: {remedy}" if remedy else situation)
        self.situation = situation
        self.remedy = remedy


class ModelWarning(UserWarning):
    """Module with state that clients do not carry from round to round."""


class ResumeWarning(UserWarning):
    """Damaged checkpoint in place of which an earlier one is used, or another environment, which may change roundings."""


class ScenarioWarning(UserWarning):
    """Setting that a component is not made for. The message begins with the dotted key."""


_ISSUED_WARNINGS: set[tuple[str, str, int]] = set()
"""(message, file, line) of each warning that `warn_once` issued."""


def warn_once(text: str, category: type[Warning], stacklevel: int) -> None:
    """Issue a warning, once for each line of the caller, unless a filter asks for all warnings or for errors.

    Python's own record of shown warnings is cleared whenever filters change, as they do in every run. `stacklevel` is the
    number of callers between this function and the line that causes the warning.
    """
    actions = (action for action, message, kind, *_ in warnings.filters if issubclass(category, kind) and message is None)
    frame = sys._getframe(stacklevel)
    key = text, frame.f_code.co_filename, frame.f_lineno
    if next(actions, "default") not in ("default", "module", "once") or key not in _ISSUED_WARNINGS:
        _ISSUED_WARNINGS.add(key)
        warnings.warn(text, category, stacklevel=stacklevel + 1)


def describe_error(error: Exception) -> str:
    """Return the message of an error in one line, after its class if it is not an error of the package."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FedsgdError) else f"{type(error).__name__}: {text}"


def suggest_name(word: str, options: Iterable[str]) -> str:
    """Return `, did you mean "top-k"?` where a valid name is near, else a list of at most 30 valid names.

    >>> suggest_name("top_k", ["dense", "top-k"])
    ', did you mean "top-k"?'
    """
    word, names = str(word), sorted(options)  # a user's value may have another type
    nearest_name = max(names, key=lambda name: _similarity(word, name), default="")
    if nearest_name and _similarity(word, nearest_name) >= (
        _MIN_SIMILARITY if word[:1].lower() == nearest_name[:1].lower() else _MIN_SIMILARITY_OTHER_INITIAL
    ):
        return f', did you mean "{nearest_name}"?'
    more = f" and {len(names) - _MAX_LISTED_NAMES} more" if len(names) > _MAX_LISTED_NAMES else ""
    return ", expected one of: " + ", ".join(f'"{name}"' for name in names[:_MAX_LISTED_NAMES]) + more if names else ""


def _similarity(word: str, name: str) -> float:
    """Return the similarity of two names, 0 to 1; case and a common file extension do not count."""
    (word, end), (name, other_end) = _split_extension(word.lower()), _split_extension(name.lower())
    same_end = end == other_end
    return difflib.SequenceMatcher(None, word + end * (not same_end), name + other_end * (not same_end)).ratio()


def _split_extension(name: str) -> tuple[str, str]:
    """Return a file name without its extension, and the extension with its dot."""
    stem, dot, end = name.rpartition(".")
    return (stem, dot + end) if dot else (name, "")
