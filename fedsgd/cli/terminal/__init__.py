"""Output in a terminal: progress of a run and tables of its results. Only this package imports rich."""

from fedsgd.cli.terminal.certificate_tables import print_certificate, print_certificates
from fedsgd.cli.terminal.comparison_tables import check_price_columns, print_comparison, print_price
from fedsgd.cli.terminal.fleet_tables import print_fleet
from fedsgd.cli.terminal.partition_tables import MAX_CLASSES, MAX_ROWS, print_partition
from fedsgd.cli.terminal.plan_tables import print_plan
from fedsgd.cli.terminal.progress import ProgressCallbacks, show_deployment_progress, show_progress, spinner
from fedsgd.cli.terminal.replication_tables import print_replication, print_studies
from fedsgd.cli.terminal.run_tables import print_result
from fedsgd.cli.terminal.sweep_tables import check_sweep_columns, print_sweep, show_sweep_progress
from fedsgd.cli.terminal.utilization_tables import print_utilizations

__all__ = [
    "MAX_CLASSES",
    "MAX_ROWS",
    "ProgressCallbacks",
    "check_price_columns",
    "check_sweep_columns",
    "print_certificate",
    "print_certificates",
    "print_comparison",
    "print_fleet",
    "print_partition",
    "print_plan",
    "print_price",
    "print_replication",
    "print_result",
    "print_studies",
    "print_sweep",
    "print_utilizations",
    "show_deployment_progress",
    "show_progress",
    "show_sweep_progress",
    "spinner",
]
