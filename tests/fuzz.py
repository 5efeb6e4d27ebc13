"""Fuzzing of every decoder: `python -m tests.fuzz [--seconds 600] [--seed N] [--first N] [--only PATTERN] [--json FILE]`.

Seed and number determine a frame, so that it can be tried again. Numba's own arrays do not show in tracemalloc, so run the script
with FEDSGD_KERNELS=numpy too, and with NUMBA_BOUNDSCHECK=1 and another NUMBA_CACHE_DIR.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from fedsgd.errors import WireError
from fedsgd.numerics.kernels import Kernel
from tests.hostile.basis import SIZES, Target, ViolationError, require
from tests.hostile.mutators import mutant
from tests.hostile.targets import targets

SHARES = dict(zip(SIZES, (1, 1, 2, 4, 3, 3, 1), strict=True))
"""Relative frequency of each size."""
USES_REFERENCES = os.environ.get("FEDSGD_KERNELS") == "numpy"
CHECKS_BOUNDS = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
HANG_SECONDS = 60
MAX_DENSE_VECTORS, MAX_BASE_BYTES = 64 if USES_REFERENCES else 24, 1 << 18
"""Memory that a frame may allocate: a multiple of the dense vector, and a constant. Reference kernels need several float64 vectors."""
MAX_MS, MAX_MICROSECONDS_PER_COORDINATE = (400, 400) if USES_REFERENCES or CHECKS_BOUNDS else (40, 4)
"""Time that a frame may take: a constant, and a time for each coordinate."""
MEASUREMENT_INTERVAL = 16
"""One of so many frames is decoded again under tracemalloc, and again with the reference kernels."""


@contextmanager
def use_reference_kernels() -> Iterator[None]:
    """Replace every kernel by its reference within the block."""
    with patch.object(Kernel, "__call__", lambda kernel, *args, **kwargs: kernel.reference(*args, **kwargs)):
        yield


@dataclass
class Tally:
    """Counts and maxima of one decoder's frames."""

    frames: int = 0
    refused: int = 0
    harmless: int = 0
    slowest_ms: float = 0.0
    slowest_size: int = 0
    most_dense: float = 0.0


