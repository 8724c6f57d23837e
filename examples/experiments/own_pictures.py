"""How many pictures are enough, and what to freeze: measured on drawn pictures, for docs/own-pictures.md.

    python examples/experiments/own_pictures.py WORKDIR --json docs/results/own-pictures/results.json    # an hour

Three classes of drawn pictures (circle, cross, star; examples/draw_pictures.py), 5 to 80 of each, are learned by
ResNet-20 at 32x32 in three ways: from random weights; from the weights of a network that has learned seven other
classes, all layers trained; the same with only the new last layer trained. Each is tested on 100 other pictures a
class, once. Then the stand-in for medical pictures, 120 clear ones and 20 with a shadow, with and without class
weights. Everything with three seeds, which also draw other pictures.

Each run is a command that a user could have typed, `minires train` or `minires finetune`. A run that is in WORKDIR
already is not repeated.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import minires as mr
from examples import draw_pictures
from minires.cli import arguments, commands
from minires.data.shapes import OUTLINES

COUNTS, SEEDS = (5, 10, 20, 40, 80), (0, 1, 2)
TEST, KNOWN = 100, 80  # test pictures of a class; pictures of each of the seven other classes
CLASSES = draw_pictures.CLASSES[:3]
COMMON = ("--device", "cpu", "--image-size", "32", "--test-size", "100000")


def main() -> int:
    parser = arguments.Parser(description="Measure how many pictures are enough, and what to freeze.")
    parser.add_argument("workdir", help="folder of the pictures and the runs")
    parser.add_argument("--json", help="where the results go (default: WORKDIR/results.json)")
    args = parser.parse_args()
    work = Path(args.workdir)
    runs = []
    for seed in SEEDS:
        known = work / f"known-{seed}"
        draw(known, draw_pictures.CLASSES[3:], KNOWN, seed)
        run(runs, "known", KNOWN, seed, work, "train", known)
        for count in COUNTS:
            photos = work / f"photos-{seed}-{count}"
            draw(photos / "train", CLASSES, count, seed)
            draw(photos / "test", CLASSES, TEST, seed + 1000)
            run(runs, "scratch", count, seed, work, "train", photos)
            source = ("--weights", work / f"known-{KNOWN}-{seed}", "--epochs", "30")
            run(runs, "all layers", count, seed, work, "finetune", photos, *source)
            run(runs, "last layer", count, seed, work, "finetune", photos, *source, "--freeze")
        scans = work / f"scans-{seed}"
        if not scans.exists():
            draw_pictures.draw_scans(scans / "train", seed)
            draw_pictures.draw_scans(scans / "test", seed + 1000)
        run(runs, "scans", 140, seed, work, "train", scans, "--grey")
        run(runs, "scans weighted", 140, seed, work, "train", scans, "--grey", "--class-weights")
    record = {
        "command": "python examples/experiments/own_pictures.py WORKDIR --json docs/results/own-pictures/results.json",
        "date": datetime.date.today().isoformat(),
        "info": mr.info(),
        "runs": runs,
    }
    path = Path(args.json or work / "results.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def draw(folder: Path, classes: tuple[str, ...], count: int, seed: int) -> None:
    """`count` pictures of each class, unless they are there."""
    if folder.exists():
        return
    for name in classes:
        label = draw_pictures.CLASSES.index(name)
        (folder / name).mkdir(parents=True)
        for number in range(count):
            path = folder / name / f"{name}-{number:04}"
            draw_pictures.save_photo(path, number, OUTLINES[name], *draw_pictures.chance(seed, label, number))


def run(runs: list[dict[str, Any]], way: str, count: int, seed: int, work: Path, *words: Any) -> None:
    """Run a command of minires, and note what its results.json says."""
    out = work / f"{way.replace(' ', '-')}-{count}-{seed}"
    if not (out / "results.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        print(f"\n{out.name}", flush=True)
        more = COMMON if words[0] == "train" else COMMON[:-2]
        if commands.main([*map(str, words), *more, "--seed", str(seed), "--out", str(out)]):
            sys.exit(f"{out}: failed")
    found = json.loads((out / "results.json").read_text())
    part = "test" if "test_accuracy" in found else "val"
    runs.append(
        {"way": way, "count": count, "seed": seed, "accuracy": found[f"{part}_accuracy"], "minutes": found["minutes"]}
        | {"part": part, "images": found[f"{part}_images"], "per_class": found["per_class"], "steps": found["steps"]}
    )


def table(record: dict[str, Any]) -> str:
    """Test accuracy by the number of pictures, for the three ways: the seeds' mean, the lowest and the highest."""
    lines = [
        "| pictures of a class | from random weights | all layers, pretrained | last layer, pretrained |",
        "|---|---|---|---|",
    ]
    for count in COUNTS:
        cells = [shares(record, way, count) for way in ("scratch", "all layers", "last layer")]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scans_table(record: dict[str, Any]) -> str:
    """Accuracy and the recall of both classes, with and without class weights."""
    lines = ["| | accuracy | recall of clear | recall of shadow |", "|---|---|---|---|"]
    for way, title in (("scans", "without"), ("scans weighted", "with `--class-weights`")):
        of = [run for run in record["runs"] if run["way"] == way]
        recalls = [[run["per_class"][label]["recall"] for run in of] for label in (0, 1)]
        cells = [shares(record, way, 140), *map(spread, recalls)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shares(record: dict[str, Any], way: str, count: int) -> str:
    """The accuracies of a way."""
    return spread([run["accuracy"] for run in record["runs"] if (run["way"], run["count"]) == (way, count)])


def spread(values: list[float]) -> str:
    """Such as "93 % (90 to 95)"."""
    mean, low, high = (100 * value for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.0f} % ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    sys.exit(arguments.run(main))
