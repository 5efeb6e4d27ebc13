"""Count of the files that a reader enters who follows one scenario from its file to a result.

    python -m tests.reading_path

Each function of the package counts once, at its first call in a run of one round of the quickstart. The counts are of the
packages `scenario`, `experiment`, `federation` and `runtime`; a move is a call in another package than the call before.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import CodeType, FrameType

import fedsgd
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import load

PACKAGE = Path(fedsgd.__file__).parent
PACKAGES = ("scenario", "experiment", "federation", "runtime")


def trace_first_calls() -> list[str]:
    """Run one round, and return the file of each function of the package, in the order of the functions' first calls."""
    codes: dict[CodeType, str] = {}

    def record_call(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code not in codes and code.co_filename.startswith(f"{PACKAGE}/"):
            codes[code] = Path(code.co_filename).relative_to(PACKAGE).as_posix()

    sys.setprofile(record_call)
    try:
        run(load(PACKAGE.parent / "scenarios" / "quickstart.toml", {"rounds": 1}))
    finally:
        sys.setprofile(None)
    return [file for file in codes.values() if file.startswith(tuple(f"{name}/" for name in PACKAGES))]


def main() -> None:
    """Print the counts."""
    files = trace_first_calls()
    packages = [file.partition("/")[0] for file in files]
    moves = [i for i in range(1, len(files)) if packages[i] != packages[i - 1]]
    returns = [i for i in moves if packages[i] in packages[:i]]
    builder = "experiment/builder.py"
    entries = sum(after == builder != before for before, after in itertools.pairwise(files))
    print(
        f"{len(set(files))} files, {len(moves)} moves between packages, {len(returns)} returns, {builder} entered {entries} times"
    )


if __name__ == "__main__":
    main()