@dataclass
class Campaign:
    """Counts, causes of errors, and violations of all frames."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    causes: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    compared: int = 0
    seconds: float = 0.0
    grown_mib: float = 0.0

    def total(self, name: str) -> int:
        """Return the sum of a count over all decoders."""
        return sum(getattr(tally, name) for tally in self.tallies.values())


def evaluate(target: Target, data: bytes) -> NDArray[Any] | str:
    """Return the decoded vector or the message of a WireError; raise ViolationError for any other exception."""
    try:
        return target.decode(data)
    except WireError as error:
        return str(error)
    except ViolationError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ViolationError(f"{type(error).__name__}: {error}") from error


def compare(target: Target, data: bytes, result: NDArray[Any] | str) -> None:
    """Raise ViolationError unless the reference kernels give an equal result."""
    with use_reference_kernels():
        expected = evaluate(target, data)
    if isinstance(result, str) or isinstance(expected, str):
        is_equal = isinstance(result, str) and isinstance(expected, str) and result == expected
    else:
        is_equal = result.dtype == expected.dtype and np.array_equal(result, expected)
    require(is_equal, f"result of the compiled kernels: {result!s:.200}; of the reference kernels: {expected!s:.200}")


def measure_peak_bytes(target: Target, data: bytes) -> int:
    """Return the largest memory that numpy and Python allocate while the frame is decoded."""
    tracemalloc.start()
    try:
        evaluate(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attack(campaign: Campaign, target: Target, data: bytes, thorough: bool) -> None:
    """Decode one frame, and record the result."""
    tally = campaign.tallies.setdefault(target.name, Tally())
    tally.frames += 1
    try:
        start = time.perf_counter()
        result = evaluate(target, data)
        duration = 1000 * (time.perf_counter() - start)
        limit = MAX_MS + MAX_MICROSECONDS_PER_COORDINATE * target.size / 1000
        for _ in range(3):  # a kernel may have been compiled, or another process may have used the processor
            if duration > min(limit, 3 + tally.slowest_ms):
                start = time.perf_counter()
                evaluate(target, data)
                duration = min(duration, 1000 * (time.perf_counter() - start))
        if duration > tally.slowest_ms:
            tally.slowest_ms, tally.slowest_size = duration, target.size
        require(duration < limit, f"took {duration:.0f} ms, expected less than {limit:.0f} ms")
        if thorough:
            _measure_frame(campaign, tally, target, data, result)
    except ViolationError as violation:
        record = {"target": target.name, "size": target.size, "what": str(violation), "frame": data.hex()}
        campaign.violations.append(record)
        return
    if isinstance(result, str):
        tally.refused += 1
        campaign.causes[re.sub(r"-?[\d.]+(e[+-]?\d+)?", "N", result.partition("byte ")[2].partition(": ")[2])[:80]] += 1
    else:
        tally.harmless += 1


def _measure_frame(campaign: Campaign, tally: Tally, target: Target, data: bytes, result: NDArray[Any] | str) -> None:
    if not USES_REFERENCES and target.size <= 2000:
        campaign.compared += 1
        compare(target, data, result)
    peak, dense = measure_peak_bytes(target, data), 4 * target.size
    if target.size >= 2000:  # for smaller vectors, Python's objects need most of the memory
        tally.most_dense = max(tally.most_dense, peak / dense)
    require(peak < MAX_BASE_BYTES + MAX_DENSE_VECTORS * dense, f"allocated {peak} bytes, with a dense vector of {dense} bytes")


@cache
def list_targets(size: int, only: str) -> list[Callable[[], Target]]:
    """Return the targets of a size whose names match a shell pattern."""
    return [build for build in targets(size) if only == "*" or fnmatchcase(build().name, only)]


def draw_frame(seed: int, number: int, only: str = "*") -> tuple[Target, bytes]:
    """Return the target and the bytes of frame `number`."""
    r = Random(f"{seed}/{number}")
    size = r.choices(SIZES, SHARES.values())[0]
    target = r.choice(list_targets(size, only))()
    donor = r.choice(targets(r.choice((size, size, 7, 64))))()
    return target, mutant(r, r.choice(target.frames), donor.frames, size)


def warm_up(only: str) -> None:
    """Decode all valid frames, so that kernels are compiled before the first measurement."""
    for size in SIZES[:-1]:
        for build in list_targets(size, only):
            target = build()
            for frame in target.frames:
                require(not isinstance(evaluate(target, frame), str), f"{target.name}: a valid frame is rejected")


def run(seconds: float, seed: int, first: int = 0, only: str = "*", progress: bool = False) -> Campaign:
    """Decode mutated frames for some seconds, after warming up."""
    warm_up(only)
    campaign, start, number, last_report = Campaign(), time.monotonic(), first, 0.0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while (elapsed := time.monotonic() - start) < seconds:
        if progress:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
        attack(campaign, *draw_frame(seed, number, only), thorough=number % MEASUREMENT_INTERVAL == 0)
        number += 1
        if progress and elapsed - last_report > 5:
            last_report = elapsed
            print(f"{elapsed:5.0f} s, frame {number}, {len(campaign.violations)} violations", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    campaign.seconds = time.monotonic() - start
    campaign.grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    return campaign


def format_table(campaign: Campaign) -> str:
    """Format the figures, with a line for each decoder."""
    lines = [f"{'decoder':76.76} {'frames':>8} {'refused':>8} {'harmless':>8} {'slowest ms':>10} {'at P':>6} {'× dense':>8}"]
    for name, t in sorted(campaign.tallies.items()):
        lines.append(
            f"{name:76.76} {t.frames:8} {t.refused:8} {t.harmless:8} {t.slowest_ms:10.2f} {t.slowest_size:6} {t.most_dense:8.1f}"
        )
    slowest = max((t.slowest_ms for t in campaign.tallies.values()), default=0.0)
    most = max((t.most_dense for t in campaign.tallies.values()), default=0.0)
    lines += [
        f"{campaign.total('frames')} frames in {campaign.seconds:.0f} s: {campaign.total('refused')} refused for"
        f" {len(campaign.causes)} causes, {campaign.total('harmless')} harmless, {len(campaign.violations)} violations",
        f"slowest frame {slowest:.2f} ms, largest allocation {most:.1f} dense vectors, resident memory grew by"
        f" {campaign.grown_mib:.0f} MiB, {campaign.compared} frames compared with the reference kernels",
    ]
    return "\n".join(lines)


def to_json(campaign: Campaign) -> dict[str, Any]:
    """Return the figures as JSON types."""
    return {
        "seconds": campaign.seconds,
        "frames": campaign.total("frames"),
        "refused": campaign.total("refused"),
        "harmless": campaign.total("harmless"),
        "compared": campaign.compared,
        "resident_grown_mib": campaign.grown_mib,
        "decoders": {name: vars(tally) for name, tally in sorted(campaign.tallies.items())},
        "causes": dict(campaign.causes.most_common()),
        "violations": campaign.violations,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if there is a violation."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first frame")
    parser.add_argument("--only", default="*", help="shell pattern of decoder names")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        campaign = run(options.seconds, options.seed, options.first, options.only, progress=True)
    print(format_table(campaign))
    for violation in campaign.violations[:20]:
        print(f"VIOLATION {violation['target']} P = {violation['size']}: {violation['what']}\n  {violation['frame'][:2000]}")
    if options.json:
        options.json.write_text(json.dumps(to_json(campaign), indent=1))
    return 1 if campaign.violations else 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
