"""The command `minires`, also `python -m minires`.

    minires train photos                                          photos/cat/*.jpg, photos/dog/*.jpg: which is which?
    minires finetune photos --weights imagenet                    ... from what a network has learned from ImageNet
    minires predict --weights runs/resnet20 photo.jpg folder/     what is on these images?
    minires predict --weights imagenet --depth 101 photo.jpg --format json
    minires report runs/sgd runs/adam                             runs side by side: a table, and curves in one figure
    minires summary --depth 101                                   a network, layer by layer; --stages: by stages
    minires info                                                  versions, device, kernels, threads
    minires check                                                 does this GPU compute what it should?

Exit status: 0 done; 1 done, some files were no images, or the GPU is wrong; 2 unusable arguments or weights, no GPU to
check; 130 interrupted.

Reading order: after predict.py.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np
from tqdm.auto import tqdm

import minires as mr
from minires import kernels, models
from minires.cli import arguments as cli
from minires.cli.predict import ImageError, batches, image_files, open_classifier
from minires.device import cuda
from minires.files.atomic import atomic
from minires.models import resnet
from minires.train import compare
from minires.train.report import TITLES, class_table, judged_by

PROGRAMS = {"train": "train_cifar", "finetune": "finetune_cifar"}  # commands that are programs in examples/


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in PROGRAMS:
        program = example(PROGRAMS[words[0]])
        return cli.run(partial(program.main, words[1:], ("minires", words[0])), name=f"minires {words[0]}")
    parser = make_parser()
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        run = {"predict": predict, "report": report, "summary": summary, "info": info, "check": check}[args.command]
        return run(parser, args)
    except KeyboardInterrupt:
        print("minires: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `minires ... | head`
        sys.stderr.close()
        return 2 if args.command == "check" else 0  # 0 would mean that all is right
    except MemoryError as error:
        print(f"minires {args.command}: error: out of memory ({error})", file=sys.stderr)
        return 2
    except (OSError, ValueError, RuntimeError) as error:  # WeightsError is a ValueError
        print(f"minires {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def example(name: str) -> ModuleType:
    """The program examples/NAME.py. A wheel has it as minires/examples/NAME.py, a checkout beside minires/."""
    try:
        return importlib.import_module(f"minires.examples.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("minires.examples", f"minires.examples.{name}"):
            raise
    path = Path(mr.__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # as for every .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_parser() -> cli.Parser:
    """The arguments of all commands but those of PROGRAMS, which have parsers of their own."""
    parser = cli.Parser("minires", description="Pretrained and self-trained ResNets from the command line.")
    parser.add_argument("--version", action="version", version=f"minires {mr.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    for command, text in {
        "train": "train a network on pictures of your own, CIFAR-10, CIFAR-100 or Shapes-10",
        "finetune": "go on from a pretrained network, on the same data",
    }.items():
        commands.add_parser(command, help=text)
    add = commands.add_parser("predict", help="classify images", description="Classify images.").add_argument
    add("images", nargs="+", metavar="IMAGE", help="files of any kind that Pillow reads, or folders of them")
    add("--weights", required=True, help="the folder of a run, a file of weights, or 'imagenet'")
    add(
        "--depth",
        type=int,
        choices=tuple(resnet.CONFIGURATIONS),
        default=101,
        help="for --weights imagenet (default: 101)",
    )
    add("--top", type=cli.positive_int, default=5, metavar="K", help="show the K most probable classes")
    add("--format", choices=("text", "csv", "json"), default="text")
    add("--output", metavar="FILE", help="write to FILE, not to the terminal")
    add("--batch-size", type=cli.positive_int, default=32)
    add("--image-size", type=cli.image_size, help="(default: the size that the network was trained with)")
    add("--classes", metavar="FILE", help="names of the classes, one per line (default: those noted in the weights)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")

    add = commands.add_parser("report", help="compare runs: a table, and curves in one figure").add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of runs, such as runs/photos, finished or not")
    add("--out", default="report.png", metavar="FILE", help="the figure's file (default: report.png; .svg, .pdf, ...)")
    add("--format", choices=("text", "markdown"), default="text", help="format of the table")

    add = commands.add_parser("summary", help="a network, layer by layer").add_argument
    add("--depth", type=int, choices=models.DEPTHS, default=101, help="layers (default: 101)")
    add("--stem", choices=resnet.STEMS, help="first layers (default: imagenet for depths 18 to 152)")
    add("--num-classes", type=cli.positive_int, help="(default: 1000, or 10 for the small networks)")
    add("--image-size", type=cli.image_size, help="(default: 224, or 32 for the small networks and stem cifar)")

    add("--stages", action="store_true", help="the architecture table: a line for each stage, not for each layer")

    commands.add_parser("info", help="versions, device, kernels, threads")
    text = "ompare the CUDA kernels on this GPU, and training steps, with the reference on the CPU"
    commands.add_parser("check", help=f"c{text}", description=f"C{text}. Takes about a minute (estimate).")
    return parser


def predict(parser: cli.Parser, args: Namespace) -> int:
    """`minires predict`."""
    names = None
    if args.classes:
        try:
            names = Path(args.classes).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            parser.error(f"argument --classes: {args.classes} is not a text in UTF-8")
    files = image_files(args.images)
    if not files:
        parser.error("argument IMAGE: there are no files in " + ", ".join(args.images))
    device = cli.choose_device(parser, args.device)
    classifier = open_classifier(args.weights, args.depth, names, args.image_size, device, log=_note)

    skipped = 0

    def skip(error: ImageError) -> None:
        nonlocal skipped
        skipped += 1
        _note(f"skipped: {error}")

    def results() -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        # disable=None: no bar when the output is neither a terminal nor a notebook.
        with tqdm(total=len(files), unit="image", leave=False, disable=None) as bar:
            for paths, pixels in batches(files, classifier.preparation, args.batch_size, skip):
                for path, probabilities in zip(paths, classifier.probabilities(pixels)):
                    yield path, _top(probabilities, classifier.classes, args.top)
                bar.update(len(paths))

    # A file name that is no UTF-8 is written as its bytes; in JSON, which is text, as an escape.
    errors = "backslashreplace" if args.format == "json" else "surrogateescape"
    if args.output:
        text = io.StringIO()
        _write(results(), args.format, text)
        with atomic(Path(args.output)) as file:
            file.write(text.getvalue().encode(errors=errors))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=errors)
        _write(results(), args.format, sys.stdout)
    if skipped:
        _note(f"{skipped} of {len(files)} files skipped")
    return 1 if skipped else 0


def _note(line: str) -> None:
    """Print a line to stderr, above the progress bar: stdout is for the results."""
    tqdm.write(line, file=sys.stderr)


def _top(probabilities: np.ndarray, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": classes[i], "index": int(i), "probability": float(probabilities[i])} for i in order]


def _write(results: Iterator[tuple[Path, list[dict[str, Any]]]], form: str, out: TextIO) -> None:
    """All results as text, as lines of CSV, or as one JSON list."""
    if form == "json":
        rows = [{"file": str(path), "predictions": found} for path, found in results]
        print(json.dumps(rows, indent=2, ensure_ascii=False), file=out)
        return
    if form == "csv":
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["file", "rank", "index", "class", "probability"])
        for path, found in results:
            for rank, row in enumerate(found, start=1):
                table.writerow([path, rank, row["index"], row["class"], f"{row['probability']:.6f}"])
        return
    for path, found in results:
        print(path, file=out)
        for row in found:
            print(f"  {100 * row['probability']:6.2f} %  {row['class']}", file=out)
        out.flush()


def report(parser: cli.Parser, args: Namespace) -> int:
    """`minires report`."""
    if not Path(args.out).suffix:
        parser.error(f"argument --out: {args.out!r} has no ending that says what kind of picture to write: .png, .svg")
    runs, refused = [], []
    for path in args.runs:
        try:
            runs.append(compare.read_run(path))
        except compare.RunError as error:
            refused.append(error)
    if not runs:
        raise refused[0]
    for error in refused:
        _note(f"left out: {error}")
    common, rows = compare.table(runs)
    print(f"all runs: {common}\n" if len(runs) > 1 else f"{common}\n")
    print(compare.as_markdown(rows) if args.format == "markdown" else compare.as_text(rows))
    if len(runs) == 1 and "per_class" in runs[0].results:
        of = runs[0].results
        part = judged_by(of)
        which = f"the {of['weights']} weights, {of[f'{part}_images']:,} {TITLES[part]} images"
        print(f"\nper class ({which}):\n{class_table(of['per_class'])}")
    try:
        figure = compare.overlay(runs, title=", ".join(dict.fromkeys(_what(run) for run in runs)))
    except ImportError:
        _note("no figure: matplotlib is not installed (pip install matplotlib)")
        return 0
    try:
        figure.savefig(args.out, dpi=120)
    except OSError as error:
        parser.error(f"argument --out: {args.out}: {error.strerror or error}")
    print(f"\n-> {args.out}")
    return 0


def _what(run: compare.Run) -> str:
    return f"{run.network} on {run.settings.get('dataset', 'unknown images')}"


def summary(parser: cli.Parser, args: Namespace) -> int:
    """`minires summary`."""
    model = models.build(args.depth, args.num_classes, args.stem)
    size = (args.image_size, args.image_size, 3) if args.image_size else model.input_shape
    print(models.stages(model, size) if args.stages else mr.summary(model, size))
    return 0


def info(parser: cli.Parser, args: Namespace) -> int:
    """`minires info`."""
    for name, value in mr.info().items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        value = "none" if value is None else value
        print(f"{name:<10} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def check(parser: cli.Parser, args: Namespace) -> int:
    """`minires check`."""
    if reason := cuda.why_not():
        parser.exit(2, f"minires check: there is no GPU to check: {reason}; minires runs on the CPU\n")
    run = kernels.part("check", "cuda")
    if run is None:
        parser.exit(2, "minires check: there is nothing to check: the kernels in use are the reference's\n")
    gpu = mr.info()["gpu"]
    print(f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory']}; minires {mr.__version__}")
    wrong = run()
    if not wrong:
        print("the CUDA kernels are right on this GPU")
        return 0
    print(
        f"the CUDA kernels are WRONG on this GPU: {'; '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. Please "
        "report this as an issue, with all lines above and the output of `minires info`. Until it is mended, "
        "MINIRES_KERNELS=reference computes the same without these kernels, slowly"
    )
    return 1
