"""The ablation of the recipe: ResNet-20, trained again and again with one part exchanged.

    python examples/experiments/ablation.py                         # all rows; a finished row is not repeated
    python examples/experiments/ablation.py --rows baseline adam    # only these rows
    python examples/experiments/ablation.py --draw FOLDER           # only the table and the picture of the runs there

Every row is one command of examples/train_cifar.py, printed before it runs, with its own folder in runs/ablation (or
--out). Dependent settings change with the part: the learning rate with the batch size, rate and weight decay with the
optimiser. The table shows every difference. The baseline has three seeds: a difference within their spread means
nothing. The budget is short: the table shows which recipe learns fast, not which is best after many more epochs. A
training loss with label smoothing cannot be compared with the others.

Exit status: that of the first row that fails; 2 for unusable arguments.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from minires import data
from minires.cli import arguments
from minires.train import compare
from minires.train.progress import say

# The arguments added to `train_cifar.py --depth 20`. Its defaults: SGD with Nesterov momentum, one cycle up to 0.2,
# weight decay 5e-4, batches of 128, crops and flips, and He et al.'s initialisation.
ROWS = {
    "baseline": "",
    "baseline-seed1": "--seed 1",
    "baseline-seed2": "--seed 2",
    "adam": "--optimizer adam --lr 1e-3 --schedule constant",
    "adam-one-cycle": "--optimizer adam --lr 1e-3",
    "adamw-one-cycle": "--optimizer adamw --lr 1e-3",
    "cosine": "--schedule cosine",
    "step": "--schedule step",
    "constant": "--schedule constant --lr 0.05",
    "batch-64": "--batch-size 64",
    "batch-512": "--batch-size 512",
    "smoothing": "--label-smoothing 0.1",
    "zero-init-last": "--zero-init-last",
    "flips-only": "--augmentation flip",
    "no-augmentation": "--augmentation none",
}
TRAIN = os.path.relpath(Path(__file__).parents[1] / "train_cifar.py")


def main() -> int:
    parser = arguments.Parser(description="ResNet-20 with one part of the recipe exchanged.", allow_abbrev=False)
    add = parser.add_argument
    add("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    add("--epochs", type=arguments.positive_int, default=6)
    add("--data", choices=("auto", "cifar10", "cifar100", "shapes"), default="auto")
    add("--data-dir", default="data")
    add("--train-size", type=arguments.positive_int, help="use this many training images only")
    add("--test-size", type=arguments.positive_int, help="use this many test images only")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--out", default="runs/ablation")
    add("--draw", metavar="FOLDER", help="train nothing, show the runs in FOLDER")
    args = parser.parse_args()
    out = Path(args.draw or args.out)
    if not args.draw:
        dataset = data.load(args.data, args.data_dir, log=say).name  # resolves "auto" before hours of training
        for row in args.rows:
            status = train_row(row, args, dataset, out / row)
            if status:
                return status
    runs = [compare.read_run(out / row) for row in ROWS if (out / row / "results.json").exists()]
    runs = [run for run in runs if run.results]
    if not runs:
        parser.error(f"{out} holds no finished row")
    budgets = {(run.settings["dataset"], run.settings["epochs"], run.settings.get("train_size")) for run in runs}
    if len(budgets) > 1:
        parser.error(f"{out}: its rows differ in data or budget: {sorted(map(str, budgets))}")
    print(compare.as_text(table(runs)))
    try:
        draw(runs, out / "ablation.png")
    except ImportError:
        say("no picture: matplotlib is not installed (pip install matplotlib)")
        return 0
    say(f"-> {out / 'ablation.png'}")
    return 0


def train_row(row: str, args: Namespace, dataset: str, folder: Path) -> int:
    """Train the row, or the rest of it; return the exit status. Raises `RunError` for a folder with another budget."""
    if (folder / "config.json").exists():
        saved = compare.read_json(folder / "config.json")
        budget = {"dataset": dataset, **{name: getattr(args, name) for name in ("epochs", "train_size", "test_size")}}
        for name, value in budget.items():
            if saved.get(name) != value:
                raise compare.RunError(f"{folder}: its {name} is {saved.get(name)}, not {value}")
    if (folder / "results.json").exists():
        say(f"{row}: done before")
        return 0
    command = ["python", TRAIN]
    if (folder / "state.safetensors").exists():
        command += ["--resume", str(folder)]
    else:
        same = {"data": args.data, "data-dir": args.data_dir, "train-size": args.train_size,
                "test-size": args.test_size, "device": args.device, "epochs": args.epochs}  # fmt: skip
        command += ["--depth", "20", *shlex.split(ROWS[row])]
        command += [word for name, value in same.items() if value for word in (f"--{name}", str(value))]
        command += ["--out", str(folder)]
    say(shlex.join(command))
    process = subprocess.Popen([sys.executable, *command[1:]])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # the child then writes its checkpoint
    try:
        return process.wait()
    except KeyboardInterrupt:  # the child gets Ctrl-C too
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def table(runs: Sequence[compare.Run]) -> list[list[str]]:
    """Cells: row, differing settings, losses, test accuracy, and its distance from the baseline's mean in points."""
    baseline = [run.accuracy for run in runs if run.name.startswith("baseline")]
    first = next((run.settings for run in runs if run.name == "baseline"), {})
    rows = [["row", "differs in", "train loss", "test loss", "test accuracy", "against the baseline"]]
    for run in runs:
        last = run.records[-1]
        against = "-"
        if baseline and not run.name.startswith("baseline"):
            against = f"{100 * (run.accuracy - sum(baseline) / len(baseline)):+.2f}"
        losses = f"{last['loss']:.4f}", f"{last['test_loss']:.4f}"
        unsaid = {*compare.NOT_COMPARED, "schedule_steps"} - {"seed"}  # the steps follow from the batch size
        names = [name for name in run.settings if name not in unsaid]
        differs = [f"{name} {run.settings[name]}" for name in names if first and run.settings[name] != first.get(name)]
        rows.append([run.name, ", ".join(differs), *losses, compare.percent([run.accuracy]), against])
    if len(baseline) > 1:
        rows.append([f"mean ± std of {len(baseline)} baselines", "", "", "", compare.percent(baseline), ""])
    return rows


def draw(runs: Sequence[compare.Run], path: Path) -> None:
    """The test accuracies as bars with numbers, the best on top."""
    from minires.train.report import new_figure

    figure = new_figure(9, 0.4 * len(runs) + 1.6, f"{runs[0].network} on {runs[0].settings['dataset']}, "
                        f"{runs[0].settings['epochs']} epochs: one part of the recipe exchanged")  # fmt: skip
    axes = figure.subplots()
    ordered = sorted(runs, key=lambda run: run.accuracy)
    values = [100 * run.accuracy for run in ordered]
    colours = ["tab:blue" if run.name.startswith("baseline") else "tab:gray" for run in ordered]
    bars = axes.barh([run.name for run in ordered], values, color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("test accuracy after the last epoch, in % (the axis does not begin at 0)")
    axes.set_xlim(min(values) - 3, max(values) + 2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(arguments.run(main))
