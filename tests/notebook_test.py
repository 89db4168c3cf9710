"""The notebook runs from top to bottom in an empty folder, and shows what it says."""

import itertools
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.command import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
# Networks that compile fast.
SMALL = {
    '    "runs/weave",': '    "runs/weave",\n    num_epochs=2,',
    "image_size=96": "image_size=32",
    'backbone="resnet10"': 'backbone="tiny"',
    'teacher_weights="embedded"': 'teacher_weights="random"',
    "import rd_jax\n": "import rd_jax\nimport tests.tiny\n",
}


# Of packages that this one does not use.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_ends_with_heatmaps_and_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures are part of the page
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell, (printed, small) in itertools.product(notebook.cells, SMALL.items()):
        cell.source = cell.source.replace(printed, small)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in cells]
    assert [i for i, kinds in enumerate(shown) if "image/png" in kinds] == [2, 5]
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "| weave |" in said
    verdicts = re.findall(r"(score \d\.\d+), threshold [\d.]+(: \w+)", said)
    assert len(verdicts) == 5
    exported = re.findall(r"score \d\.\d+: \w+", said)
    assert exported == [score + verdict for score, verdict in verdicts]
