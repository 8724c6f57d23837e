"""Runs side by side, read from their folders: a table of the differences, and the curves in one figure.

    minires report runs/sgd runs/adam

Used by `minires report`, examples/experiments/ablation.py and degradation.py, and docs/results/tables.py.

A folder needs config.json and log.jsonl. results.json appears when the run ends; a run can be compared before.

Reading order: after report.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.train.report import TITLES, new_figure, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Settings ignored when two runs are compared: the seed, the data's location, the requested data set (the one used is in
# `dataset`), and what depends on it.
NOT_COMPARED = ("seed", "data", "data_dir", "classes", "mean", "std", "fingerprint", "commands")
NUMBERS = ("epoch", "loss", "accuracy", "seconds")  # in every line of a log


class RunError(ValueError):
    """A folder that holds no run, or a damaged one. The text is one line that names the file."""


@dataclass(frozen=True)
class Run:
    """One run as its folder has it.

    settings  from config.json; device, kernels and test_images as used, not as requested
    records   the lines of log.jsonl, one per epoch, in order
    results   from results.json; empty while the run is unfinished, or resumed for more epochs
    """

    path: Path
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def network(self) -> str:
        """The network's name: "ResNet-20", or "plain-20" without shortcuts."""
        return f"{'plain' if self.settings.get('plain') else 'ResNet'}-{self.settings['depth']}"

    @property
    def part(self) -> str:
        """What the epochs were evaluated on: "val", or "test" where no images were kept aside for validation."""
        return watched(self.records[-1])

    @property
    def accuracy(self) -> float:
        """The accuracy on that part after the last epoch, 0 to 1: never the best of several epochs."""
        return self.records[-1][f"{self.part}_accuracy"]

    @property
    def minutes(self) -> float:
        """Minutes of training over all sessions, without the evaluations after each epoch."""
        return sum(record["seconds"] for record in self.records) / 60

    @property
    def experiment(self) -> str:
        """The key that repetitions with other seeds share: the compared settings and the epochs done."""
        compared = {name: value for name, value in self.settings.items() if name not in NOT_COMPARED}
        return json.dumps([compared, self.records[-1]["epoch"]], sort_keys=True)


