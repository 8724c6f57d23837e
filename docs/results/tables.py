"""The measured tables of README.md, the chapters and the page of results, by the names that stand before them.

write_numbers.py writes them between the comments. measured.py has the numbers within sentences. The records:

trained/       folders of examples/train_cifar.py, without the two .safetensors files
ablation/      folders of examples/experiments/ablation.py
degradation/   folders of examples/experiments/degradation.py
minimal/       what examples/train_minimal.py printed
pytorch/       folders of examples/experiments/compare_torch.py (not "torch": `import torch` would find that folder)
own-pictures/  files of examples/experiments/own_pictures.py, examples/measure/folder.py and one training
cpu/           files of benchmark.py, cpu_ladder.py and cpu_details.py in examples/measure

A record keeps the command as it was run. The page shows the command as it works today: some programs have moved.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import train_cifar
from examples.experiments import ablation, compare_torch
from examples.experiments import own_pictures as own
from examples.measure import benchmark, cpu_details, cpu_ladder, roofline
from minires import models
from minires.train import compare

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
FILES = ["benchmark", "scaling", "ladder-resnet18", "details", "activations"]  # in cpu/


def texts() -> dict[str, str]:
    """What stands between the comments, by name."""
    return {
        **{
            f"results-{section.__name__.replace('_', '-')}": "\n".join(section()).rstrip()
            for section in (trained, minimal, ablations, degradations, against_pytorch, own_pictures, cpu, not_trained)
        },
        **cpu_tables(),
        **own_tables(),
        "roofline": roofline.markdown(),
        "gpu-runs": roofline.runs(),
    }


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
    return [compare.as_markdown(rows), "", *code(commands)]


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
    return code(["python examples/train_minimal.py", *output])


def ablations() -> list[str]:
    runs = runs_in("ablation")
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
    return [about + "\n", compare.as_markdown(rows), picture,
            *code([f"python examples/experiments/ablation.py --data {s['data']} --epochs {s['epochs']}"])]  # fmt: skip


def degradations() -> list[str]:
    runs = runs_in("degradation")
    rows = [["network", "epochs", "training error", "test error", "training loss", "s an epoch", "machine"]]
    for run in runs:
        last = run.records[-1]
        train_error, test_error = compare.percent([1 - last["accuracy"]]), compare.percent([1 - last["test_accuracy"]])
        link = f"[{run.network}](degradation/{run.name})"
        loss, seconds = f"{last['loss']:.3f}", seconds_an_epoch(run)
        rows.append([link, f"{last['epoch']}", train_error, test_error, loss, seconds, machine(run)])
    about = (
        f"{runs[0].settings['dataset']}, seed {runs[0].settings['seed']}, the paper's recipe in short. The training "
        "error is that of the last epoch, on augmented images.\n"
    )
    return [about, compare.as_markdown(rows), "",
            *code([as_of_today(run.settings["commands"][0]) for run in runs])]  # fmt: skip


def against_pytorch() -> list[str]:
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
    return lines


def own_pictures() -> list[str]:
    """Where the chapter's numbers come from."""
    records = [json.loads((HERE / "own-pictures" / f"{name}.json").read_text()) for name in ("results", "folder")]
    text = (
        "Each of the "
        f"{len(records[0]['runs'])} trainings is a line of [results.json](own-pictures/results.json); "
        f"[folder.json](own-pictures/folder.json) has the times and the memory of {records[1]['pictures']:,} pictures, "
        "[first.json](own-pictures/first.json) the results of the second command.\n"
    )
    commands = ["python examples/draw_pictures.py photos", "minires train photos --out runs/photos"]
    return [text, *code([*commands, *(record["command"] for record in records)])]


def cpu() -> list[str]:
    paths = sorted((HERE / "cpu").glob("*.json"))
    return [
        f"Raw, with versions: {', '.join(f'[cpu/{path.name}](cpu/{path.name})' for path in paths)}.\n",
        *code([as_of_today(json.loads(path.read_text())["command"]) for path in paths]),
    ]


