"""What the command lines of examples/ share: checked numbers, and errors of one line.

Reading order: any time; examples/train_cifar.py uses it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from minires import kernels
from minires.data import NAMES, DataError
from minires.device import OutOfMemory, cuda
from minires.models import resnet_cifar
from minires.train import TrainingError
from minires.train.checkpoint import CheckpointError
from minires.train.compare import RunError
from minires.weights import WeightsError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage before them. Exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    return _number(int, text, 1, math.inf, "a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """An integer of at least 0."""
    return _number(int, text, 0, math.inf, "a whole number of at least 0")


def image_size(text: str) -> int:
    """A size of at least 8 pixels: the networks halve an image up to five times."""
    return _number(int, text, 8, math.inf, "a whole number of at least 8")


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return _number(float, text, math.nextafter(0, 1), math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    return _number(float, text, 0, math.inf, "a number of at least 0")


def share(text: str) -> float:
    """A number of at least 0 and below 1."""
    return _number(float, text, 0, 1, "a number of at least 0 and below 1, such as 0.2")


Number = TypeVar("Number", int, float)


def _number(kind: Callable[[str], Number], text: str, least: float, below: float, expected: str) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value < below:  # NaN fails it too
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def run(main: Callable[[], int], name: str | None = None) -> int:
    """`main()`, with one line on stderr and an exit status for every expected failure. `name` begins the line; default:
    the name of the script.

    1: training failed, out of memory, a full disk; 2: unusable data, weights or checkpoints, or none; 130: Ctrl-C.
    """
    try:
        return main()
    except KeyboardInterrupt:
        message, status = "interrupted; what was saved before is intact", 130
    except (DataError, WeightsError, CheckpointError, RunError) as error:
        message, status = error, 2
    except FileNotFoundError as error:
        message, status = f"{error.filename}: {error.strerror}" if error.filename else error, 2
    except (TrainingError, OutOfMemory) as error:
        message, status = error, 1
    except MemoryError as error:  # CuPy's is one too
        message, status = f"out of memory ({error}); a smaller --batch-size needs less", 1
    except OSError as error:
        message, status = f"{error.filename or 'output'}: {error.strerror or error}; what was saved before is intact", 1
    name, kind = name or os.path.basename(sys.argv[0]), "error: " if status != 130 else ""
    print(f"{name}: {kind}{' '.join(str(message).split())}", file=sys.stderr)
    return status


def program_parser(program: Sequence[str], data: str, description: str, epilog: str) -> Parser:
    """The parser of a program in examples/, with the arguments that say which data, `data` by default.

    program  what started it: a script, ("python", "x.py"), has --data; a command, ("minires", "train"), has to be given
             its data, as the word without an option
    """
    command = program[0] == "minires"
    prog = " ".join(program) if command else None
    parser = Parser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
    known = "a folder with a sub-folder for each class, cifar10, cifar100, shapes, or auto (CIFAR-10 or else Shapes-10)"
    if command:
        parser.add_argument("data", nargs="?", metavar="DATA", help=known)
    else:
        parser.add_argument("--data", default=data, metavar="DATA", help=f"{known} (default: {data})")
    parser.add_argument("--data-dir", default="data", help="folder of CIFAR and Shapes-10, or for their download")
    parser.add_argument(
        "--val",
        type=share,
        metavar="SHARE",
        help="share of the training images kept aside to evaluate the epochs on (default: 0; of your own pictures 0.2)",
    )
    return parser


def check_data(parser: Parser, data: str | None, out: str | Path) -> None:
    """Refuse a command without data, and a run's folder among the pictures: it would be a class of the next run."""
    if data is None:
        parser.error("the following arguments are required: DATA, such as a folder of pictures, or cifar10")
    if data not in NAMES and Path(out).resolve().is_relative_to(Path(data).resolve()):
        parser.error(f"argument --out: {out} lies among the pictures in {data}; name a folder elsewhere")


def choose_device(parser: Parser, wanted: str) -> str:
    """The device for `wanted` "auto", "cpu" or "cuda". "cuda" without a usable GPU is an error."""
    if wanted == "cuda" and not cuda.is_available():
        parser.error(f"argument --device: 'cuda' is not usable: {cuda.why_not()}")
    if wanted == "auto":
        return "cuda" if cuda.is_available() else "cpu"
    return wanted


def use_precision(parser: Parser, choice: str) -> None:
    """Compute in `choice`, see `kernels.use_precision`; an error if the GPU cannot, or a package is missing."""
    try:
        kernels.use_precision(choice)
    except RuntimeError as error:
        parser.error(f"argument --precision: {error}")


def check_stem(parser: Parser, depth: int, stem: str) -> None:
    """Refuse --stem imagenet for a network that has a stem of its own."""
    if stem == "imagenet" and depth in resnet_cifar.DEPTHS:
        parser.error(f"argument --stem: ResNet-{depth} has a stem of its own; 'imagenet' is for depths 18 to 152")
