"""The six steps as a notebook: what jupytext makes of the script, and whether it runs, offline and with weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import minires as mr
from minires import data, models
from minires.models.pretrained import Zeros

jupytext = pytest.importorskip("jupytext", reason="pip install -e '.[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebook]'")

pytestmark = pytest.mark.usefixtures("pictures")  # a notebook shows them

SCRIPT = Path(__file__).parents[2] / "examples" / "resnet101_cifar10.py"
SMALL = "train_size, test_size, num_epochs, image_size = 96, 64, 1, 32"
OFFLINE = """
import urllib.request
def refuse(*_, **__): raise OSError("no network in this test")
urllib.request.urlopen = refuse
"""


def test_the_notebook_is_that_of_the_script():
    """After a change of the script: jupytext --to ipynb examples/resnet101_cifar10.py."""
    made, found = jupytext.read(SCRIPT), jupytext.read(SCRIPT.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in found.cells] == [(c.cell_type, c.source) for c in made.cells]
    assert not any(cell.get("outputs") for cell in found.cells)


def run(path: Path, before: str) -> list[str]:
    """What each cell of code says, at a small size; `before` runs first."""
    notebook = jupytext.read(SCRIPT.with_suffix(".ipynb"))
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\n{SMALL}\ndata_dir = {str(path)!r}"
    notebook.cells.insert(0, jupytext.reads(f"# %%\n{before}", "py:percent").cells[0])
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path)}})
    client.execute(env={**os.environ, "MINIRES_CACHE": str(path / "none"), "MPLBACKEND": "inline"})
    said = []
    for cell in notebook.cells:
        outputs = [output.get("text", "") or "".join(output.get("data", {})) for output in cell.get("outputs", [])]
        said.append("".join(outputs))
    return said


@pytest.fixture
def folder(tmp_path):
    """A folder with Shapes-10 in it."""
    data.shapes10(tmp_path, log=lambda line: None)
    return tmp_path


def test_offline_it_says_what_is_missing_and_goes_on_small(folder):
    said = "\n".join(run(folder, OFFLINE))
    assert "NOT CIFAR-10: continuing with Shapes-10" in said
    assert "There are no pretrained weights: resnet101-63fe2227.pth is not in" in said
    assert "Going on with ResNet-18" in said
    assert "text/html" in said  # the table of the stages
    assert said.count("image/png") == 3
    assert "Epoch 1/1, Loss: " in said
    assert "(Shapes-10, 64 images)" in said
    classes = mr.weights.read_metadata(folder / "six_steps.safetensors")["minires"]
    assert '"image_size": 32' in classes
    assert '"heart"' in classes


def test_with_pretrained_weights_it_is_resnet_101(folder):
    mr.save_weights(models.resnet101(generator=Zeros()), folder / "resnet101.pth")
    there = f"from minires.models import pretrained\nfrom pathlib import Path\nPATH = Path({str(folder)!r})"
    found = "pretrained.imagenet_file = lambda depth, log: PATH / f'resnet{depth}.pth'"
    said = "\n".join(run(folder, f"{OFFLINE}\n{there}\n{found}"))
    assert "There are no pretrained weights" not in said
    assert "Epoch 1/1, Loss: " in said
    assert mr.load_weights(folder / "six_steps.safetensors")["fc.weight"].shape == (10, 2048)
