"""The notebook of the examples: it holds no outputs, and runs from the first cell to the last."""

import json
import re

import pytest
from scripts import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_no_outputs_are_kept_in_the_notebook():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's
def test_the_notebook_runs_and_the_stock_model_is_the_tuned_one():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=3000, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    # rich, by which `inspect` prints, shows a notebook its text as data
    printed = "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)
    losses = [float(number) for number in re.findall(r"loss ([\d.]+) -> ([\d.]+)", printed)[1]]
    assert losses[1] < losses[0]
    assert "intermediate_size 768" in printed
    assert float(re.findall(r"largest difference of the logits (\S+)", printed)[0]) < 1e-4
    assert "in MLPs" in printed  # what `inspect` says
