"""The report of a run: results.json, the last line, and three pictures.

    curves.png     loss and accuracy, training and test, over the epochs
    confusion.png  the confusion matrix: which classes are taken for which
    mistakes.png   the most confident mistakes among the test images

matplotlib is imported only when a picture is drawn: only the extra "plots" installs matplotlib.

Reading order: after folder.py. Next: compare.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minires import kernels
from minires.data import Dataset
from minires.train.evaluate import Evaluation
from minires.train.progress import say
from minires.train.training import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, TEST = "tab:blue", "tab:orange"  # one colour for each, in all panels


def results(training: Training, evaluation: Evaluation, dataset: Dataset, info: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json; `info` is `minires.info()`.

    Accuracies are shares, 0 to 1, and those of the LAST epoch; memory is in bytes.
    """
    parameter = next(training.model.parameters())
    record = training.record
    machine = ("processor", "cores", "threads", "platform", *["gpu"] * (parameter.device == "cuda"))
    return {
        "dataset": dataset.name,
        "depth": training.settings["depth"],
        "parameters": sum(p.size for p in training.model.parameters()),
        "epochs": record["epoch"],
        "steps": training.step,
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "test_images": len(evaluation.labels),
        "train_accuracy": record["accuracy"],
        "train_loss": record["loss"],
        "train_images": len(dataset.train_images),
        "images_per_second": record["images_per_second"],
        "minutes": training.seconds / 60,
        "device": parameter.device,
        "kernels": kernels.in_use(parameter.device),
        "precision": training.settings.get("precision", "fp32"),
        "peak_memory_bytes": peak_memory_bytes(parameter.device),
        "seed": training.settings["seed"],
        "machine": {name: info[name] for name in machine},
        "versions": info["versions"],
    }


def final_line(result: dict[str, Any], dataset: Dataset, folder: Path) -> str:
    """`test accuracy 91.23 % (CIFAR-10, ResNet-101, 15 epochs, 12.3 min) -> runs/NAME`."""
    tested = result["test_images"]
    epochs = f"{result['epochs']:.4g} epoch{'' if result['epochs'] == 1 else 's'}"
    partly = "" if tested == len(dataset.test_images) else f", on the first {tested:,} test images only"
    return (
        f"test accuracy {100 * result['test_accuracy']:.2f} % ({result['dataset']}, ResNet-{result['depth']}, "
        f"{epochs}, {result['minutes']:.1f} min{partly}) -> {folder}"
    )


def peak_memory_bytes(device: str) -> int | None:
    """The peak memory of this process: on the GPU, of the memory pools; on the CPU, of everything.

    None on Windows, which does not report the peak.
    """
    if device == "cuda":
        import cupy

        pools_bytes = kernels.part("pools_bytes", device)  # of the recorded steps
        return cupy.get_default_memory_pool().total_bytes() + (
            pools_bytes() if pools_bytes else 0
        )  # pools never shrink
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def draw_pictures(
    training: Training,
    evaluation: Evaluation,
    dataset: Dataset,
    folder: Path,
    log: Callable[[str], None] = say,
) -> None:
    """Write the three pictures to `folder`; without matplotlib, log a note and write none. Raises `OSError`."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        log("no pictures: matplotlib is not installed (pip install matplotlib)")
        return
    title = f"ResNet-{training.settings['depth']} on {dataset.name}: test accuracy {100 * evaluation.accuracy:.2f} %"
    curves(training, title).savefig(folder / "curves.png", dpi=120)
    confusion(evaluation, dataset.classes, title).savefig(folder / "confusion.png", dpi=120)
    mistakes(evaluation, dataset, title).savefig(folder / "mistakes.png", dpi=120)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of `width` by `height` inches."""
    from matplotlib.figure import Figure  # not pyplot, which wants a display and keeps every figure alive

    figure = Figure((width, height), layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure


def curves(training: Training, title: str) -> Figure:
    """Loss and accuracy over the epochs: training, each step and a running mean; test, after each epoch."""
    figure = new_figure(11, 4.4, title)
    left, right = figure.subplots(1, 2)
    records = training.records
    # A step is drawn at its share of the epoch that contains the step.
    ends = [(0, 0.0)] + [(record["step"], record["epoch"]) for record in records]
    at = np.interp(np.arange(1, training.step + 1), *zip(*ends))
    window = max(training.step // 50, 1)
    for axes, values, scale in ((left, training.losses, 1), (right, training.accuracies, 100)):
        values = scale * np.array(values)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(at, values, color=TRAIN, alpha=0.2, linewidth=0.7)
        label = f"training, mean of {window} batches" if window > 1 else "training batches"
        axes.plot(at[window - 1 :], smooth, color=TRAIN, label=label)
        axes.grid(alpha=0.3)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, ends[-1][1])
    epochs = [record["epoch"] for record in records]
    style = {"color": TEST, "marker": "o", "markersize": 4, "label": "test set", "clip_on": False}
    left.plot(epochs, [record["test_loss"] for record in records], **style)
    right.plot(epochs, [100 * record["test_accuracy"] for record in records], **style)
    left.set(ylabel="loss (cross-entropy)", ylim=(0, None))
    right.set(ylabel="accuracy in %", ylim=(0, 100))
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    return figure


def confusion(evaluation: Evaluation, classes: tuple[str, ...], title: str) -> Figure:
    """The confusion matrix: for the images of a class (row), the share predicted as each class (column)."""
    from matplotlib.colors import PowerNorm

    count = len(classes)
    matrix = np.zeros((count, count))
    np.add.at(matrix, (evaluation.labels, evaluation.predictions), 1)
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # in percent
    size = 8 if count <= 20 else 16
    figure = new_figure(size + 1, size, title)
    axes = figure.subplots()
    # Shades by the square root: a good model's confusions are a few percent each, and would all look white.
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    font = 10 if count <= 20 else 7
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if count <= 20 else {"rotation": 90}
    axes.set_xticks(range(count), classes, fontsize=font, **slant)
    axes.set_yticks(range(count), classes, fontsize=font)
    axes.set_xlabel("what the model says")
    axes.set_ylabel("what it is")
    if count <= 20:  # beyond that the numbers would be too small to read
        for row, column in np.ndindex(count, count):
            if round(share[row, column]):
                colour = "white" if share[row, column] > 35 else "black"
                text = f"{share[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font)
    figure.colorbar(picture, label="% of the images of the row's class", shrink=0.8)
    return figure


def mistakes(evaluation: Evaluation, dataset: Dataset, title: str, rows: int = 4, columns: int = 6) -> Figure:
    """The misclassified test images, those with the highest probability for the wrong class first."""
    certainty = evaluation.probabilities.max(axis=1)
    wrong = np.flatnonzero(evaluation.predictions != evaluation.labels)
    worst = wrong[np.argsort(-certainty[wrong], kind="stable")][: rows * columns]
    figure = new_figure(1.9 * columns, 2.35 * rows + 0.9, title)
    figure.supxlabel(
        f"the most confident of {len(wrong):,} mistakes among {len(evaluation.labels):,} test images: "
        "what the model says, how sure it is, and what the image is"
    )
    for axes, index in zip(figure.subplots(rows, columns).flat, np.pad(worst, (0, rows * columns), constant_values=-1)):
        axes.axis("off")
        if index < 0:
            continue
        axes.imshow(dataset.test_images[index], interpolation="nearest")
        says, truth = dataset.classes[evaluation.predictions[index]], dataset.classes[evaluation.labels[index]]
        axes.set_title(f"{says}, {100 * certainty[index]:.0f} %\nis: {truth}", fontsize=10)
    return figure
