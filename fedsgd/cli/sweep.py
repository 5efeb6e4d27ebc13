"""`fedsgd sweep`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import EXIT_FAILURE, main
from fedsgd.cli.completers import complete_scenario, complete_setting
from fedsgd.cli.option_groups import checkpoint_option, columns_option, engine_device_option, jobs_option, stop_after_option
from fedsgd.cli.options import ScenarioOptions, UserPath, scenario_options
from fedsgd.cli.ranks import refuse_ranks
from fedsgd.cli.run_folders import mention_shared_cores
from fedsgd.cli.streams import echo, echo_json
from fedsgd.cli.targets import report_target_option
from fedsgd.cli.tracking import print_warnings
from fedsgd.system.forkserver import MAX_SEEDS

if TYPE_CHECKING:
    from fedsgd.analysis.comparison import Comparison
    from fedsgd.scenario.target import Target
    from fedsgd.sweeps import Sweep

EPILOG = """Examples:

\b
    fedsgd sweep scenarios/quickstart.toml --grid client.epochs=1,5
    fedsgd sweep scenarios/quickstart.toml --methods methods.toml --seeds 3

Example of a methods file:

\b
    ["top-k 1 %"]
    uplink.compressor = { name = "top-k", density = 0.01 }
    uplink.error_feedback = "persist"
"""


@main.command("sweep", epilog=EPILOG, short_help="Run a scenario with many methods, values and seeds.")
@scenario_options
@engine_device_option
@checkpoint_option
@click.option(
    "--methods",
    type=UserPath(),
    metavar="FILE",
    shell_complete=complete_scenario,
    help="TOML file with a table of settings for each method, named by its label.",
)
@click.option(
    "--grid",
    metavar="KEY=V1,V2,...",
    multiple=True,
    shell_complete=complete_setting,
    help="Run every value of a key, e.g. uplink.compressor.density=0.001,0.01. Repeatable: all combinations are run. Write "
    "values that contain commas as a TOML array: KEY=[V1, V2].",
)
@click.option(
    "--tune",
    metavar="KEY=V1,V2,...",
    multiple=True,
    shell_complete=complete_setting,
    help="Same as --grid, but comparisons report each method's best value. It is the best on a validation split: each client "
    "holds out 0.1 of its training examples, unless evaluation.validation is set. --set evaluation.validation=0 tunes on the "
    "test examples.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, MAX_SEEDS),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of seeds, counted up from the scenario's seed.",
)
@jobs_option
@stop_after_option
@click.option(
    "--launcher",
    type=click.Choice(("slurm", "local")),
    help="Run each cell as a job of Slurm, or try this in processes of this machine (local). --jobs limits the jobs that run "
    "at the same time.  [default: processes of this command]",
)
@click.option(
    "--launcher-option",
    "launcher_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=lambda context, parameter, texts: _parse_launcher_options(texts),
    help="Parameter of Slurm's jobs, e.g. partition=cpu, time=120 (minutes), mem=8GB. Repeatable.",
)
@report_target_option
@click.option("--out", type=UserPath(), help="Folder of the sweep.  [default: runs/NAME-sweep]")
@click.option("--overwrite", is_flag=True, help="Run cells again that were finished with another scenario or edited code.")
@click.option("--retry-failed", is_flag=True, help="Run cells again that diverged or failed in a round.")
@columns_option
def sweep_command(
    options: ScenarioOptions,
    methods: Path | None,
    grid: tuple[str, ...],
    tune: tuple[str, ...],
    seeds: int,
    target: Target | None,
    out: Path | None,
    columns: tuple[str, ...],
    **execution: Any,
) -> None:
    """Run SCENARIO with every method, grid value, tuned value and seed.

    Each run has a run folder in the folder of the sweep. A methods file has a table for each method. The name of the table is
    the method's label, and its keys override settings of the scenario. An example is below.

    The same command resumes a sweep and runs only unfinished cells. More seeds, values or methods add cells. Finished cells
    that a command no longer includes stay in sweep.json. A cell that was finished with another scenario, or with another source
    of your own class or function, is refused, unless --overwrite is set. A run that diverges is a result and is repeated only
    with --retry-failed. With --json, the key "comparison" of the output has the figures of `fedsgd compare` at the runs'
    target, if values are tuned or the sweep has three seeds; otherwise it is null.

    Exit status 1 if a cell failed for another reason than divergence.
    """
    refuse_ranks("sweep")
    from fedsgd.cli import terminal
    from fedsgd.sweeps import parse_grids
    from fedsgd.sweeps.options import SweepConfig
    from fedsgd.sweeps.runner import sweep as run_sweep

    terminal.check_sweep_columns(columns)
    scenario, quiet = options.load(target), options.quiet
    if execution["launcher"] is None:
        mention_shared_cores(execution["jobs"], "jobs", quiet)
    folder = Path("runs") / f"{scenario.name}-sweep" if out is None else out
    # output of a user's module must not mix with the JSON on standard output
    with (
        _mention_finished_cells(folder),
        print_warnings(quiet),
        terminal.show_sweep_progress(quiet) as callbacks,
        redirect_stdout(sys.stderr),
    ):
        result = run_sweep(
            scenario,
            methods=methods,
            grid=parse_grids(grid, "--grid"),
            tune=parse_grids(tune, "--tune"),
            seeds=seeds,
            out=folder,
            execution=SweepConfig(data=options.data, **execution),
            callbacks=callbacks,
        )
    if options.as_json:
        echo_json(_build_json(result, compare_methods(result)))
    else:
        terminal.print_sweep(result, compare_methods(result), columns)
    if any(cell.state == "failed" and not cell.diverged for cell in result.cells):
        click.get_current_context().exit(EXIT_FAILURE)


def _parse_launcher_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return values by name; a value of digits is a number."""
    options: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"got {text!r}, expected NAME=VALUE, such as partition=cpu")
        options[name] = int(value) if value.isdecimal() else value
    return options


