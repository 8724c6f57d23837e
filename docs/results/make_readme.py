"""Writes README.md in this folder, from the files beside it. No number in its tables is typed by hand.

    python docs/results/make_readme.py              # after a run's folder was copied here
    python docs/results/make_readme.py --check      # exit status 1 if README.md says anything else; a test does this

trained/      folders of examples/train_cifar.py, without the two .safetensors files
ablation/     folders of examples/experiments/ablation.py
degradation/  folders of examples/experiments/degradation.py
minimal/      what examples/train_minimal.py printed
pytorch/      folders of examples/experiments/compare_torch.py (not "torch": `import torch` would find that folder)
cpu/          files of benchmark.py, cpu_ladder.py and cpu_details.py in examples/measure; make_tables.py reads them

A record keeps the command as it was run. The page shows the command as it works today: some programs have moved.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import train_cifar
from examples.experiments import ablation, compare_torch
from minires import models
from minires.train import compare

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"

HEAD = """\
# Results

Written by [make_readme.py](make_readme.py) from the files in this folder; every number has its log, its settings and
its command beside it. Where a default has changed since, the value that was used stands at the end of the command;
where a program has moved since, the command names its present place.
An accuracy is that of the last epoch, never the best of several, and on all 10,000 test images (2,000 of Shapes-10)
unless another number is given. "CIFAR-10 (JPEG)" is CIFAR-10 whose images were stored as JPEG, quality 75, and read
back. The commands download the original files where there is no data yet; on those the numbers will be others, probably
higher: JPEG loses detail. "Shapes-10" is drawn, and easy: its numbers say that a first run learns, and no more.
Times are of training alone, on a machine shared with other work, often with a second run beside; N threads mean
`MINIRES_THREADS=N`. A run that was interrupted has the commands that resumed it in its config.json; its machine and
threads are those it ended on. "zero-init" is `--zero-init-last`; "no crops" is `--augmentation flip`: images are then
mirrored, but not shifted. `minires report` shows any of these folders side by side.
"""


def main() -> int:
    text, path = page(), HERE / "README.md"
    if sys.argv[1:] == ["--check"]:
        if path.read_text() == text:
            return 0
        print(f"{path} is not what the files beside it say: run {Path(__file__).name}", file=sys.stderr)
        return 1
    path.write_text(text)
    return 0


def page() -> str:
    """The whole of README.md."""
    return "\n".join(
        [HEAD, *trained(), *minimal(), *ablations(), *degradations(), *torch(), *own_pictures(), *cpu(), *not_run()]
    )


def runs_in(name: str) -> list[compare.Run]:
    """The runs in the folders of `name`, by depth."""
    runs = [compare.read_run(path.parent) for path in sorted((HERE / name).glob("*/results.json"))]
    return sorted(runs, key=lambda run: (run.settings["depth"], run.settings["epochs"]))


def trained() -> list[str]:
    rows = [["run", "network", "data", "epochs", "batch", "recipe", "test accuracy", "training loss", "s an epoch",
             "machine"]]  # fmt: skip
    commands = []
    for group in compare.repetitions(runs_in("trained")):
        for run in group:
            s = run.settings
            planned = "" if finished(run) else f" of {s['epochs']}"
            rows.append([
                f"[{run.name}](trained/{run.name})",
                f"{run.network}{', ImageNet stem' if s['stem'] == 'imagenet' else ''}"
                + (f", images of {s['image_size']}x{s['image_size']}" if s["image_size"] else ""),
                s["dataset"],
                f"{run.records[-1]['epoch']:.4g}{planned}",
                str(s["batch_size"]),
                f"{s['optimizer']}, {s['schedule']} {s['lr']:g}, weight decay {s['weight_decay']:g}"
                + (f", smoothing {s['label_smoothing']:g}" if s["label_smoothing"] else "")
                + (", zero-init" if s["zero_init_last"] else "")
                + {"crop-flip": "", "flip": ", no crops", "none": ", no augmentation"}[s["augmentation"]],
                compare.percent([run.accuracy]),
                f"{run.records[-1]['loss']:.3f}",
                seconds_an_epoch(run),
                machine(run),
            ])  # fmt: skip
            commands.append(command(s))
        accuracy = compare.mean_and_std(group)
        if accuracy:
            rows.append([f"mean ± std of {len(group)} seeds", *[""] * 5, f"**{accuracy}**", "", "", ""])
    return ["## Trained networks\n", compare.as_markdown(rows), "", *code(commands)]


def command(settings: dict[str, Any]) -> str:
    """The one that began a run, with what was the default then and is not now."""
    text = as_of_today(settings["commands"][0])
    given = {word.partition("=")[0] for word in shlex.split(text)}
    network = settings["depth"], settings["batch_size"]
    now = train_cifar.recipe(*network, settings["optimizer"])
    now["optimizer"] = train_cifar.recipe(*network)["optimizer"]
    for name in now:
        option, value = name.replace("_", "-"), settings[name]
        if value != now[name] and not {f"--{option}", f"--no-{option}"} & given:
            text += f" --{'no-' if value is False else ''}{option}"
            text += "" if isinstance(value, bool) else f" {value}"
    return text


def as_of_today(recorded: str) -> str:
    """A recorded command, with its program where it is now: the program may have moved within examples/."""
    python, program, *options = recorded.split(" ")
    (path,) = EXAMPLES.rglob(Path(program).name)
    return " ".join([python, path.relative_to(EXAMPLES.parent).as_posix(), *options])


def finished(run: compare.Run) -> bool:
    """Whether the last epoch that was planned has been trained."""
    return run.records[-1]["epoch"] >= run.settings["epochs"]


def seconds_an_epoch(run: compare.Run) -> str:
    """Of training, the median."""
    return f"{statistics.median(record['seconds'] for record in run.records):.0f}"


def machine(run: compare.Run) -> str:
    """Such as "1 thread of 2 cores, AMD EPYC"."""
    m = run.results["machine"]
    return f"{m['threads']} thread{'s' if m['threads'] > 1 else ''} of {m['cores']} cores, {m['processor']}"


def minimal() -> list[str]:
    """What the page with the whole of training printed."""
    output = (HERE / "minimal" / "output.txt").read_text().splitlines()
    return ["## The whole of training on one page\n", "On two cores, with the files of CIFAR-10 (JPEG) in `data/`:\n",
            *code(["python examples/train_minimal.py", *output])]  # fmt: skip


def ablations() -> list[str]:
    runs = runs_in("ablation")
    if not runs:
        return []
    runs = [run for row in ablation.ROWS for run in runs if run.name == row]
    s = runs[0].settings
    about = (
        f"{runs[0].network}, {s['dataset']}, {s['epochs']} epochs, one part of the recipe exchanged. The baseline: "
        f"{s['optimizer']}, {s['schedule']} {s['lr']:g}, weight decay {s['weight_decay']:g}, "
        f"batches of {s['batch_size']}. {'; '.join(dict.fromkeys(map(machine, runs)))}."
    )
    rows = ablation.table(runs)
    for row in rows[1:]:
        row[0] = row[0] if row[0].startswith("mean") else f"[{row[0]}](ablation/{row[0]})"
    picture = "\n![Test accuracy of each row](ablation/ablation.png)\n"
    return ["## What each part of the recipe is worth\n", about + "\n", compare.as_markdown(rows), picture,
            *code([f"python examples/experiments/ablation.py --data {s['data']} --epochs {s['epochs']}"])]  # fmt: skip


def degradations() -> list[str]:
    runs = runs_in("degradation")
    if not runs:
        return []
    rows = [["network", "epochs", "training error", "test error", "training loss", "s an epoch", "machine"]]
    for run in runs:
        last = run.records[-1]
        train_error, test_error = compare.percent([1 - last["accuracy"]]), compare.percent([1 - last["test_accuracy"]])
        link = f"[{run.network}](degradation/{run.name})"
        loss, seconds = f"{last['loss']:.3f}", seconds_an_epoch(run)
        rows.append([link, f"{last['epoch']}", train_error, test_error, loss, seconds, machine(run)])
    about = (
        f"{runs[0].settings['dataset']}, seed {runs[0].settings['seed']}, the paper's recipe in short. The training "
        "error is that of the last epoch, on augmented images. What it shows is told in "
        "[residual-learning.md](../residual-learning.md).\n"
    )
    return ["## Plain and residual networks\n", about, compare.as_markdown(rows), "",
            *code([as_of_today(run.settings["commands"][0]) for run in runs])]  # fmt: skip


def torch() -> list[str]:
    lines = []
    for path in sorted((HERE / "pytorch").glob("*/losses.json")):
        record, name = json.loads(path.read_text()), path.parent.name
        apart = compare_torch.steps_together(record)
        ours, theirs = apart["minires and PyTorch"], apart["PyTorch and PyTorch, nudged"]
        epochs = f"{record['epochs']} epoch{'s' if record['epochs'] > 1 else ''}"
        lines.append(
            f"{compare_torch.title(record)}, {epochs}, PyTorch {record['torch']}. The two losses differ by at most "
            f"{compare_torch.CLOSE:g} for the first {ours} steps, those of PyTorch and of PyTorch with every weight "
            f"moved to the next float32 for the first {theirs}.\n"
        )
        some = compare_torch.arguments_of(record).test_size
        accuracy = f"test accuracy, {some:,} images" if some else "test accuracy"
        rows = [["", accuracy, f"training loss, mean of the last {compare_torch.tail(record)} steps"]]
        for library, losses in record["losses"].items():
            accuracy = compare.percent([record["test_accuracy"][library][-1]])
            rows.append([library, accuracy, f"{statistics.fmean(losses[-compare_torch.tail(record) :]):.4f}"])
        lines += [
            compare.as_markdown(rows),
            f"\n![Both loss curves](pytorch/{name}/losses.png)\n",
            *code([as_of_today(record["command"])]),
        ]
    return ["## The same training in PyTorch\n", *lines] if lines else []


def own_pictures() -> list[str]:
    """Where the chapter's numbers come from."""
    records = [json.loads((HERE / "own-pictures" / f"{name}.json").read_text()) for name in ("results", "folder")]
    text = (
        "[own-pictures.md](../own-pictures.md) shows the tables. Each of the "
        f"{len(records[0]['runs'])} trainings is a line of [results.json](own-pictures/results.json); "
        f"[folder.json](own-pictures/folder.json) has the times and the memory of {records[1]['pictures']:,} pictures, "
        "[first.json](own-pictures/first.json) the results of the second command.\n"
    )
    commands = ["python examples/draw_pictures.py photos", "minires train photos --out runs/photos"]
    return ["## Pictures of one's own\n", text, *code([*commands, *(record["command"] for record in records)])]


