"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd import __version__
from fedsgd.errors import FedsgdError, OutputError, RunError, ScenarioError, WireError

if TYPE_CHECKING:
    from fedsgd.certificate import Certificate
    from fedsgd.scenario import Scenario

FAMILIES = ("compressors", "datasets", "durations", "models", "optimizers", "partitioners", "samplers", "schedules")
USAGE, FAILED, INTERRUPTED = 2, 1, 130


class _Group(click.Group):
    """Turns our own errors into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedsgdError as error:
            click.echo(f"fedsgd: {error}", err=True)
            ctx.exit(USAGE if isinstance(error, ScenarioError | OutputError) else FAILED)
        except KeyboardInterrupt:
            click.echo("fedsgd: interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedsgd")
def main() -> None:
    """Federated training in which every byte is encoded, decoded, counted and explained.

    Exit status: 0 done; 1 a run or its data failed; 2 a setting, option or output folder is wrong; 130 interrupted.
    """
    # A user's own module is looked for where they stand, as `python -m` would; installed packages come first.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


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
        from fedsgd.scenario import load
        from fedsgd.schema import parse_setting

        overrides = dict(parse_setting(text) for text in self.settings)
        if self.seed is not None:
            overrides["seed"] = self.seed
        return load(self.scenario, overrides)


def _of_a_scenario(command: Callable[..., None]) -> Callable[..., None]:
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
        click.argument("scenario", type=click.Path(path_type=Path)),
        click.option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            help="Override a key of the scenario, e.g. uplink.compressor.density=0.1. Repeatable. Setting a `name` resets the "
            "other keys of that component to the new member's defaults.",
        ),
        click.option(
            "--data", type=click.Path(path_type=Path), envvar="FEDSGD_DATA", show_envvar=True, help="Folder of data files."
        ),
        click.option("--seed", type=int, help="Override the scenario's seed."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]
    for decorate in reversed(decorators):
        called = decorate(called)
    return called


@main.command()
@_of_a_scenario
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to write. [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run folder.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="Train clients in K processes, one a core. Results do not depend on it.",
)
@click.option("--profile", is_flag=True, help="Also print where the time of a round went.")
def run(given: Given, out: Path | None, overwrite: bool, workers: int, profile: bool) -> None:
    """Run the experiment that SCENARIO (a TOML file) describes.

    The run folder gets scenario.toml (resolved), rounds.parquet, ledger.parquet, params.safetensors and summary.json; and
    clients.parquet with [evaluation] clients = true.
    Progress goes to standard error, results to standard output.
    """
    from fedsgd.forking import begin
    from fedsgd.scenario import in_file

    scenario = given.load()
    begin(workers)  # before torch is imported here, so that it is imported there at the same time
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores and not given.quiet:
        click.echo(
            f"fedsgd: {workers} workers share {cores} core{'s' * (cores > 1)}: no faster than {cores} would be", err=True
        )
    with in_file(given.scenario), _numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _run(scenario, given, folder, overwrite=overwrite, workers=workers, profile=profile)


def _run(scenario: Scenario, given: Given, out: Path, **options: Any) -> None:
    from fedsgd import console

    try:
        with console.progress(scenario, given.quiet) as shown:
            from fedsgd.experiment import run as run_scenario

            result = run_scenario(scenario, out=out, data=given.data, **options, **shown._asdict())
    except (RunError, WireError, KeyboardInterrupt):
        if (out / "ledger.parquet").exists():
            click.echo(f"fedsgd: the ledger up to there is in {out / 'ledger.parquet'}", err=True)
        raise
    if given.as_json:
        click.echo(json.dumps(result.summary, indent=2))
    else:
        console.show_result(result)


@contextmanager
def _numbered_folder(name: str) -> Iterator[Path]:
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


@main.command()
@_of_a_scenario
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw it: a file that ends in .png or .svg.")
def partition(given: Given, picture: Path | None) -> None:
    """Show how SCENARIO splits its data over clients: how many examples of which class each trains on.

    Up to 20 clients have a row each, more are summarised; a picture has a bar for each of up to 40, or a map. "distance" is the
    total variation between a client's class distribution and that of all clients: 0 the same, 1 nothing in common.
    """
    from fedsgd import console
    from fedsgd.scenario import in_file
    from fedsgd.splits import split_of

    scenario = given.load()
    if picture is not None:
        from fedsgd.pictures import check_format, draw_split

        check_format(picture)
    with in_file(given.scenario), console.waiting(f"reading {scenario.data.source.name}", given.quiet):
        split = split_of(scenario, given.data)
        if picture is not None:
            draw_split(split, picture)
    if given.as_json:
        click.echo(json.dumps(split.to_json()))
    else:
        console.show_split(split)
    if picture is not None:
        click.echo(f"drawn to {picture}", err=True)


@main.command()
@click.argument("compressor", required=False)
@click.option("--all", "every", is_flag=True, help="One table of every registered compressor at its defaults.")
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a field of COMPRESSOR, e.g. density=0.1. Repeatable."
)
@click.option("--error-feedback", type=click.Choice(("none", "persist", "decay", "reset")), default="none", show_default=True)
@click.option("--data", type=click.Choice(("real", "gaussian", "laplace")), default="real", show_default=True)
@click.option("--size", type=int, help="P of gaussian and laplace vectors.  [default: 200000]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write certificate.json and certificate.md to.")
@click.option("--no-laws", is_flag=True, help="With --all: measure only, without the law suite.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
@click.option("--markdown", is_flag=True, help="Print Markdown on standard output.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def certify(
    compressor: str | None,
    every: bool,
    out: Path | None,
    as_json: bool,
    markdown: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Put COMPRESSOR through the laws of its kind, and measure its bytes, errors and times.

    COMPRESSOR is a registered name (see `fedsgd list compressors`) or my_package.my_module:MyCompressor. Real vectors are the
    updates of a small federation that is trained here first, in seconds, from data that come with scikit-learn.

    Exit status 1 if a law is broken.
    """
    if every == (compressor is not None):
        raise click.UsageError("give either COMPRESSOR or --all")
    if as_json and markdown:
        raise click.UsageError("give either --json or --markdown")
    if every and (asked["settings"] or out or asked["error_feedback"] != "none"):
        raise click.UsageError("--set, --error-feedback and --out are for one COMPRESSOR")
    if asked["no_laws"] and not every:
        raise click.UsageError("--no-laws goes with --all")
    from fedsgd import console
    from fedsgd.certificate import report

    # What somebody's own module prints does not get into our output.
    with console.waiting(f"certifying {compressor or 'all compressors'}", quiet), redirect_stdout(sys.stderr):
        made = _certificates(compressor, **asked)
    if out is not None:
        report.save(made[0], out)
    if as_json:
        click.echo(report.to_text(*made, together=every))
    elif markdown:
        click.echo(report.comparison_markdown(made) if every else report.to_markdown(made[0]), nl=False)
    elif every:
        console.show_comparison(made)
    else:
        console.show_certificate(made[0])
    if out is not None:
        click.echo(f"written to {out}", err=True)
    if not all(certificate.passed for certificate in made):
        click.get_current_context().exit(FAILED)


