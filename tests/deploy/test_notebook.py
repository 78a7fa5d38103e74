"""The example notebook runs from its first cell to its last."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.deploy.manifests import DEPLOY, ROOT
from tests.pages.conftest import reported_run  # noqa: F401 - a fixture

NOTEBOOK = DEPLOY / "notebooks" / "analysis.ipynb"


def test_the_notebook_is_kept_without_what_somebody_has_run():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own libraries
def test_the_notebook_runs(reported_run, monkeypatch):  # noqa: F811
    monkeypatch.setenv("NAMM_RUN", str(reported_run.folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=180, kernel_name="python3").execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a picture"
    tables = "".join(output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {}))
    assert "fact value" in tables
    assert "h2o" in tables
