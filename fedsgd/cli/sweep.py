"""`fedsgd sweep`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click

from fedsgd.cli.app import EXIT_FAILURE, main
from fedsgd.cli.options import ScenarioOptions, UserPath, scenario_options
from fedsgd.cli.streams import echo, echo_json
from fedsgd.cli.tracking import print_warnings
from fedsgd.system.forkserver import MAX_PROCESSES, MAX_SEEDS


@main.command()
@scenario_options
@click.option(
    "--methods",
    type=UserPath(),
    metavar="FILE",
    help="TOML: a table of settings for each method, by its label.",
)
@click.option(
    "--grid",
    metavar="KEY=V1,V2,...",
    multiple=True,
    help="Run every value of a key, e.g. uplink.compressor.density=0.001,0.01. Repeatable: all combinations. Values that hold "
    "commas are given as a TOML array: KEY=[V1, V2].",
)
@click.option("--tune", metavar="KEY=V1,V2,...", multiple=True, help="The same, for what a comparison takes the best value of.")
@click.option(
    "--seeds",
    type=click.IntRange(1, MAX_SEEDS),
    default=1,
    show_default=True,
    metavar="N",
    help="Seeds, from the scenario's own on.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, MAX_PROCESSES),
    default=1,
    show_default=True,
    metavar="N",
    help="Cells at a time, each in a process. Results do not depend on it.",
)
@click.option("--out", type=UserPath(), help="Folder of the sweep. [default: runs/NAME-sweep]")
@click.option("--overwrite", is_flag=True, help="Run cells anew that are finished with another scenario.")
@click.option("--retry-failed", is_flag=True, help="Run cells again that failed.")
def sweep(
    options: ScenarioOptions,
    methods: Path | None,
    grid: tuple[str, ...],
    tune: tuple[str, ...],
    seeds: int,
    jobs: int,
    out: Path | None,
    overwrite: bool,
    retry_failed: bool,
) -> None:
    """Run SCENARIO with every method, grid value, tuned value and seed, each into a run folder below one folder.

    A methods file has a table for each method: its name is the label, its content settings over the scenario:

    \b
        ["top-k 1 %"]
        uplink.compressor = { name = "top-k", density = 0.01 }
        uplink.error_feedback = "persist"

    The same command again runs only what is not finished. More seeds, values or methods keep what is; finished cells that are
    no longer asked for stay listed in sweep.json. A cell that is finished with another scenario is refused. A run that
    diverges is a result, and is not run again.

    Exit status 1 if a cell failed in any other way.
    """
    from fedsgd.cli import terminal
    from fedsgd.sweeps import parse_grids
    from fedsgd.sweeps.runner import sweep as make

    scenario, grids, tuned, quiet = options.load(), parse_grids(grid, "--grid"), parse_grids(tune, "--tune"), options.quiet
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs > cores and not quiet:
        echo(f"fedsgd: {jobs} jobs share {cores} core{'s' * (cores > 1)}: no faster than {cores} would be", err=True)
    folder = Path("runs") / f"{scenario.name}-sweep" if out is None else out
    # What somebody's own module prints does not get into our output.
    with (
        _mention_finished_cells(folder),
        print_warnings(quiet),
        terminal.show_sweep_progress(quiet) as shown,
        redirect_stdout(sys.stderr),
    ):
        made = make(
            scenario,
            methods=methods,
            grid=grids,
            tune=tuned,
            seeds=seeds,
            jobs=jobs,
            out=folder,
            data=options.data,
            overwrite=overwrite,
            retry_failed=retry_failed,
            **shown._asdict(),
        )
    if options.as_json:
        echo_json(made.to_json())
    else:
        terminal.print_sweep(made)
    if any(cell.state == "failed" and not cell.diverged for cell in made.cells):
        click.get_current_context().exit(EXIT_FAILURE)


@contextmanager
def _mention_finished_cells(out: Path) -> Iterator[None]:
    """Print what is stored where a sweep breaks off."""
    from fedsgd.errors import FedsgdError, OutputError, ScenarioError
    from fedsgd.sweeps import SWEEP_FILE, Sweep

    try:
        yield
    except (FedsgdError, KeyboardInterrupt) as error:
        if not isinstance(error, ScenarioError | OutputError) and (out / SWEEP_FILE).is_file():
            cells = Sweep.read(out).cells
            done = sum(cell.state != "waiting" for cell in cells)
            echo(f"fedsgd: {done} of {len(cells)} cells are done and kept in {out}; the same command goes on", err=True)
        raise
