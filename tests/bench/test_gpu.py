"""Benchmark of a GPU: its scenarios, and its dry run on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import gpu


@pytest.mark.slow
def test_works_have_the_cohorts_and_batches_of_their_names() -> None:
    works = {work.load.name: work for work in gpu.WORKS}
    pfl = works["CIFAR-10 CNN"]
    assert (pfl.registered, pfl.load.n, pfl.load.clients, pfl.load.batch) == (1000, 50, 50, 10)
    assert sum(parameter.numel() for parameter in gpu.make_pfl_cnn().parameters()) == 1_626_442
    scenario = gpu.build_scenario(pfl, "top-k 1 %", 4, "cuda", 8)
    assert (scenario.engine.stack, scenario.engine.device, scenario.server.cohort) == (13, "cuda", 50)
    assert gpu.build_scenario(pfl, "dense", 1, "cuda", 8).engine.stack is None
    for work in works.values():
        task = gpu.make_task(work, gpu.make_data(gpu.shrink(work)))
        assert task.layout.size > 100_000


def test_cells_beyond_the_time_say_so() -> None:
    works = [gpu.shrink(work) for work in gpu.WORKS[:2]]
    figures, laws = gpu.measure_all(works, "cpu", 0.0, (1, 2), 4, lambda *_: None)
    assert not laws
    assert [figure.clients_per_second for figure in figures] == [None] * 2 * (1 + 4)
    measured = [replace(figure, clients_per_second=10.0 * figure.processes + 5) for figure in figures]
    ratios = list(gpu.make_table(measured).columns[5].cells)
    assert (ratios[0], ratios[-1]) == ("1.00", "5.00"), "the naive loop, and 25 clients a second to its 5"


@pytest.mark.slow
def test_error_of_a_law_or_cell_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu, "check_laws", fail)
    monkeypatch.setattr(gpu, "measure", fail)
    reports: list[int] = []
    work = gpu.shrink(gpu.WORKS[2])
    figures, laws = gpu.measure_all([work], "cpu", 5.0, (1,), 4, lambda found, _: reports.append(len(found)))
    assert laws == [("2NN", "no error", "RuntimeError: no memory", False)]
    assert [figure.clients_per_second is None for figure in figures] == [False, True, True]
    assert reports == [0, 1, 2, 3]
    assert [*gpu.make_table(figures).columns[4].cells][1:] == ["failed", "failed"]


@pytest.mark.nightly
def test_dry_run_checks_the_laws_and_measures_all_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--dry-run", "--minutes", "20", "--json", str(tmp_path / "figures.json")])
    contents = json.loads((tmp_path / "figures.json").read_text())
    assert all(holds for *_, holds in contents["laws"])
    assert len(contents["laws"]) == 3 * len(gpu.WORKS) - 1, "no comparison with the CPU for dropout"
    assert all(figure["clients_per_second"] for figure in contents["figures"])
    assert "not run" not in capsys.readouterr().out
