"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from fedsgd.cli import certify, compare, flower, partition, price, report, run, sweep
from fedsgd.cli.app import main
from fedsgd.cli.list import list_members

__all__ = ["certify", "compare", "flower", "list_members", "main", "partition", "price", "report", "run", "sweep"]