def _certificates(
    compressor: str | None, settings: Sequence[str], error_feedback: Any, data: str, size: int | None, no_laws: bool
) -> list[Certificate]:
    from fedsgd.certificate import certify as certify_one
    from fedsgd.certificate import certify_all
    from fedsgd.schema import parse_setting

    if compressor is None:
        return certify_all(data=data, size=size, laws=not no_laws)
    given = dict(parse_setting(text) for text in settings)
    return [certify_one(compressor, given, error_feedback=error_feedback, data=data, size=size)]


@main.command(name="list")
@click.argument("family", type=click.Choice(FAMILIES), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_members(family: str | None, as_json: bool) -> None:
    """List what a scenario can name, with keys and defaults: one FAMILY, or all."""
    from fedsgd import schema

    registries = {registry.plural: registry for registry in schema.FAMILIES.values()}
    listing = {name: schema.describe(registries[name]) for name in ([family] if family else FAMILIES)}
    if as_json:
        click.echo(json.dumps(listing[family] if family else listing, indent=2))
        return
    for name, members in listing.items():
        if not family:
            click.secho(name, bold=True)
        for member in members:
            shown = {key: _shown(value) for key, value in member["keys"].items()}
            keys = ", ".join(f"{key} = {value}" for key, value in shown.items())
            also = f" (or {', '.join(member['also'])})" if member["also"] else ""
            click.echo(f"  {click.style(member['name'], fg='cyan')}{also}: {member['summary']}")
            if keys:
                click.secho(f"      {keys}", dim=True)


def _shown(default: Any) -> str:
    """A key's default as TOML has it, nearly; or that there is none."""
    if default in (None, "required"):
        return "(unset)" if default is None else "(required)"
    return json.dumps(default)
