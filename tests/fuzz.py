"""A campaign against every decoder: `python -m tests.fuzz [--seconds 600] [--seed N] [--first N] [--only PATTERN] [--json FILE]`.

Each frame follows from the seed and its number alone, so a number is enough to try it again. Numba's own arrays do not show in
tracemalloc: run it with FEDSGD_KERNELS=numpy as well, and with NUMBA_BOUNDSCHECK=1 and a NUMBA_CACHE_DIR of its own.
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
"""How often each size is drawn."""
OBVIOUS = os.environ.get("FEDSGD_KERNELS") == "numpy"
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
HUNG_SECONDS = 60
MOST_DENSE, MOST_BYTES = 64 if OBVIOUS else 24, 1 << 18
"""A frame may allocate this multiple of the dense vector, and so much that does not depend on the model. The obvious kernels hold
several float64 vectors at once where the fast ones hold none."""
SLOWEST_MS, SLOWEST_MICROSECONDS = (400, 400) if OBVIOUS or CHECKED else (40, 4)
"""A frame may take this long, and this much longer for each coordinate."""
MEASURED = 16
"""Every so manieth frame is opened once more under tracemalloc, and once more by the obvious kernels."""


@contextmanager
def obvious_kernels() -> Iterator[None]:
    """Within, every kernel is its reference."""
    with patch.object(Kernel, "__call__", lambda kernel, *args, **kwargs: kernel.reference(*args, **kwargs)):
        yield


@dataclass
class Tally:
    """What became of one decoder's frames."""

    frames: int = 0
    refused: int = 0
    harmless: int = 0
    slowest_ms: float = 0.0
    slowest_size: int = 0
    most_dense: float = 0.0


@dataclass
class Campaign:
    """What became of all frames. violations: what happened, and the frame in hex."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    causes: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    compared: int = 0
    seconds: float = 0.0
    grown_mib: float = 0.0

    def total(self, name: str) -> int:
        """The sum over all decoders."""
        return sum(getattr(tally, name) for tally in self.tallies.values())


def verdict(target: Target, data: bytes) -> NDArray[Any] | str:
    """What the frame decodes to, or why it is refused; anything else is a violation."""
    try:
        return target.open(data)
    except WireError as error:
        return str(error)
    except ViolationError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ViolationError(f"{type(error).__name__}: {error}") from error


def compare(target: Target, data: bytes, found: NDArray[Any] | str) -> None:
    """A violation unless the obvious kernels say the same."""
    with obvious_kernels():
        expected = verdict(target, data)
    if isinstance(found, str) or isinstance(expected, str):
        same = isinstance(found, str) and isinstance(expected, str) and found == expected
    else:
        same = found.dtype == expected.dtype and np.array_equal(found, expected)
    require(same, f"the fast kernels say {found!s:.200}, the obvious ones {expected!s:.200}")


def peak_bytes(target: Target, data: bytes) -> int:
    """The most that numpy and Python have allocated at once while the frame is opened."""
    tracemalloc.start()
    try:
        verdict(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attack(campaign: Campaign, target: Target, data: bytes, thorough: bool) -> None:
    """Open one frame, and enter what came of it."""
    tally = campaign.tallies.setdefault(target.name, Tally())
    tally.frames += 1
    try:
        begun = time.perf_counter()
        found = verdict(target, data)
        took = 1000 * (time.perf_counter() - begun)
        allowed = SLOWEST_MS + SLOWEST_MICROSECONDS * target.size / 1000
        for _ in range(3):  # a kernel may have been compiled, or another process may have been in the way
            if took > min(allowed, 3 + tally.slowest_ms):
                begun = time.perf_counter()
                verdict(target, data)
                took = min(took, 1000 * (time.perf_counter() - begun))
        if took > tally.slowest_ms:
            tally.slowest_ms, tally.slowest_size = took, target.size
        require(took < allowed, f"took {took:.0f} ms, {allowed:.0f} allowed")
        if thorough:
            _thorough(campaign, tally, target, data, found)
    except ViolationError as violation:
        what = {"target": target.name, "size": target.size, "what": str(violation), "frame": data.hex()}
        campaign.violations.append(what)
        return
    if isinstance(found, str):
        tally.refused += 1
        campaign.causes[re.sub(r"-?[\d.]+(e[+-]?\d+)?", "N", found.partition("byte ")[2].partition(": ")[2])[:80]] += 1
    else:
        tally.harmless += 1


def _thorough(campaign: Campaign, tally: Tally, target: Target, data: bytes, found: NDArray[Any] | str) -> None:
    if not OBVIOUS and target.size <= 2000:
        campaign.compared += 1
        compare(target, data, found)
    peak, dense = peak_bytes(target, data), 4 * target.size
    if target.size >= 2000:  # below, it is what Python's own objects weigh
        tally.most_dense = max(tally.most_dense, peak / dense)
    require(peak < MOST_BYTES + MOST_DENSE * dense, f"allocated {peak} bytes, the dense vector has {dense}")


@cache
def chosen(size: int, only: str) -> list[Callable[[], Target]]:
    """The targets of a size whose names match a pattern as in a shell."""
    return [make for make in targets(size) if only == "*" or fnmatchcase(make().name, only)]


def pick(seed: int, number: int, only: str = "*") -> tuple[Target, bytes]:
    """Frame `number`: its target, and its bytes."""
    r = Random(f"{seed}/{number}")
    size = r.choices(SIZES, SHARES.values())[0]
    target = r.choice(chosen(size, only))()
    donor = r.choice(targets(r.choice((size, size, 7, 64))))()
    return target, mutant(r, r.choice(target.frames), donor.frames, size)


def warm_up(only: str) -> None:
    """Open what is valid, plain and entropy-coded, so that kernels are compiled before anything is timed."""
    for size in SIZES[:-1]:
        for make in chosen(size, only):
            target = make()
            for frame in target.frames:
                require(not isinstance(verdict(target, frame), str), f"{target.name}: a valid frame was refused")


def run(seconds: float, seed: int, first: int = 0, only: str = "*", progress: bool = False) -> Campaign:
    """Attack for so many seconds after warming up."""
    warm_up(only)
    campaign, begun, number, shown = Campaign(), time.monotonic(), first, 0.0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while (elapsed := time.monotonic() - begun) < seconds:
        if progress:
            faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
        attack(campaign, *pick(seed, number, only), thorough=number % MEASURED == 0)
        number += 1
        if progress and elapsed - shown > 5:
            shown = elapsed
            print(f"{elapsed:5.0f} s, frame {number}, {len(campaign.violations)} violations", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    campaign.seconds = time.monotonic() - begun
    campaign.grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    return campaign


def table(campaign: Campaign) -> str:
    """The figures, a line for each decoder."""
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
        f" {campaign.grown_mib:.0f} MiB, {campaign.compared} frames compared with the obvious kernels",
    ]
    return "\n".join(lines)


def as_json(campaign: Campaign) -> dict[str, Any]:
    """The figures, for a machine."""
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
    """The command line; 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first frame")
    parser.add_argument("--only", default="*", help="the decoders whose names match, as in a shell")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        campaign = run(options.seconds, options.seed, options.first, options.only, progress=True)
    print(table(campaign))
    for violation in campaign.violations[:20]:
        print(f"VIOLATION {violation['target']} P = {violation['size']}: {violation['what']}\n  {violation['frame'][:2000]}")
    if options.json:
        options.json.write_text(json.dumps(as_json(campaign), indent=1))
    return 1 if campaign.violations else 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
