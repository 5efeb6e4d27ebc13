"""Quick forms of the studies with runs: verdicts and claims are those of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsgd.analysis.replication.plan import ReplicationConfig
from fedsgd.analysis.replication.replicate import open_study, replicate
from fedsgd.analysis.replication.study import find_study, list_studies, load_study
from fedsgd.sweeps.options import SweepConfig

STUDIES = {name: load_study(find_study(name)) for name in list_studies()}
QUICK_STUDIES = [
    name
    for name, study in STUDIES.items()
    if study.script is None and any(study.get_cell(label).quick is not None for label in study.cells)
]


def test_studies_have_a_quick_form_whose_verdicts_are_checked() -> None:
    assert len(QUICK_STUDIES) >= 1
    for name in QUICK_STUDIES:
        plan, _ = open_study(name, ReplicationConfig(quick=True), None)
        claims = [c for c in plan.study.claims if c.expected is not None and {c.better, c.worse} <= {*plan.labels}]
        assert claims or any(plan.study.get_cell(label).expected is not None for label in plan.labels)


@pytest.mark.nightly
@pytest.mark.parametrize("name", QUICK_STUDIES)
def test_quick_form_has_the_verdicts_of_the_study(name: str, data_folder: Path, tmp_path: Path) -> None:
    config = ReplicationConfig(quick=True, execution=SweepConfig(data=data_folder))
    result = replicate(name, config=config, out=tmp_path)
    assert result.changed == ()
    assert result.errors == ()
    assert all(cell.values for cell in result.cells)
