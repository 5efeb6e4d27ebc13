"""`fedsgd replicate`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsgd.cli.app import EXIT_FAILURE, main
from fedsgd.cli.completers import complete_study
from fedsgd.cli.option_groups import jobs_option, stop_after_option
from fedsgd.cli.options import UserPath
from fedsgd.cli.ranks import refuse_ranks
from fedsgd.cli.run_folders import mention_shared_cores
from fedsgd.cli.streams import echo, echo_json
from fedsgd.cli.tracking import print_warnings

if TYPE_CHECKING:
    from fedsgd.analysis.replication.plan import StudyPlan

EXAMPLES = """Examples:

\b
    fedsgd replicate                                    all studies
    fedsgd replicate dgc2018-ratios
    fedsgd replicate mcmahan2017-2nn --cells 'IID*' --jobs 2 --stop-after 2h
    fedsgd replicate mcmahan2017-2nn --quick
"""


@main.command("replicate", epilog=EXAMPLES, short_help="Run a published table again, and compare the figures.")
@click.argument("study", required=False, shell_complete=complete_study)
@click.option("--quick", is_flag=True, help="Run the quick form: some cells, one seed, and no results are read or written.")
@click.option(
    "--cells",
    "patterns",
    multiple=True,
    metavar="LABEL",
    help="Run these cells only; * stands for any characters. Repeatable.",
)
@jobs_option
@stop_after_option
@click.option("--data", type=UserPath(), envvar="FEDSGD_DATA", show_envvar=True, help="Folder of data files.")
@click.option("--results", type=UserPath(), help="Folder of results.json and RESULTS.md.  [default: the folder of the study]")
@click.option("--out", type=UserPath(), help="Folder of runs and of the page.  [default: runs/replication/STUDY]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
@click.option("--quiet", is_flag=True, help="Show no progress, and estimate no time.")
def replicate_command(
    study: str | None,
    quick: bool,
    patterns: tuple[str, ...],
    jobs: int,
    stop_after: float | None,
    data: Path | None,
    results: Path | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the cells of STUDY, a published table, and show the published figures next to the measured ones.

    STUDY is the name of a study in `scenarios` of a checkout, or the folder of a study. Without STUDY, the studies and their
    verdicts are listed. Cells with a result in results.json are not run again; results are saved after each run, and the same
    command continues. A cell is "reproduced" if its figure is within the tolerance that the study states.

    Exit status 1 if a verdict is not the one that the study expects, or if a run failed.
    """
    refuse_ranks("replicate")
    from fedsgd.analysis.replication import pages
    from fedsgd.analysis.replication.plan import ReplicationConfig
    from fedsgd.analysis.replication.replicate import RUNS_FOLDER, open_study, replicate
    from fedsgd.analysis.replication.study import REPORT_FILE
    from fedsgd.cli import terminal
    from fedsgd.sweeps.options import SweepConfig

    if study is None:
        terminal.print_studies(as_json)
        return
    config = ReplicationConfig(quick=quick, execution=SweepConfig(jobs, data, retry_failed=True, stop_after=stop_after))
    plan, folder = open_study(study, config, results)
    config = ReplicationConfig(_match_cells(plan, patterns), quick, config.execution)
    if not quiet:
        mention_shared_cores(jobs, "jobs", quiet)
        plan, _ = open_study(study, config, results)
        _print_estimate(plan)
    with print_warnings(quiet), terminal.show_sweep_progress(quiet) as callbacks, redirect_stdout(sys.stderr):
        replication = replicate(study, config=config, results=results, out=out, callbacks=callbacks)
    if as_json:
        echo_json(pages.to_json(replication))
    else:
        terminal.print_replication(replication)
        if folder is not None:
            echo(f"written to {folder / REPORT_FILE}; runs and page: {out or RUNS_FOLDER / replication.study.name}", err=True)
    if replication.changed or replication.errors:
        click.get_current_context().exit(EXIT_FAILURE)


def _match_cells(plan: StudyPlan, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels that match a pattern; a pattern without a match is returned as it is, and refused later."""
    labels: dict[str, None] = {}
    for pattern in patterns:
        matches = [label for label in plan.study.cells if pattern == label or fnmatchcase(label, pattern)]
        labels.update(dict.fromkeys(matches or [pattern]))
    return tuple(labels)


def _print_estimate(plan: StudyPlan) -> None:
    """Print the number of remaining runs, and the time that they need at most."""
    from fedsgd.analysis.replication.estimate import estimate_seconds
    from fedsgd.cli import terminal
    from fedsgd.config.quantities import format_seconds

    n_waiting = len(plan.find_waiting([*plan.plan_tuning(), *plan.plan_final()]))
    n_waiting += sum(plan.count_seeds(label) for label in plan.list_untuned())
    if not n_waiting:
        return
    with terminal.spinner("estimating the time", False):
        seconds = estimate_seconds(plan)
    runs = f"{n_waiting} run{'s' * (n_waiting != 1)} remain{'s' * (n_waiting == 1)}"
    echo(f"fedsgd: {runs}, about {format_seconds(seconds)} if none ends before its last round", err=True)
