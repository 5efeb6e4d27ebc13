"""The command line, one module for each command.

Commands import large modules inside their functions, so that `--help` answers quickly.
"""

from fedsgd.cli import (
    certify,
    compare,
    completion,
    docs,
    explain,
    flower,
    init,
    partition,
    plan,
    price,
    replicate,
    report,
    resume,
    run,
    sweep,
)
from fedsgd.cli.app import main
from fedsgd.cli.list import list_command

__all__ = [
    "certify",
    "compare",
    "completion",
    "docs",
    "explain",
    "flower",
    "init",
    "list_command",
    "main",
    "partition",
    "plan",
    "price",
    "replicate",
    "report",
    "resume",
    "run",
    "sweep",
]
