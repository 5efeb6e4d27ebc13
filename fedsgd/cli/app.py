"""The group of all commands: exit codes, and errors printed as one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fedsgd._version import __version__
from fedsgd.cli.streams import DISK_FULL_ERRNOS, echo, make_streams_safe, report_disk_full
from fedsgd.errors import FedsgdError, OutputError, RunInterrupted, ScenarioError
from fedsgd.system.user_files import append_to_path, find_temporary_folder

EXIT_USAGE, EXIT_FAILURE, EXIT_INTERRUPTED = 2, 1, 130


class _CommandGroup(click.Group):
    """Group of commands that prints an error of the package as one line and exits with a status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line, on streams that replace characters outside their encoding."""
        make_streams_safe()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # --help and --version print before a command is invoked
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            report_disk_full(error)
            sys.exit(EXIT_USAGE)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedsgdError as error:
            for line in (str(error), *getattr(error, "__notes__", ())):
                echo(f"fedsgd: {line}", err=True)
            ctx.exit(EXIT_USAGE if isinstance(error, ScenarioError | OutputError) else EXIT_FAILURE)
        except KeyboardInterrupt as error:
            echo(f"fedsgd: {error if isinstance(error, RunInterrupted) else 'interrupted'}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except MemoryError as error:
            echo(f"fedsgd: not enough memory{f': {error}' if str(error) else ''}", err=True)
            ctx.exit(EXIT_FAILURE)
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                report_disk_full(error)
            elif error.filename is None and find_temporary_folder() is None:  # libraries need one for their import
                echo("fedsgd: no temporary folder is writable; set TMPDIR to a writable folder", err=True)
            else:
                raise
            ctx.exit(EXIT_USAGE)


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedsgd")
def main() -> None:
    """Simulate federated learning and measure its traffic byte by byte.

    Exit status: 0 success; 1 a run or its data failed; 2 a setting, option or output folder is invalid; 130 interrupted.
    """
    # Modules in the working directory can be imported too; installed packages of the same name come first.
    append_to_path(str(Path.cwd()))