def cpu() -> list[str]:
    paths = sorted((HERE / "cpu").glob("*.json"))
    return [
        "## Times of the CPU kernels\n",
        f"Raw, with versions: {', '.join(f'[cpu/{path.name}](cpu/{path.name})' for path in paths)}. "
        "[make_tables.py](make_tables.py) puts them into [fast-cpu.md](../fast-cpu.md) and the "
        "[README](../../README.md).\n",
        *code([as_of_today(json.loads(path.read_text())["command"]) for path in paths]),
    ]


def not_run() -> list[str]:
    runs = [run for run in runs_in("trained") if finished(run) and (run.settings["image_size"] or 32) >= 32]
    done = {(run.settings["depth"], run.settings["stem"]) for run in runs}
    small = [str(depth) for depth in models.resnet_cifar.DEPTHS if (depth, "cifar") not in done]
    large = {
        stem: [str(depth) for depth in models.resnet.CONFIGURATIONS if (depth, stem) not in done]
        for stem in models.resnet.STEMS
    }
    lines = [f"- ResNet-{', '.join(small)} (the paper's networks for CIFAR-10)"] if small else []
    lines += [f"- ResNet-{', '.join(depths)} with the {stem} stem" for stem, depths in large.items() if depths]
    if all(run.results["device"] == "cpu" for run in runs):
        lines.append("- anything on a GPU")
    if all(run.settings["dataset"] != "CIFAR-10" for run in runs):
        lines.append("- anything on the original CIFAR-10 files")
    return ["## Not trained yet\n", "By `examples/train_cifar.py`, to the end of a run, on whole images:\n", *lines, ""]


def code(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines] + [""]


if __name__ == "__main__":
    sys.exit(main())