@contextmanager
def _mention_finished_cells(out: Path) -> Iterator[None]:
    """Print the number of cells that finished or failed, if the sweep is interrupted or ends with an error."""
    from fedsgd.errors import FedsgdError, OutputError, ScenarioError
    from fedsgd.sweeps import SWEEP_FILE, Sweep

    try:
        yield
    except (FedsgdError, KeyboardInterrupt) as error:
        if not isinstance(error, ScenarioError | OutputError) and (out / SWEEP_FILE).is_file():
            cells = Sweep.read(out).cells
            finished = sum(cell.state != "waiting" for cell in cells)
            progress = f"{finished} of {len(cells)} cells are finished and stored in {out}"
            echo(f"fedsgd: {progress}; repeat the command to run the others", err=True)
        raise


def compare_methods(sweep: Sweep) -> Comparison | None:
    """Return the comparison of the methods at the target of their runs; None without tuned values and with too few seeds."""
    from fedsgd.analysis.comparison import compare
    from fedsgd.analysis.methods import load_methods
    from fedsgd.analysis.seed_statistics import MIN_SEEDS
    from fedsgd.errors import ReportError

    if not sweep.tuned and len({cell.seed for cell in sweep.cells}) < MIN_SEEDS:
        return None
    if all(cell.state != "finished" for cell in sweep.cells):
        return None
    targets = {summary.get("target") for summary in map(sweep.read_summary, sweep.cells) if summary is not None}
    target = targets.pop() if len(targets) == 1 else None
    try:
        return compare(load_methods([sweep.out], target), target)
    except ReportError as error:
        echo(f"fedsgd: the methods cannot be compared: {error}", err=True)
        return None


def _build_json(sweep: Sweep, comparison: Comparison | None) -> str:
    """Return the contents of sweep.json and, by the key "comparison", those of `fedsgd compare SWEEP --json`."""
    from fedsgd.analysis import tables

    contents = json.loads(sweep.to_json())
    contents["comparison"] = None if comparison is None else json.loads(tables.to_json(comparison))
    return json.dumps(contents, indent=2, ensure_ascii=False) + "\n"
