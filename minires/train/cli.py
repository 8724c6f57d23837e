"""What the command lines of examples/ share: numbers that are checked, and errors of one line.

Reading order: any time; examples/train_cifar.py uses it.
"""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

from minires.device import cuda


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
    return _number(float, text, 0, 1, "a number of at least 0 and below 1")


def _number(kind: type, text: str, least: float, below: float, expected: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not least <= value < below:  # NaN fails it too
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def choose_device(parser: Parser, wanted: str) -> str:
    """The device for `wanted` "auto", "cpu" or "cuda". A GPU that is asked for and does not work is an error."""
    if wanted == "cuda" and not cuda.is_available():
        parser.error(f"argument --device: 'cuda' is not usable: {cuda.why_not()}")
    if wanted == "auto":
        return "cuda" if cuda.is_available() else "cpu"
    return wanted
