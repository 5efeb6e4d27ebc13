"""Digests of small runs of every scenario, of the quickstart and of every certificate, to compare two commits.

    python -m tests.digests > before.json           at one commit
    python -m tests.digests --compare before.json   at another one, on the same machine

Digests of parameters depend on the machine's floating-point kernels, so the file is not part of the project. The script only
uses the command line, so it runs at commits whose modules have other names. For the same reason it uses the older names of the
downlink policies, which newer commits accept as aliases.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCENARIOS = ROOT / "scenarios"
NO_SCENARIOS = ("pyproject.toml", "methods.toml", "plugin.toml", "quickstart_methods.toml", "study.toml")
SMALL = ("rounds=2", "evaluation.every=1", "client.steps=2", "server.cohort=2")
EXTRA_RUNS = {
    "quickstart at full size": ("quickstart.toml", ()),
    "dgc on two workers": ("dgc.toml", ("--workers", "2", "--set", "rounds=6")),
    "qsgd with error feedback on the downlink": (
        "qsgd.toml",
        ("--set", "rounds=6", "--set", "downlink.policy=error-feedback", "--set", "downlink.compressor.name=top-k"),
    ),
    "eden with an EF21-P downlink": (
        "eden.toml",
        ("--set", "rounds=6", "--set", "downlink.policy=shift", "--set", "downlink.compressor.name=top-k"),
    ),
    "dgc with an unbiased downlink": (
        "dgc.toml",
        ("--set", "rounds=6", "--set", "downlink.policy=plain", "--set", "downlink.compressor.name=qsgd"),
    ),
}
DIGESTS = ("params_sha256", "ledger_sha256")


def main() -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.digests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compare", type=Path, help="file with the digests of another commit; the exit status is 1 if a digest differs"
    )
    options = parser.parse_args()
    digests = {}
    for name, digest in [*run_digests(), *certificate_digests()]:
        print(f"{name}: {digest}", file=sys.stderr, flush=True)
        digests[name] = digest
    if options.compare is None:
        print(json.dumps(digests, indent=1))
        return 0
    return report_differences(json.loads(options.compare.read_text()), digests)


def run_digests() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the digests of each run."""
    paths = sorted(path for path in SCENARIOS.rglob("*.toml") if path.name not in NO_SCENARIOS)
    for path in paths:
        small = [option for setting in SMALL for option in ("--set", setting)]
        yield f"{path.relative_to(SCENARIOS)} at a small size", run(path, small)
    for name, (file, options) in EXTRA_RUNS.items():
        yield name, run(SCENARIOS / file, options)


def run(path: Path, options: Any) -> dict[str, str]:
    """Run a scenario in a temporary folder with the files that commands in the scenario's comments create."""
    with tempfile.TemporaryDirectory() as folder:
        for command in re.findall(r'^#   python -c "(.*)"$', path.read_text(), flags=re.MULTILINE):
            subprocess.run([sys.executable, "-c", command], check=True, cwd=folder)
        summary = json.loads(fedsgd(folder, "run", str(path), *options, "--out", str(Path(folder, "out")), "--json"))
    return {digest: summary[digest] for digest in DIGESTS}


def certificate_digests() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the digest of the frames in each compressor's certificate."""
    with tempfile.TemporaryDirectory() as folder:
        certificates = json.loads(fedsgd(folder, "certify", "--all", "--no-laws", "--json"))
    for certificate in certificates:
        yield f"certificate of {certificate['compressor']['name']}", {"frames_sha256": certificate["frames_sha256"]}


def fedsgd(folder: str, *arguments: str) -> str:
    """Run the command in a folder and return its output; SystemExit with its error output if it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "fedsgd", *arguments]
    process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{process.stderr}")
    return process.stdout


def report_differences(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print the names whose digests differ, and return the exit status."""
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in differing:
        print(f"{name}: before {before.get(name)}, now {after.get(name)}")
    print(f"{len(before)} digests before, {len(after)} now, {len(differing)} differ")
    return bool(differing)


if __name__ == "__main__":
    raise SystemExit(main())