def not_trained() -> list[str]:
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
    return lines


def cpu_tables() -> dict[str, str]:
    """Of fast-cpu.md, and the headline of README.md."""
    records = {name: json.loads((HERE / "cpu" / f"{name}.json").read_text()) for name in FILES}
    speed, scaling, ladder, details, activations = records.values()
    return {
        "headline": headline(speed),
        "accuracy": accuracy(),
        "speed": benchmark.table(speed, columns=8),
        "speed-with-start": benchmark.table(speed),
        "speed-spread": spread(speed),
        "depth": benchmark.depth_table(scaling),
        "batch": benchmark.batch_table(scaling),
        "loader": f"a batch of 128 augmented images takes {scaling['batch_milliseconds']:.1f} ms to make.",
        "ladder": cpu_ladder.table(ladder),
        **{f"{name}-on": measured_on(record) for name, record in records.items()},
        **{
            name: cpu_details.table(name, rows)
            for record in (details, activations)
            for name, rows in record["sections"].items()
        },
    }


def own_tables() -> dict[str, str]:
    """The tables of own-pictures.md; its numbers within sentences are in measured.py."""
    record = json.loads((HERE / "own-pictures" / "results.json").read_text())
    return {
        "own-pictures": own.table(record),
        "own-scans": own.scans_table(record),
        "own-pictures-on": f"Measured on {measured_on(record)}",
    }


def measured_on(record: dict[str, Any]) -> str:
    """Such as "2 threads on an AMD EPYC, 25 November 2026, NumPy 2.4.6 (OpenBLAS 0.3.31), PyTorch 2.13.0"."""
    info, date = record["info"], datetime.date.fromisoformat(record["date"])
    blas = ", ".join(re.sub(r"^openblas (\d+\.\d+\.\d+).*", r"OpenBLAS \1", text) for text in info["blas"])
    torch = record.get("versions", {}).get("torch", "").partition("+")[0]
    parts = [f"{info['threads']} threads on {info['processor']}", f"{date.day} {date:%B %Y}"]
    parts += [f"NumPy {info['versions']['numpy']} ({blas})", *([f"PyTorch {torch}"] if torch else [])]
    return ", ".join(parts)


def steps(record: dict[str, Any], case: str, work: str = "training") -> dict[str, list[float]]:
    """The seconds of both libraries' steps."""
    found = next(m for m in record["measurements"] if (m["case"], m["work"]) == (case, work))
    return {library: result["seconds"] for library, result in found["results"].items()}


def headline(record: dict[str, Any]) -> str:
    ratios = []
    for case in ("resnet18", "resnet101"):
        both = steps(record, case)
        ratios.append(f"{statistics.median(a / b for a, b in zip(both['minires'], both['torch'])):.2f}")
    cores = {2: "two", 4: "four"}.get(record["info"]["threads"], record["info"]["threads"])
    return (
        f"On {cores} CPU cores a training step of ResNet-18 takes {ratios[0]} of PyTorch's time, "
        f"one of ResNet-101 {ratios[1]}."
    )


def accuracy() -> str:
    """What ResNet-20 came to: the runs of the most seeds."""
    groups = compare.repetitions([run for run in runs_in("trained") if run.settings["depth"] == 20])
    runs = max(groups, key=len)
    s, mean = runs[0].settings, compare.mean_and_std(runs) or compare.percent([runs[0].accuracy])
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    return f"{s['epochs']} epochs of {runs[0].network} give {mean} on {s['dataset']} ({seeds})"


def spread(record: dict[str, Any]) -> str:
    took = [1e3 * seconds for seconds in steps(record, "resnet101")["torch"]]
    return f"PyTorch's steps of ResNet-101, all the same work, took from {min(took):.0f} to {max(took):.0f} ms."


def code(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines] + [""]