def read_run(path: str | Path) -> Run:
    """The run in the folder `path`. Raises `RunError` when there is none, or a file of it is damaged."""
    path = Path(path)
    settings = read_json(path / "config.json")
    results = read_json(path / "results.json") if (path / "results.json").exists() else {}
    for name in ("depth", "epochs"):
        if not isinstance(settings.get(name), int):
            raise RunError(f"{path / 'config.json'}: not the settings of a run ({name} is {settings.get(name)!r})")
    log = path / "log.jsonl"
    try:
        records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        names = [(*NUMBERS, *(f"{watched(record)}_{name}" for name in ("loss", "accuracy"))) for record in records]
        wrong = [name for record, of in zip(records, names) for name in of if not isinstance(record[name], int | float)]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a number")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunError(f"{log}: not the log of a run ({error})") from error
    if not records:
        raise RunError(f"{log}: no epoch has ended yet")
    if results.get("epochs") != records[-1]["epoch"]:
        results = {}  # from before the run was resumed
    facts = {name: results[name] for name in ("device", "kernels") if name in results}
    tested = f"{watched(records[-1])}_images"
    if tested in records[-1]:
        facts[tested] = records[-1][tested]
    return Run(path, {**settings, **facts}, records, results)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a run. Raises `RunError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path}: not a file of a run ({reason})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a file of a run")
    return content


def repetitions(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that differ in the seed only, in order of first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    return list(groups.values())


def percent(values: Sequence[float]) -> str:
    """Shares of 1 as "86.31 %", or several as "86.31 ± 0.20 %": mean and sample standard deviation."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.2f} ± {100 * statistics.stdev(values):.2f} %" if len(values) > 1 else f"{mean:.2f} %"


def mean_and_std(group: Sequence[Run]) -> str | None:
    """The test accuracy over several seeds, formatted by `percent`; None for fewer than two, or for a repeated seed."""
    seeds = {str(run.settings.get("seed")) for run in group}
    if len(group) < 2 or len(seeds) < len(group):
        return None
    return percent([run.accuracy for run in group])


def table(runs: Sequence[Run]) -> tuple[str, list[list[str]]]:
    """(the settings that all runs share, in words; rows of cells, the header first).

    Each setting in which the runs differ has a column. A row with mean ± std follows repetitions with other seeds.
    """
    common, differing = [], []
    names = dict.fromkeys(name for run in runs for name in run.settings if name == "seed" or name not in NOT_COMPARED)
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if any(value != values[0] for value in values):
            differing.append(name)
        elif values[0] is not None:
            common.append(f"{name} {_text(values[0])}")
    part = " or ".join(TITLES[part] for part in TITLES if part in {run.part for run in runs})
    # Of runs with a validation part the test set was evaluated once, at the end.
    final = ["test accuracy"] if any(run.part == "val" and "test_accuracy" in run.results for run in runs) else []
    rows = [["run", *differing, "done", "train loss", f"{part} loss", f"{part} accuracy", *final, "training minutes"]]
    for group in repetitions(runs):
        for run in group:
            last, planned = run.records[-1], run.settings["epochs"]
            done = f"{last['epoch']:.4g}" + (f" of {planned}" if last["epoch"] < planned else "")
            rows.append(
                [run.name, *(_text(run.settings.get(name)) for name in differing), done, f"{last['loss']:.4f}",
                 f"{last[f'{run.part}_loss']:.4f}", percent([run.accuracy]),
                 *(percent([run.results[name.replace(" ", "_")]]) if run.results else "-" for name in final),
                 f"{run.minutes:.1f}"]
            )  # fmt: skip
        accuracies = mean_and_std(group)
        if accuracies:
            blank = [""] * len(differing)
            rows.append([f"mean ± std of {len(group)}", *blank, "", "", "", accuracies, *[""] * len(final), ""])
    return ", ".join(common), rows


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """The cells in aligned columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The cells as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def overlay(runs: Sequence[Run], title: str = "", names: Sequence[str] | None = None) -> Figure:
    """Loss and error over the epochs, one colour per run: dashed for training, solid for the test set.

    The training curves are means over an epoch, on augmented images, while the network learned. The training loss
    includes label smoothing; the test loss does not.

    names  for the legend (default: the folders' names)
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    figure = new_figure(12, 5.5, title.replace("$", r"\$"))  # no formulas
    many = colormaps["turbo"].resampled(len(runs))
    few = colormaps["tab10"]
    colours = [few(i) if len(runs) <= 10 else many(i) for i in range(len(runs))]
    left, right = figure.subplots(1, 2)
    for i, run in enumerate(runs):
        epochs = [record["epoch"] for record in run.records]
        marker = "." if len(epochs) < 40 else None  # a run of one epoch would be invisible
        for axes, name, scale, offset in ((left, "loss", 1, 0), (right, "accuracy", -100, 100)):
            for prefix, style in (("", "--"), (f"{run.part}_", "-")):
                values = [offset + scale * record[prefix + name] for record in run.records]
                axes.plot(epochs, values, style, color=colours[i], marker=marker, linewidth=1.5)
    labels = [name.replace("$", r"\$") for name in names or _names(runs)]
    part = " or ".join(TITLES[part] for part in TITLES if part in {run.part for run in runs})
    handles = [Line2D([], [], color=colours[i], label=label) for i, label in enumerate(labels)]
    handles += [
        Line2D([], [], color="gray", linestyle="--", label="training"),
        Line2D([], [], color="gray", linestyle="-", label=f"{part} set"),
    ]
    for axes, name in ((left, "loss (cross-entropy)"), (right, "error in %")):
        axes.set(xlabel="epoch", ylabel=name, ylim=(0, None), xlim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or the whole paths where two names are equal."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
