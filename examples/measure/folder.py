"""A folder that is larger than memory: the time and the memory of reading it, beside the training step it feeds.

    python examples/draw_pictures.py big --classes 4 --count 5000 --sizes 200 600
    python examples/measure/folder.py big --json docs/results/own-pictures/folder.json

ResNet-18 at 224x224, batches of 16, random-resized crops, every picture read from its file for every batch. Reported:
how long it takes to check all pictures before the training; images a second that the loader makes on its own; a
training step with a batch that is ready, and with one that the loader makes meanwhile, in turns; the peak memory of
`minires train` on the folder and on 200 pictures of it, three steps each.
"""

from __future__ import annotations

import datetime
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import minires as mr
import minires.functional as F
from minires import data, models, optim
from minires.cli import arguments
from minires.data.host import RandomResizedCrop
from minires.data.pictures import THREADS

SIZE, BATCH, FEW = 224, 16, 200


def main() -> int:
    parser = arguments.Parser(description="Time and memory of a folder that is read picture by picture.")
    parser.add_argument("folder", help="of pictures, a sub-folder for each class")
    parser.add_argument("--steps", type=arguments.positive_int, default=12, help="of each kind (default: 12)")
    parser.add_argument("--json", help="where the results go")
    args = parser.parse_args()
    folder = Path(args.folder)

    start = time.monotonic()
    dataset = data.folder(folder, image_size=SIZE, memory_bytes=0)
    record: dict[str, Any] = {
        "command": "python examples/measure/folder.py big --json docs/results/own-pictures/folder.json",
        "date": datetime.date.today().isoformat(),
        "info": mr.info(),
        "pictures": sum(map(len, (dataset.train_images, dataset.val_images))),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "threads": THREADS,
        "check_seconds": time.monotonic() - start,
    }
    loader = data.Loader(
        dataset.train_images, dataset.train_labels, BATCH,
        train=True, augment=RandomResizedCrop(), mean=dataset.mean, std=dataset.std,
    )  # fmt: skip
    record["loader_images_per_second"] = loader_speed(loader)
    record |= step_times(loader, dataset.num_classes, args.steps)
    record["peak_memory_bytes"] = peaks(folder, dataset)
    print(json.dumps({name: value for name, value in record.items() if name != "info"}, indent=1))
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def loader_speed(loader: data.Loader, batches: int = 40) -> float:
    """Images a second, while nothing else runs."""
    of_epoch = loader.epoch(0)
    for _ in range(4):  # those that were made ahead
        next(of_epoch)
    start = time.monotonic()
    for _ in itertools.islice(of_epoch, batches):
        pass
    seconds = time.monotonic() - start
    of_epoch.close()
    return batches * loader.batch_size / seconds


def step_times(loader: data.Loader, classes: int, steps: int) -> dict[str, list[float]]:
    """Seconds of steps with a batch that is ready, and of steps that take theirs from the loader, in turns of three."""
    model = models.resnet18(classes)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    ready = loader.batch(1, 0)
    found: dict[str, list[float]] = {"step_seconds": [], "step_with_loader_seconds": []}

    def step(x: Any, y: Any) -> None:
        loss = F.cross_entropy(model(mr.Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(*ready)
    while len(found["step_seconds"]) < steps:
        for _ in range(3):
            start = time.monotonic()
            step(*ready)
            found["step_seconds"].append(time.monotonic() - start)
        of_epoch = loader.epoch(2, start=len(found["step_seconds"]))
        next(of_epoch)  # what comes after it is being made while the steps run
        for _ in range(3):
            start = time.monotonic()
            step(*next(of_epoch))
            found["step_with_loader_seconds"].append(time.monotonic() - start)
        of_epoch.close()
    found["ratio"] = statistics.median(found["step_with_loader_seconds"]) / statistics.median(found["step_seconds"])
    return found


def peaks(folder: Path, dataset: data.Dataset) -> dict[str, int]:
    """Peak memory of three training steps, in bytes: on the whole folder, and on a few pictures of it."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        few = Path(temporary) / "few"
        for name in dataset.classes:
            (few / name).mkdir(parents=True)
            for file in sorted((folder / name).iterdir())[: FEW // dataset.num_classes]:
                (few / name / file.name).symlink_to(file.resolve())
        for title, path in (("whole", folder), ("few", few)):
            out = Path(temporary) / f"run-{title}"
            command = [sys.executable, "-m", "minires", "train", str(path), "--depth", "18", "--device", "cpu"]
            command += ["--batch-size", str(BATCH), "--steps", "3", "--test-size", str(BATCH), "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[title] = json.loads((out / "results.json").read_text())["peak_memory_bytes"]
    return found


if __name__ == "__main__":
    sys.exit(arguments.run(main))
