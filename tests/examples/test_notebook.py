"""The notebook runs from top to bottom in a kernel of its own, and keeps its outputs."""

import json
import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_it_keeps_its_outputs_and_one_reliability_diagram():
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def test_it_runs_on_the_tiny_checkpoint(realdata, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    settings = {
        "MODEL": str(realdata / "models" / "stories260K"),
        "ROWS": str(realdata / "arc_easy" / "train.jsonl"),
        "STEPS": "3",
        "XLA_FLAGS": "",  # one device
        "PYTHONPATH": str(NOTEBOOK.parents[1]),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before = set(os.listdir(tmp_path))
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    answer = book.cells[3].outputs[-1]["data"]["text/plain"]
    assert answer.startswith("Answer(answer='a ") and "probs=" in answer
    assert set(os.listdir(tmp_path)) == before
