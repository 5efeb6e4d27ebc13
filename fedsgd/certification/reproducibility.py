"""Fresh interpreters: one decodes the frames of this process, another encodes the same vectors.

Of this process's state, a fresh interpreter gets the environment, import path and compressor fields only. Hash seeds differ.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from struct import Struct
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.certificate import CompressorLike
from fedsgd.certification.simulate_rounds import RoundFrames, decode_rounds, encode_rounds, hash_frames, rebuild
from fedsgd.errors import LawError, describe_error
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.user_files import find_temporary_folder

SERVE_COMMAND = "from fedsgd.certification.reproducibility import serve; serve()"
EXIT_SECONDS = 10.0
"""Time limit for a process that has closed its pipes."""
_LENGTH = Struct("<Q")
_ERROR, _END = b"error ", b""


class FreshInterpreter:
    """Interpreter that decodes and encodes the frames of one or several compressors.

    The environment and the import path are copied from this process when the object is created, before anything is encoded.
    After importing the compressors' modules, the interpreter works in an empty folder, which is also its folder for temporary
    files. If the interpreter ends too early, the next request starts a new interpreter; `compute_digests` always does.
    Files by absolute paths and shared memory are still accessible.
    """

    def __init__(self, compressors: Sequence[CompressorLike]) -> None:
        self._pickled = [_pickle(compressor) for compressor in compressors]
        # The interpreter imports modules from the same folders as this process, the user's own included.
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"}
        self._folder: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FreshInterpreter:
        if find_temporary_folder() is not None:
            self._folder = TemporaryDirectory(prefix="fedsgd-certificate-", ignore_cleanup_errors=True)
            self._environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._folder.name)
        with suppress(LawError):  # the first request raises the error again
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    def decode(
        self, compressor_index: int, rounds: Sequence[RoundFrames], layout: ParameterLayout, seconds: float
    ) -> Iterator[NDArray[Any]]:
        """Return the vectors of `decode_rounds` in the fresh interpreter.

        Raises:
            LawError: the interpreter ended or did not reply in time; from the iterator: the compressor raised an error.
        """
        return map(_read_array, self._send_request(("decode", self._pickled[compressor_index], rounds, layout), seconds))

    def compute_digests(
        self, updates: F32, layout: ParameterLayout, references: Sequence[Sequence[bytes]]
    ) -> list[tuple[str | None, str]]:
        """Return the digest of each compressor's frames of updates [R, m, P], or None and the reason.

        A new interpreter encodes the frames, because a client knows only the server's reference frames: `references` has the
        frames of each compressor and round.
        """
        self._stop()
        try:
            (reply,) = self._send_request(("encode", self._pickled, updates, layout, references))
        except LawError as error:
            return [(None, str(error))] * len(self._pickled)
        return [(digest, reason) for digest, reason in json.loads(reply)]

    def _send_request(self, request: tuple[Any, ...], seconds: float = threading.TIMEOUT_MAX) -> list[bytes]:
        """Send a request and wait for all replies; LawError if the interpreter ends, or is stopped after `seconds`."""
        process = self._process or self._start()
        timeout = threading.Event()

        def kill_process() -> None:
            timeout.set()
            process.kill()

        timer = threading.Timer(seconds, kill_process)
        timer.start()
        try:
            _send(process, pickle.dumps(request))
            return [*iter(partial(_receive, process), _END)]
        except (OSError, EOFError):
            reason = f"did not reply in {seconds:.0f} s" if timeout.is_set() else ""
            raise LawError(self._stop_and_explain(process, reason)) from None
        finally:
            timer.cancel()

    def _stop_and_explain(self, process: subprocess.Popen[bytes], reason: str) -> str:
        """Stop an interpreter that does not reply, and return a clause with the reason."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=EXIT_SECONDS)
        code = process.returncode
        self._stop()
        text = "" if self._folder is None else self._stderr_path.read_text(errors="replace")
        last_line = (text.strip().splitlines() or ["no message"])[-1]
        return f"the fresh interpreter {reason or f'ended with exit status {code}: {last_line}'}"

    def _start(self) -> subprocess.Popen[bytes]:
        errors: int | IO[bytes] = subprocess.DEVNULL if self._folder is None else self._stderr_path.open("wb")
        command, pipe = [sys.executable, "-P", "-c", SERVE_COMMAND], subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=self._environment)
        except OSError as error:
            raise LawError(f"the fresh interpreter cannot be started: {error}") from None
        finally:
            if not isinstance(errors, int):
                errors.close()
        with suppress(OSError):  # the next request raises the error
            _send(self._process, pickle.dumps((self._pickled, None if self._folder is None else self._folder.name)))
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(OSError):  # closing may fail to flush the rest of a request
                stream.close()

    @property
    def _stderr_path(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, "stderr")


def _pickle(compressor: CompressorLike) -> bytes | str:
    """Return the pickled compressor, or the reason why it cannot be pickled."""
    try:
        return pickle.dumps(rebuild(compressor))
    except Exception as error:
        return f"cannot be pickled: {describe_error(error)}"


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    _write(process.stdin, data)


def _receive(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return _read(process.stdout)


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """Read the data of one `_write`; EOFError if the stream ends before."""
    head = stream.read(_LENGTH.size)
    data = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if len(head) < _LENGTH.size or len(data) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return data


def _read_array(reply: bytes) -> NDArray[Any]:
    if reply.startswith(_ERROR):
        raise LawError(reply.removeprefix(_ERROR).decode())
    array: NDArray[Any] = np.load(BytesIO(reply), allow_pickle=False)
    return array


# --------------------------------------------------------------------------------------------------- in the fresh interpreter


def serve() -> None:
    """Reply to the requests on standard input until it ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # a user's module may print
    compressors, folder = pickle.loads(_read(requests))
    for compressor in compressors:  # modules may read files by paths relative to the present folder, so they are imported here
        with suppress(Exception):
            pickle.loads(compressor)
    if folder is not None:
        os.chdir(folder)
    with suppress(EOFError):
        while True:
            task, *arguments = pickle.loads(_read(requests))
            for reply in (_decode if task == "decode" else _encode)(*arguments):
                _write(replies, reply)
            _write(replies, _END)


def _decode(pickled: bytes | str, rounds: Sequence[RoundFrames], layout: ParameterLayout) -> Iterator[bytes]:
    try:
        for vector in decode_rounds(_unpickle(pickled), rounds, layout):
            stream = BytesIO()
            np.save(stream, vector, allow_pickle=False)
            yield stream.getvalue()
    except Exception as error:
        yield _ERROR + describe_error(error).encode(errors="replace")


def _encode(
    pickled: Sequence[bytes | str], updates: F32, layout: ParameterLayout, references: Sequence[Sequence[bytes]]
) -> Iterator[bytes]:
    digests: list[tuple[str | None, str]] = []
    for compressor, frames in zip(pickled, references, strict=True):
        try:
            digests.append((hash_frames(encode_rounds(_unpickle(compressor), updates, layout, frames)), ""))
        except Exception as error:
            digests.append((None, describe_error(error)))
    yield json.dumps(digests).encode()


def _unpickle(pickled: bytes | str) -> CompressorLike:
    if isinstance(pickled, str):
        raise LawError(pickled)
    compressor: CompressorLike = pickle.loads(pickled)
    return compressor
