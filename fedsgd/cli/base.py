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

from fedsgd import __version__
from fedsgd.cli.streams import NO_ROOM, echo, make_streams_safe, report_no_room
from fedsgd.errors import DeploymentError, FedsgdError, OutputError, RunError, ScenarioError, WireError
from fedsgd.user_files import temporary_folder, user_path

if TYPE_CHECKING:
    from fedsgd.scenario import Scenario

USAGE, FAILED, INTERRUPTED = 2, 1, 130


class _Group(click.Group):
    """Turns our own errors into one line and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Make the streams safe before anything is parsed or printed, then run as every command line does."""
        make_streams_safe()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # --help and --version print before any command begins
            if error.errno not in NO_ROOM:
                raise
            report_no_room(error)
            sys.exit(USAGE)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedsgdError as error:
            for text in (str(error), *getattr(error, "__notes__", ())):
                echo(f"fedsgd: {text}", err=True)
            ctx.exit(USAGE if isinstance(error, ScenarioError | OutputError) else FAILED)
        except KeyboardInterrupt:
            echo("fedsgd: interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except MemoryError as error:
            echo(f"fedsgd: not enough memory{f': {error}' if str(error) else ''}", err=True)
            ctx.exit(FAILED)
        except OSError as error:
            if error.errno in NO_ROOM:
                report_no_room(error)
            elif error.filename is None and temporary_folder() is None:  # libraries look for it when they are imported
                echo("fedsgd: no temporary folder can be written; set TMPDIR to a folder that can be", err=True)
            else:
                raise
            ctx.exit(USAGE)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
        return user_path(Path(str(super().convert(value, param, ctx))))


class Finite(click.FloatRange):
    """A number that is one: neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@dataclass(frozen=True)
class Given:
    """What every command that reads a scenario is given."""

    scenario: Path
    settings: tuple[str, ...]
    data: Path | None
    seed: int | None
    as_json: bool
    quiet: bool

    def load(self) -> Scenario:
        """The scenario with its overrides."""
        from fedsgd.overrides import parse_setting
        from fedsgd.scenario import load

        overrides = dict(parse_setting(text) for text in self.settings)
        if self.seed is not None:
            overrides["seed"] = self.seed
        return load(self.scenario, overrides)


def of_a_scenario(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the parameters of `Given` in front of its own."""

    @functools.wraps(command)
    def called(
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
        command(Given(scenario, settings, data, seed, as_json, quiet), **own)

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
        called = decorate(called)
    return called


@contextmanager
def ledger_is_told_of(out: Path) -> Iterator[None]:
    """Where a run breaks off, say where its ledger is, if there is one."""
    try:
        yield
    except (RunError, WireError, DeploymentError, KeyboardInterrupt):
        ledger = out / "ledger.parquet"
        if ledger.is_file() or (ledger.is_dir() and any(ledger.iterdir())):
            echo(f"fedsgd: the ledger up to there is in {out / 'ledger.parquet'}", err=True)
        raise


@contextmanager
def numbered_folder(name: str) -> Iterator[Path]:
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
