"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from fedsgd.cli import compressors, deployments, pages, reports, runs, sweeps
from fedsgd.cli.base import main

__all__ = ["compressors", "deployments", "main", "pages", "reports", "runs", "sweeps"]
