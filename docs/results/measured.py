"""The measured numbers within sentences of README.md and the chapters, by the names that stand before them.

    3 seeds reach <!-- resnet20-24 -->86.62 ± 0.29 %<!-- end --> after 24 epochs

write_numbers.py writes them between the comments. Each number is computed here, from the records beside this file. So
the sentence around a number can be rewritten freely, and the number cannot.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import minires as mr
from examples.measure import reading
from minires import models
from minires.models.pretrained import Zeros
from minires.optim import schedules
from minires.train import compare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORDS = {1: "one", 2: "two"}


def texts() -> dict[str, str]:
    """What stands between the comments, by name."""
    return {
        **readme(),
        **training(),
        **recipes(),
        **against_pytorch(),
        **residual_learning(),
        **layers(),
        **own_pictures(),
        **machine_code(),
        "coverage": re.findall(r"\*\*TOTAL\*\*.*\*\*(\d+)%\*\*", (HERE / "coverage.md").read_text())[0] + " %",
    }


def machine_code() -> dict[str, str]:
    """Of docs/fast-cuda.md: the loops on the tensor cores, in tf32."""
    page, found = (HERE / "machine-code.md").read_text(), {}
    for kernel, tile in (("convolution", 64), ("convolution", 128), ("convolution_async", 128)):
        cells = re.search(rf"^\| {kernel}, tf32, tile {tile} \| (.*) \|$", page, flags=re.MULTILINE)
        assert cells is not None
        found[kernel, tile] = [int(cell) for cell in cells[1].split(" | ")]  # registers, instructions, multiplications
    _, instructions, multiplications = found["convolution", 64][:3]
    return {
        "tf32-instructions": str(instructions),
        "tf32-multiplications": str(multiplications),
        "tf32-per-multiplication": f"{instructions / multiplications:.0f}",
        "tf32-wide-instructions": str(found["convolution", 128][1]),
        "async-instructions": str(found["convolution_async", 128][1]),
    }


@functools.cache
def run(folder: str) -> compare.Run:
    """The run in a folder of docs/results."""
    return compare.read_run(HERE / folder)


def accuracy(name: str) -> str:
    """The test accuracy of a trained network."""
    return compare.percent([run(f"trained/{name}").accuracy])


def seeds(folder: str, name: str) -> list[compare.Run]:
    """Three repetitions."""
    return [run(f"{folder}/{name}{seed}") for seed in ("0", "1", "2")]


def cores(of: compare.Run) -> str:
    """Such as "one core"."""
    threads = of.results["machine"]["threads"]
    return f"{WORDS[threads]} core{'s' * (threads > 1)}"


def minutes(of: compare.Run) -> str:
    """Such as "20 minutes on one core"."""
    count = round(of.results["minutes"])
    return f"{count} minute{'s' * (count != 1)} on {cores(of)}"


def readme() -> dict[str, str]:
    """Of README.md."""
    short, long, wide = (run(f"trained/resnet101-{name}") for name in ("one-epoch", "imagenet-stem-18", "cifar-stem"))
    macs = [
        mr.summary(models.build(101, 10, stem, generator=Zeros()), (32, 32, 3)).macs for stem in ("cifar", "imagenet")
    ]
    an_epoch = [statistics.median(record["seconds"] for record in r.records) for r in (wide, long)]
    files = reading.thread()
    drawn = {depth: run(f"trained/shapes-resnet{depth}") for depth in (20, 101)}
    return {
        **{f"shapes-resnet{d}": f"{compare.percent([r.accuracy])} ({r.settings['dataset']})" for d, r in drawn.items()},
        **{f"shapes-resnet{depth}-time": minutes(r) for depth, r in drawn.items()},
        "resnet101-one-epoch": compare.percent([short.accuracy]),
        "resnet101-one-epoch-time": minutes(short),
        "resnet101-long": compare.percent([long.accuracy]),
        "resnet101-long-epochs": f"{long.settings['epochs']}",
        "resnet101-long-time": f"{long.results['minutes'] / 60:.1f} hours on {cores(long)}",
        "resnet101-work": f"{macs[0] / macs[1]:.0f}",
        "resnet101-cost": f"{an_epoch[0] / an_epoch[1]:.0f}",
        "resnet101-cifar-stem": compare.percent([wide.accuracy]),
        "resnet101-cifar-stem-time": minutes(wide),
        "reading-order": f"{len(files)} files and about {round(reading.total(files), -2):,} lines",
        "minimal": re.findall(r"accuracy ([\d.]+ % .*)", (HERE / "minimal" / "output.txt").read_text())[-1],
        "minimal-epochs": f"{(HERE / 'minimal' / 'output.txt').read_text().count('epoch')}",
        "train-minimal": "```python notest\n" + (ROOT / "examples/train_minimal.py").read_text() + "```",
    }


def own_pictures() -> dict[str, str]:
    """Of own-pictures.md: the first run, and the reading of a large folder."""
    first = json.loads((HERE / "own-pictures" / "first.json").read_text())
    large = json.loads((HERE / "own-pictures" / "folder.json").read_text())
    ready = statistics.median(large["step_seconds"])
    peak = {name: f"{value / 1e6:,.0f} MB" for name, value in large["peak_memory_bytes"].items()}
    speed = (
        f"the threads make {large['loader_images_per_second']:.0f} pictures a second at 224x224 from "
        f"{large['pictures']:,} JPEGs of 200 to 600 pixels, {large['bytes'] / 1e6:,.0f} MB. ResNet-18 trains on "
        f"{16 / ready:.0f} a second, on {WORDS[large['info']['threads']]} cores. A step whose batch is read meanwhile "
        f"takes {large['ratio']:.2f} times as long as one whose batch is ready. The peak memory of the training is "
        f"{peak['whole']}, and {peak['few']} on 200 of the pictures. The check of all pictures, before the training, "
        f"takes {large['check_seconds']:.0f} seconds."
    )
    return {
        "own-time": f"{60 * first['minutes']:.0f} seconds on {WORDS[first['machine']['threads']]} cores",
        "own-accuracy": f"{100 * first['val_accuracy']:.0f} %",
        "own-folder-speed": speed,
    }


def training() -> dict[str, str]:
    """Of training.md, on the schedule."""
    runs = seeds("trained", "resnet20-seed")
    at, end = ([f"{100 * r.records[i]['test_accuracy']:.0f}" for r in runs] for i in (16, -1))
    short = run("ablation/baseline")
    assert short.accuracy > max(r.records[16]["test_accuracy"] for r in runs)  # what the sentence goes on to say
    return {
        "resnet20-epochs": f"{runs[0].settings['epochs']}",
        "after-17": f"{at[0]}, {at[1]} and {at[2]} %",
        "at-the-end": f"{end[0]}, {end[1]} and {end[2]} %",
        "rate-after-17": f"{runs[0].records[16]['lr']:.3f}",
        "short-epochs": f"{len(short.records)}",
        "short-accuracy": f"{100 * short.accuracy:.0f} %",
        "resnet20-24": compare.mean_and_std(runs),
        "resnet20-range": "{:.2f} to {:.2f} %".format(*(100 * f(r.accuracy for r in runs) for f in (min, max))),
    }


def recipes() -> dict[str, str]:
    """Of training.md, on what each part of the recipe is worth."""
    rows = {path.name: run(f"ablation/{path.name}") for path in (HERE / "ablation").iterdir() if path.is_dir()}
    baseline = [rows[name].accuracy for name in ("baseline", "baseline-seed1", "baseline-seed2")]
    cost = {name: 100 * (statistics.fmean(baseline) - row.accuracy) for name, row in rows.items()}
    assert max(abs(cost[name]) for name in ("smoothing", "batch-64", "no-augmentation")) < 0.4  # "change nothing"
    assert f"{cost['adam-one-cycle']:.0f}" == f"{cost['constant']:.0f}"  # "so does Adam"

    def losses(of: compare.Run) -> str:
        return f"{of.records[-1]['loss']:.2f} and {of.records[-1]['test_loss']:.2f}"

    return {
        "seeds-apart": f"{100 * (max(baseline) - min(baseline)):.1f}",
        "constant-costs": f"{cost['constant']:.0f}",
        "adam-costs": f"{cost['adam']:.0f}",
        "zero-init-costs": f"{cost['zero-init-last']:.0f}",
        "flips-gain": f"{-cost['flips-only']:.1f}",
        **{f"losses-{name}": losses(rows[name]) for name in ("baseline", "flips-only", "no-augmentation")},
        "losses-flips-24": losses(run("trained/resnet20-flips")),
        "losses-crops-24": losses(run("trained/resnet20-seed0")),
        "flips-24": accuracy("resnet20-flips"),
        "resnet18-batch512": accuracy("resnet18-16px-batch512"),
        "resnet18-batch512-half": accuracy("resnet18-16px-batch512-lr0.4"),
        "resnet18-16px": accuracy("resnet18-16px-no-zero-init"),
        "resnet18-16px-zero-init": accuracy("resnet18-16px-sgd"),
        "resnet18": accuracy("resnet18-no-zero-init"),
        "resnet18-zero-init": accuracy("resnet18"),
    }


def against_pytorch() -> dict[str, str]:
    """Of training.md, on ResNet-101 in both libraries."""
    sgd, adam = (
        json.loads((HERE / "pytorch" / f"resnet101-{name}" / "losses.json").read_text())["losses"]
        for name in ("sgd", "adam")
    )
    libraries = ("minires", "PyTorch", "PyTorch, nudged")

    def together(name: str) -> int:
        return [abs(a - b) <= 1e-4 for a, b in zip(sgd[name], sgd["PyTorch"])].index(False)

    peaks = [max(sgd[name]) for name in libraries]
    (step,) = {sgd[name].index(peak) + 1 for name, peak in zip(libraries, peaks)}
    (steps,) = {len(losses) for losses in sgd.values()}

    def three(values: list[str]) -> str:
        return "{}, {} and {}".format(*values)

    return {
        "same-losses": f"{together('minires')}",
        "same-losses-nudged": f"{together('PyTorch, nudged')}",
        "sgd-peaks": "{:.1f} here and to {:.1f} and {:.1f} there at step {}".format(*peaks, step),
        "sgd-ends": three([f"{statistics.fmean(sgd[name][-10:]):.2f}" for name in libraries]),
        "adam-ends": three([f"{statistics.fmean(adam[name][-10:]):.2f}" for name in libraries]),
        "compared-steps": f"{steps}",
    }


def residual_learning() -> dict[str, str]:
    """Of residual-learning.md, on errors."""
    found: dict[str, str] = {}
    for name in ("plain-20", "plain-56", "resnet-20", "resnet-56"):
        last = run(f"degradation/{name}").records[-1]
        found[f"{name}-training-error"] = compare.percent([1 - last["accuracy"]])
        found[f"{name}-test-error"] = compare.percent([1 - last["test_accuracy"]])
    middle, deep = run("trained/resnet32"), run("trained/resnet56")
    return {
        **found,
        "resnet32": compare.percent([middle.accuracy]),
        "resnet32-epochs": f"{middle.settings['epochs']}",
        "resnet56": compare.percent([deep.accuracy]),
    }


def layers() -> dict[str, str]:
    """Of residual-learning.md, on gradients and responses of every layer."""
    before, spread, weak, responses = {}, {}, {}, {}
    for name in ("plain-56", "resnet-56", "resnet-20"):
        probes = json.loads((HERE / "degradation" / name / "layers.json").read_text())["probes"]
        before[name] = probes[0]["gradient_norm"]
        spread[name] = max(probes[1]["gradient_norm"]) / min(probes[1]["gradient_norm"])
        responses[name] = probes[-1]["response_std"]
        weak[name] = [statistics.fmean(responses[name][1:][i::2]) for i in (1, 0)]  # of second and first convolutions
    plain, residual = before["plain-56"], before["resnet-56"][1:]
    least = min(range(len(plain)), key=plain.__getitem__)
    decayed, steps = decayed_weight()
    assert abs(statistics.median(responses["plain-56"]) - decayed) < 0.005  # "most lie on one line"
    assert weak["resnet-20"][0] < weak["resnet-56"][0]  # "here it is ResNet-20"
    return {
        "plain-56-gradients": f"{plain[least]:.2f} in layer {least + 1} to {plain[0]:.0f} in layer 1",
        "plain-56-growth": f"{100 * ((plain[0] / plain[least]) ** (1 / least) - 1):.0f} %",
        "resnet-56-factor": f"{math.ceil(10 * max(residual) / min(residual)) / 10:.1f}",
        "plain-56-later": f"{math.ceil(spread['plain-56'])}",
        "resnet-56-later": f"{math.ceil(spread['resnet-56'])}",
        "decayed-weight": f"{decayed:.2f}",
        "decay-steps": f"{steps:,}",
        "resnet-56-second": f"{weak['resnet-56'][0]:.2f}",
        "resnet-56-first": f"{weak['resnet-56'][1]:.2f}",
        "plain-56-both": "{:.2f} and {:.2f}".format(*weak["plain-56"]),
        "resnet-20-second": f"{weak['resnet-20'][0]:.2f}",
    }


def decayed_weight() -> tuple[float, int]:
    """Where SGD with momentum brings a weight that starts at 1 and gets no gradient but that of the weight decay, at
    the recorded settings of plain-56; and after how many steps."""
    settings: dict[str, Any] = run("degradation/plain-56").settings
    steps = run("degradation/plain-56").records[-1]["step"]
    schedule = schedules.build(settings["schedule"], settings["lr"], steps)
    schedule = schedules.warm_up(schedule, settings["lr"], settings["warmup_steps"])
    weight, velocity = 1.0, 0.0
    for step in range(steps):
        velocity = 0.9 * velocity + settings["weight_decay"] * weight
        weight -= schedule(step) * velocity
    return weight, steps
