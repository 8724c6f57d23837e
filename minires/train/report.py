"""The report of a run: results.json, the last line, and three pictures.

    curves.png     loss and accuracy, training and test, over the epochs
    confusion.png  the confusion matrix: which classes are taken for which
    mistakes.png   the most confident mistakes among the test images

matplotlib is imported only when a picture is drawn: only the extra "plots" installs matplotlib.

Reading order: after best.py. Next: compare.py.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
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
TITLES = {"val": "validation", "test": "test"}  # of the parts of a data set


def results(
    training: Training,
    evaluations: Mapping[str, Evaluation],
    dataset: Dataset,
    info: dict[str, Any],
    best_epoch: float | None = None,
) -> dict[str, Any]:
    """The content of results.json; `info` is `minires.info()`.

    evaluations  by the part of the data set: "val", "test", or both
    best_epoch   the epoch of the weights that were evaluated, if not those of the last

    Accuracies are shares, 0 to 1, and those of the LAST epoch unless `weights` says otherwise; memory is in bytes.
    `per_class` is of the test images, or of the validation images where there are no test images.
    """
    parameter = next(training.model.parameters())
    record = training.record
    numbers = {name: value for part, found in evaluations.items() for name, value in found.numbers(part).items()}
    machine = ("processor", "cores", "threads", "platform", *["gpu"] * (parameter.device == "cuda"))
    return {
        "dataset": dataset.name,
        "depth": training.settings["depth"],
        "parameters": sum(p.size for p in training.model.parameters()),
        "epochs": record["epoch"],
        "steps": training.step,
        **numbers,
        "weights": "last" if best_epoch is None else "best",
        "weights_epoch": record["epoch"] if best_epoch is None else best_epoch,
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
        "per_class": per_class(evaluations[judged_by(numbers)], dataset.classes),
    }


def judged_by(result: Mapping[str, Any]) -> str:
    """The part of the data set that a result, as in results.json, is of: "test", or "val" without test images."""
    return "test" if "test_accuracy" in result else "val"


def watched(record: Mapping[str, Any]) -> str:
    """The part that a line of log.jsonl is of: "val", or "test" where no images are kept aside for validation."""
    return "val" if "val_accuracy" in record else "test"


def per_class(evaluation: Evaluation, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its name, the number of its images, and the two shares of 1 that an accuracy hides.

    precision  of the images that the model calls by this class's name, the share that is of the class
    recall     of the images of the class, the share that the model finds

    A share of nothing is None: no image is of the class, or none is taken for one.
    """
    rows = []
    for label, name in enumerate(classes):
        is_class, says_class = evaluation.labels == label, evaluation.predictions == label
        right = int((is_class & says_class).sum())
        shares = {"precision": int(says_class.sum()), "recall": int(is_class.sum())}
        rows.append(
            {"class": name, "images": shares["recall"]}
            | {share: right / count if count else None for share, count in shares.items()}
        )
    return rows


def class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`per_class` as a table for a terminal."""
    cells = [["class", "images", "precision", "recall"]]
    for row in rows:
        shares = ["-" if row[name] is None else f"{100 * row[name]:.1f} %" for name in ("precision", "recall")]
        cells.append([row["class"], f"{row['images']:,}", *shares])
    first, *others = (max(map(len, column)) for column in zip(*cells))
    lines = [f"{name:<{first}}" + "".join(f"  {cell:>{n}}" for cell, n in zip(row, others)) for name, *row in cells]
    return "\n".join(f"  {line}" for line in lines)


def final_line(result: dict[str, Any], dataset: Dataset, folder: Path) -> str:
    """`test accuracy 91.23 % (CIFAR-10, ResNet-101, 15 epochs, 12.3 min) -> runs/NAME`."""
    part = judged_by(result)
    tested = result[f"{part}_images"]
    epochs = f"{result['epochs']:.4g} epoch{'' if result['epochs'] == 1 else 's'}"
    every = len(getattr(dataset, f"{part}_images"))
    partly = "" if tested == every else f", on the first {tested:,} {TITLES[part]} images only"
    best = "" if result["weights"] == "last" else f", with the weights of epoch {result['weights_epoch']:g}"
    return (
        f"{TITLES[part]} accuracy {100 * result[f'{part}_accuracy']:.2f} % ({result['dataset']}, "
        f"ResNet-{result['depth']}, {epochs}, {result['minutes']:.1f} min{best}{partly}) -> {folder}"
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
    part: str = "test",
) -> None:
    """Write the three pictures to `folder`; without matplotlib, log a note and write none. Raises `OSError`.

    part  what `evaluation` is of: "test" or "val"
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        log("no figures: matplotlib is not installed (pip install matplotlib)")
        return
    accuracy = f"{TITLES[part]} accuracy {100 * evaluation.accuracy:.2f} %"
    title = f"ResNet-{training.settings['depth']} on {dataset.name}: {accuracy}".replace("$", r"\$")  # no formulas
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter of a class's name that the font lacks
        curves(training, title).savefig(folder / "curves.png", dpi=120)
        confusion(evaluation, dataset.classes, title).savefig(folder / "confusion.png", dpi=120)
        mistakes(evaluation, dataset, title, part=part).savefig(folder / "mistakes.png", dpi=120)


