"""What all commands have in common: errors in one line, the options of a scenario, the run folder."""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd._version import __version__
from fedsgd.cli.terminal.streams import DISK_FULL_ERRNOS, echo, make_streams_safe, report_disk_full
from fedsgd.errors import DeploymentError, FedsgdError, OutputError, RunError, ScenarioError, WireError
from fedsgd.system.user_files import expand_user_path, find_temporary_folder

if TYPE_CHECKING:
    from fedsgd.scenario.scenario import Scenario

EXIT_USAGE, EXIT_FAILURE, EXIT_INTERRUPTED = 2, 1, 130


class _CommandGroup(click.Group):
    """Turns our own errors into one line and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Make the streams safe before anything is parsed or printed, then run as every command line does."""
        make_streams_safe()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # --help and --version print before any command begins
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            report_disk_full(error)
            sys.exit(EXIT_USAGE)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedsgdError as error:
            for text in (str(error), *getattr(error, "__notes__", ())):
                echo(f"fedsgd: {text}", err=True)
            ctx.exit(EXIT_USAGE if isinstance(error, ScenarioError | OutputError) else EXIT_FAILURE)
        except KeyboardInterrupt:
            echo("fedsgd: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except MemoryError as error:
            echo(f"fedsgd: not enough memory{f': {error}' if str(error) else ''}", err=True)
            ctx.exit(EXIT_FAILURE)
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                report_disk_full(error)
            elif error.filename is None and find_temporary_folder() is None:  # libraries look for it when they are imported
                echo("fedsgd: no temporary folder can be written; set TMPDIR to a folder that can be", err=True)
            else:
                raise
            ctx.exit(EXIT_USAGE)


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedsgd")
def main() -> None:
    """Federated training in which every byte is encoded, decoded, counted and explained.

    Exit status: 0 done; 1 a run or its data failed; 2 a setting, option or output folder is wrong; 130 interrupted.
    """
    # A user's own module is looked for where they stand, as `python -m` would; installed packages come first.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


class UserPath(click.Path):
    """A path, in which a leading `~` is the home folder, also where the shell leaves it: --out=~/runs."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the expanded path."""
        return expand_user_path(Path(str(super().convert(value, param, ctx))))


class FiniteFloat(click.FloatRange):
    """A number that is one: neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@dataclass(frozen=True)
class ScenarioOptions:
    """What every command that reads a scenario is given."""

    scenario: Path
    settings: tuple[str, ...]
    data: Path | None
    seed: int | None
    as_json: bool
    quiet: bool

    def load(self) -> Scenario:
        """The scenario with its overrides."""
        from fedsgd.scenario.overrides import parse_setting
        from fedsgd.scenario.scenario import load

        overrides = dict(parse_setting(text) for text in self.settings)
        if self.seed is not None:
            overrides["seed"] = self.seed
        return load(self.scenario, overrides)


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the parameters of `ScenarioOptions` in front of its own."""

    @functools.wraps(command)
    def wrapper(
        scenario: Path,
        settings: tuple[str, ...],
        data: Path | None,
        seed: int | None,
        as_json: bool,
        quiet: bool,
        **own: Any,
    ) -> None:
        if quiet:  # the datasets library has progress bars of its own
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        command(ScenarioOptions(scenario, settings, data, seed, as_json, quiet), **own)

    decorators = [
        click.argument("scenario", type=UserPath()),
        click.option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            help="Override a key of the scenario, e.g. uplink.compressor.density=0.1. Repeatable. Setting a `name` resets the "
            "other keys of that component to the new member's defaults.",
        ),
        click.option("--data", type=UserPath(), envvar="FEDSGD_DATA", show_envvar=True, help="Folder of data files."),
        click.option("--seed", type=int, help="Override the scenario's seed."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]
    for decorate in reversed(decorators):
        wrapper = decorate(wrapper)
    return wrapper


@contextmanager
def mention_partial_ledger(out: Path) -> Iterator[None]:
    """Where a run breaks off, say where its ledger is, if there is one."""
    try:
        yield
    except (RunError, WireError, DeploymentError, KeyboardInterrupt):
        ledger = out / "ledger.parquet"
        if ledger.is_file() or (ledger.is_dir() and any(ledger.iterdir())):
            echo(f"fedsgd: the ledger up to there is in {out / 'ledger.parquet'}", err=True)
        raise


@contextmanager
def claim_numbered_folder(name: str) -> Iterator[Path]:
    """runs/NAME-N with the lowest N that is free, claimed by making it; gone again if nothing was written to it."""
    runs = Path("runs")
    for n in itertools.count(1):
        folder = runs / f"{name}-{n}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose a folder with --out") from None
    try:
        yield folder
    finally:
        for made in (folder, runs):
            with suppress(OSError):
                made.rmdir()
