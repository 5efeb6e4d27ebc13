"""The same bytes from a fresh interpreter: its hashes are seeded anew, and nothing is left in it from before."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsgd.certificate.base import Subject
from fedsgd.certificate.exchange import digest, exchanges
from fedsgd.certificate.sample import Sample

COMMAND = "from fedsgd.certificate.fresh import answer; answer()"


def fresh_digests(compressors: Sequence[Subject], sample: Sample) -> list[tuple[str | None, str]]:
    """(digest of the frames, or None and why there is none) of each compressor, from one interpreter for all of them."""
    pickled = [_pickled(compressor) for compressor in compressors]
    task = pickle.dumps((pickled, sample.updates, sample.layout))
    # The modules are to be found where this process finds them, the user's own included.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"}
    done = subprocess.run([sys.executable, "-P", "-c", COMMAND], input=task, capture_output=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return [(None, f"the fresh interpreter ended with {done.returncode}: {last}")] * len(compressors)
    return [(found, why) for found, why in json.loads(done.stdout)]


def _pickled(compressor: Subject) -> bytes | str:
    """The compressor for another process, or why it cannot go there."""
    try:
        return pickle.dumps(compressor)
    except Exception as error:
        return f"cannot be pickled: {type(error).__name__}: {error}"


def answer() -> None:
    """What the fresh interpreter does: a task on standard input, its digests as JSON on standard output."""
    with contextlib.redirect_stdout(sys.stderr):  # a user's module may print
        pickled, updates, layout = pickle.load(sys.stdin.buffer)
        found = []
        for one in pickled:
            try:
                known = isinstance(one, str)
                found.append((None, one) if known else (digest(exchanges(pickle.loads(one), updates, layout)), ""))
            except Exception as error:
                found.append((None, f"{type(error).__name__}: {error}"))
    json.dump(found, sys.stdout)
