"""A network layer by layer: output size, parameters, multiply-adds, memory.

Reading order: any time after models/.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np

from minires import nn
from minires.tensor import Tensor, no_grad


@dataclass(frozen=True)
class Row:
    """One layer: `output` without the batch axis, multiply-adds and bytes for one image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True, repr=False)
class Summary:
    """The table of a network: `print` it, or let a notebook show it. All figures but `parameters` are for one image.

    parameters        number of trained numbers
    macs              multiply-adds of the convolutions and linear layers in forward (FLOPs are twice that)
    activation_bytes  what training layer by layer keeps for backward: the output of every layer, in float32
                      (`train.memory.step_memory` counts what the fused branches keep)
    """

    rows: tuple[Row, ...]
    input_shape: tuple[int, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-adds of one image's forward pass."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Bytes that one image's forward pass leaves for backward."""
        return sum(row.activation_bytes for row in self.rows)

    @property
    def table(self) -> Table:
        """The layers as lines of text, with the sums."""
        head = ("layer", "kind", "output", "parameters", "MACs", "memory")
        rows = tuple(
            (
                row.name,
                row.kind,
                "x".join(map(str, row.output)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                format_bytes(row.activation_bytes),
            )
            for row in self.rows
        )
        return Table(head, rows, "lllrrr", self.total)

    @property
    def total(self) -> str:
        """The sums in one line."""
        return (
            f"input {'x'.join(map(str, self.input_shape))}: {self.parameters:,} parameters, "
            f"{self.macs / 1e9:.3f} GMACs and {format_bytes(self.activation_bytes)} of activations an image"
        )

    def __str__(self) -> str:
        return str(self.table)

    def __repr__(self) -> str:
        return f"Summary({len(self.rows)} layers, {self.total}; print it for the layers)"

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


@dataclass(frozen=True, repr=False)
class Table:
    """A table of texts: `str()` sets the columns with spaces, a notebook shows it as HTML.

    align  for each column "l" or "r", left or right
    total  a line below the table
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    total: str

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows)]
        sides = [{"l": str.ljust, "r": str.rjust}[letter] for letter in self.align]
        lines = [
            "  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths)).rstrip()
            for line in (self.head, *self.rows)
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, self.total])

    def __repr__(self) -> str:
        return f"Table({len(self.rows)} lines, {self.total}; print it)"

    def _repr_html_(self) -> str:
        def line(tag: str, cells: tuple[str, ...]) -> str:
            style = {"l": "left", "r": "right"}
            inside = "".join(
                f"<{tag} style='text-align:{style[letter]}'>{html.escape(cell)}</{tag}>"
                for letter, cell in zip(self.align, cells)
            )
            return f"<tr>{inside}</tr>"

        body = "".join(line("td", row) for row in self.rows)
        return f"<table>{line('th', self.head)}{body}</table><p>{html.escape(self.total)}</p>"


def summary(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> Summary:
    """Run one image of zeros, (H, W, C) = input_shape, through `model` and note the output of each layer.

    input_shape  of any number of axes, such as (20,) for 20 features; default: the model's own `input_shape`, or else
                 what its first layer suggests: (in_features,) or (224, 224, in_channels)

    The model is not changed. Raises what the model raises for an unsuitable input.
    """
    if input_shape is None:
        first = next((m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))), None)
        guess = (first.in_features,) if isinstance(first, nn.Linear) else (224, 224, getattr(first, "in_channels", 3))
        input_shape = getattr(model, "input_shape", guess)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"summary: input_shape is {input_shape}, expected such as (height, width, channels)")
    names = {module: name for name, module in model.named_modules()}
    rows = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if not isinstance(output, Tensor) or list(module.named_children()) or isinstance(module, nn.Identity):
            return  # containers are shown through their layers
        macs = 0
        if isinstance(module, nn.Conv2d):
            kh, kw, channels, _ = module.weight.shape
            macs = output.size * kh * kw * channels  # kh*kw*C/groups multiply-adds for each output
        elif isinstance(module, nn.Linear):
            macs = output.size * module.weight.shape[0]
        parameters = sum(p.size for p in module.parameters())
        rows.append(Row(names[module], type(module).__name__, output.shape[1:], parameters, macs, 4 * output.size))

    device = next((p.device for p in model.parameters()), "cpu")
    with no_grad(), model.evaluating(), nn.observe(note):
        model(Tensor(np.zeros((1, *input_shape), np.float32)).to(device))
    return Summary(tuple(rows), tuple(input_shape), sum(p.size for p in model.parameters()))


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
