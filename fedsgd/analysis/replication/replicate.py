"""`fedsgd.replicate`: run a study, and write its results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsgd.analysis.replication import pages
from fedsgd.analysis.replication.plan import ReplicationConfig, StudyPlan
from fedsgd.analysis.replication.records import Results
from fedsgd.analysis.replication.runner import run_study
from fedsgd.analysis.replication.study import REPORT_FILE, RESULTS_FILE, find_study, list_studies, load_study
from fedsgd.analysis.replication.verdicts import Replication, build_replication
from fedsgd.config.argument_checks import resolve_config
from fedsgd.errors import make_write_error
from fedsgd.storage.run_directory import write_atomically
from fedsgd.sweeps.options import SweepCallbacks
from fedsgd.system.user_files import expand_user_path, search_folders

RUNS_FOLDER, PAGE_FILE = Path("runs") / "replication", "results.html"


def replicate(
    study: str | Path,
    *,
    config: ReplicationConfig | None = None,
    results: str | Path | None = None,
    out: str | Path | None = None,
    callbacks: SweepCallbacks | None = None,
) -> Replication:
    """Run the cells of a study that have no result, and compare them with the published figures.

    Results are saved after each run, and the next call continues. The quick form neither reads nor writes results.

    Args:
        study: name of a study in scenarios/replication, or the folder of a study.
        config: cells, quick form, processes and time limit; None for the defaults.
        results: folder of results.json and RESULTS.md; None for the folder of the study.
        out: folder of the runs and of results.html; None for runs/replication/NAME, in the quick form for a temporary folder.
        callbacks: functions that are called during the runs; None for none.

    Raises:
        ScenarioError: a key of the study, a cell or an argument is wrong.
        ReportError: there is no such study, or its results or its script cannot be read.
        OutputError: a folder cannot be written.
    """
    config = resolve_config("config", config, ReplicationConfig)
    callbacks = resolve_config("callbacks", callbacks, SweepCallbacks)
    plan, results_folder = open_study(study, config, results)
    with search_folders([plan.study.folder]), _open_folder(plan, out) as folder:
        if results_folder is not None:
            _make_folder(results_folder)
        run_study(plan, folder, lambda: _save(plan, results_folder), callbacks)
        replication = build_replication(plan)
        _save(plan, results_folder)
        write_atomically(folder / PAGE_FILE, pages.to_html(replication).encode())
    return replication


def open_study(study: str | Path, config: ReplicationConfig, results: str | Path | None) -> tuple[StudyPlan, Path | None]:
    """Return the plan of a study with its present results, and the folder of the results; None in the quick form.

    Args:
        study: name or folder of the study.
        config: cells and processes.
        results: folder of the results; None for the folder of the study.

    Raises:
        ScenarioError: a key of the study or a cell is wrong.
        ReportError: there is no such study, or its results cannot be read.
    """
    folder = find_study(study)
    loaded_study = load_study(folder)
    with search_folders([loaded_study.folder]):
        if config.quick:
            return StudyPlan(loaded_study, config, Results(loaded_study.name)), None
        results_folder = folder if results is None else expand_user_path(results, "results")
        current = Results.load(results_folder / RESULTS_FILE, loaded_study.name)
        return StudyPlan(loaded_study, config, current), results_folder


def list_results() -> list[Replication]:
    """Return the result of each study, by the results in its folder.

    Raises:
        ScenarioError: a key of a study is wrong.
        ReportError: the results of a study cannot be read.
    """
    return [build_replication(open_study(name, ReplicationConfig(), None)[0]) for name in list_studies()]


@contextmanager
def _open_folder(plan: StudyPlan, out: str | Path | None) -> Iterator[Path]:
    """Yield the folder of the runs and of the page."""
    if out is None and plan.config.quick:
        with TemporaryDirectory(prefix="fedsgd-") as folder:
            yield Path(folder)
        return
    path = RUNS_FOLDER / plan.study.name if out is None else expand_user_path(out, "out")
    _make_folder(path)
    yield path


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise make_write_error(path, error) from None


def _save(plan: StudyPlan, folder: Path | None) -> None:
    """Write results.json, and RESULTS.md with all cells of the study; nothing without a folder."""
    if folder is None:
        return
    plan.results.prune(plan.study.cells)
    plan.results.save(folder / RESULTS_FILE)
    whole_plan = StudyPlan(plan.study, replace(plan.config, cells=()), plan.results)
    write_atomically(folder / REPORT_FILE, pages.to_markdown(build_replication(whole_plan)).encode())
