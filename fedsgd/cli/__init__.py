"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from fedsgd.cli import analyze, certify, flower, report, run, sweep
from fedsgd.cli.app import main

__all__ = ["analyze", "certify", "flower", "main", "report", "run", "sweep"]
