"""A fresh interpreter that decodes the frames of this process, and another that encodes the same vectors.

Its hashes have another seed, and it has nothing of this process but the compressors' fields.
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
"""Limit for a process that has closed its pipes."""
_LENGTH = Struct("<Q")
_ERROR, _END = b"error ", b""


class FreshInterpreter:
    """One interpreter for all compressors of a certificate.

    Its environment and its import path are those of this process when the object is made, before anything is encoded. Once it
    has imported the compressors' modules, it works in an empty folder, which is its folder for temporary files too. If it ends
    before its time, the next request starts another. `compute_digests` always does.
    Files by absolute paths and shared memory are not hidden from it.

    Args:
        compressors: those that requests refer to by their number.
    """

    def __init__(self, compressors: Sequence[CompressorLike]) -> None:
        self._pickled = [_pickle(compressor) for compressor in compressors]
        # The modules are to be found where this process finds them, the user's own included.
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"}
        self._folder: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FreshInterpreter:
        if find_temporary_folder() is not None:
            self._folder = TemporaryDirectory(prefix="fedsgd-certificate-", ignore_cleanup_errors=True)
            self._environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._folder.name)
        with suppress(LawError):  # the first request raises it again
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

        Args:
            compressor: its number.
            rounds: frames of this process.
            layout: of the vectors.
            seconds: limit for the answer.

        Raises:
            LawError: the interpreter ended or did not answer in time; from the iterator, the compressor raised an error.
        """
        return map(_read_array, self._send_request(("decode", self._pickled[compressor_index], rounds, layout), seconds))

    def compute_digests(
        self, updates: F32, layout: ParameterLayout, references: Sequence[Sequence[bytes]]
    ) -> list[tuple[str | None, str]]:
        """Return the digest of each compressor's frames, or None and the reason.

        A new interpreter encodes them: a client has nothing of the server but the reference frames.

        Args:
            updates: [R, m, P].
            layout: of the updates.
            references: for each compressor the reference frames of this process, one a round.
        """
        self._stop()
        try:
            (answer,) = self._send_request(("encode", self._pickled, updates, layout, references))
        except LawError as error:
            return [(None, str(error))] * len(self._pickled)
        return [(found, why) for found, why in json.loads(answer)]

    def _send_request(self, request: tuple[Any, ...], seconds: float = threading.TIMEOUT_MAX) -> list[bytes]:
        """Send a request and wait for all answers; LawError if the interpreter ends, or has to be stopped after `seconds`."""
        process = self._process or self._start()
        late = threading.Event()

        def stop_waiting() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop_waiting)
        timer.start()
        try:
            _send(process, pickle.dumps(request))
            return [*iter(partial(_receive, process), _END)]
        except (OSError, EOFError):
            raise LawError(
                self._stop_and_explain(process, f"did not answer in {seconds:.0f} s" if late.is_set() else "")
            ) from None
        finally:
            timer.cancel()

    def _stop_and_explain(self, process: subprocess.Popen[bytes], reason: str) -> str:
        """Stop an interpreter that does not answer, and return the reason."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=EXIT_SECONDS)
        code = process.returncode
        self._stop()
        text = "" if self._folder is None else self._stderr_path.read_text(errors="replace")
        last = (text.strip().splitlines() or ["no message"])[-1]
        return f"the fresh interpreter {reason or f'ended with {code}: {last}'}"

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
        with suppress(OSError):  # the next request finds out
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
            with suppress(OSError):  # what was not sent
                stream.close()

    @property
    def _stderr_path(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, "stderr")


def _pickle(compressor: CompressorLike) -> bytes | str:
    """Return the compressor for another process, or the reason why it cannot be sent there."""
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
    """Read what `_write` wrote; EOFError where it ends before."""
    head = stream.read(_LENGTH.size)
    data = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if len(head) < _LENGTH.size or len(data) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return data


def _read_array(answer: bytes) -> NDArray[Any]:
    if answer.startswith(_ERROR):
        raise LawError(answer.removeprefix(_ERROR).decode())
    array: NDArray[Any] = np.load(BytesIO(answer), allow_pickle=False)
    return array


# --------------------------------------------------------------------------------------------------- in the fresh interpreter


def serve() -> None:
    """Answer requests on standard input until it ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # a user's module may print
    compressors, folder = pickle.loads(_read(requests))
    for compressor in compressors:  # their modules may read files by paths that start here
        with suppress(Exception):
            pickle.loads(compressor)
    if folder is not None:
        os.chdir(folder)
    with suppress(EOFError):
        while True:
            task, *arguments = pickle.loads(_read(requests))
            for answer in (_decode if task == "decode" else _encode)(*arguments):
                _write(answers, answer)
            _write(answers, _END)


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
    for compressor, of_rounds in zip(pickled, references, strict=True):
        try:
            digests.append((hash_frames(encode_rounds(_unpickle(compressor), updates, layout, of_rounds)), ""))
        except Exception as error:
            digests.append((None, describe_error(error)))
    yield json.dumps(digests).encode()


def _unpickle(pickled: bytes | str) -> CompressorLike:
    if isinstance(pickled, str):
        raise LawError(pickled)
    compressor: CompressorLike = pickle.loads(pickled)
    return compressor
