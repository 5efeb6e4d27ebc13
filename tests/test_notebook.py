"""The notebook of scenarios/, executed from its first cell to its last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.examples

NOTEBOOK = Path(__file__).resolve().parent.parent / "scenarios" / "quickstart.ipynb"


def test_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter_client and of its event loop
def test_notebook_runs_and_plots_accuracy_against_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat  # the packages are in the extra [nightly]
    from nbclient import NotebookClient

    root = str(NOTEBOOK.parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell["id"]: cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"}
    texts = {key: "".join(output.get("text", "") for output in parts) for key, parts in outputs.items()}
    dense_line, sparse_line = texts["runs"].splitlines()
    uplink_bytes = [int(line.split(" bytes up")[0].split()[-1].replace(",", "")) for line in (dense_line, sparse_line)]
    accuracies = [float(line.rpartition(" ")[2]) for line in (dense_line, sparse_line)]
    assert uplink_bytes[0] > 30 * uplink_bytes[1]
    assert min(accuracies) > 0.85
    assert any("image/png" in output.get("data", {}) for output in outputs["plot"])
    assert [line.split()[0] for line in texts["steps"].splitlines()] == ["1", "2", "3"]