def as_labels(classes: Sequence[str]) -> list[str]:
    """The names of the classes, at most 24 letters of each, for a figure: a dollar sign begins no formula."""
    return [(name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$") for name in classes]


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
    steps, epochs = [0, *(record["step"] for record in records)], [0.0, *(record["epoch"] for record in records)]
    at = np.interp(np.arange(1, training.step + 1), steps, epochs)
    window = max(training.step // 50, 1)
    for axes, values, scale in ((left, training.losses, 1), (right, training.accuracies, 100)):
        values = scale * np.array(values)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(at, values, color=TRAIN, alpha=0.2, linewidth=0.7)
        label = f"training, mean of {window} batches" if window > 1 else "training batches"
        axes.plot(at[window - 1 :], smooth, color=TRAIN, label=label)
        axes.grid(alpha=0.3)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, epochs[-1])
    part = watched(records[-1])
    style = {"color": TEST, "marker": "o", "markersize": 4, "label": f"{TITLES[part]} set", "clip_on": False}
    left.plot(epochs[1:], [record[f"{part}_loss"] for record in records], **style)
    right.plot(epochs[1:], [100 * record[f"{part}_accuracy"] for record in records], **style)
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
    slant: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if count <= 20 else {"rotation": 90}
    )
    labels = as_labels(classes)
    axes.set_xticks(range(count), labels, fontsize=font, **slant)
    axes.set_yticks(range(count), labels, fontsize=font)
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


def mistakes(
    evaluation: Evaluation, dataset: Dataset, title: str, rows: int = 4, columns: int = 6, part: str = "test"
) -> Figure:
    """The misclassified images of a part of the data set, the highest probability for the wrong class first."""
    certainty, names = evaluation.probabilities.max(axis=1), as_labels(dataset.classes)
    wrong = np.flatnonzero(evaluation.predictions != evaluation.labels)
    worst = wrong[np.argsort(-certainty[wrong], kind="stable")][: rows * columns]
    rows = min(rows, max(1, -(-len(worst) // columns)))
    figure = new_figure(1.9 * columns, 2.35 * rows + 0.9, title)
    among = f"mistake{'s' * (len(wrong) != 1)} among {len(evaluation.labels):,} {TITLES[part]} images"
    figure.supxlabel(
        f"the most confident of {len(wrong):,} {among}: what the model says, how sure it is, and what the image is"
        if len(wrong)
        else f"no {among}"
    )
    for axes, index in zip(figure.subplots(rows, columns).flat, np.pad(worst, (0, rows * columns), constant_values=-1)):
        axes.axis("off")
        if index < 0:
            continue
        image = np.broadcast_to(getattr(dataset, f"{part}_images")[index], (*dataset.train_images.shape[1:3], 3))
        axes.imshow(image, interpolation="nearest")  # three equal channels if it is grey
        says, truth = names[evaluation.predictions[index]], names[evaluation.labels[index]]
        axes.set_title(f"{says}, {100 * certainty[index]:.0f} %\nis: {truth}", fontsize=10)
    return figure
