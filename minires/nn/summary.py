"""A network layer by layer: output size, parameters, multiply-adds, memory.

Reading order: any time after models/.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Summary:
    """The table of a network; `str()` prints it. All figures but `parameters` are for one image.

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

    def __str__(self) -> str:
        head = ("layer", "kind", "output", "parameters", "MACs", "memory")
        table = [
            (
                row.name,
                row.kind,
                "x".join(map(str, row.output)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                format_bytes(row.activation_bytes),
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *table]) for i in range(len(head))]
        align = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
        lines = [
            "  ".join(side(cell, width) for side, cell, width in zip(align, line, widths)).rstrip()
            for line in [head, *table]
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        total = (
            f"input {'x'.join(map(str, self.input_shape))}: {self.parameters:,} parameters, "
            f"{self.macs / 1e9:.3f} GMACs and {format_bytes(self.activation_bytes)} of activations an image"
        )
        return "\n".join([*lines, lines[1], total])


def summary(model: nn.Module, input_shape: tuple[int, int, int] = (224, 224, 3)) -> Summary:
    """Run one image of zeros, (H, W, C) = input_shape, through `model` and note the output of each layer.

    The model is not changed. Raises what the model raises for an unsuitable input.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"summary: input_shape is {input_shape}, expected (height, width, channels)")
    names = {module: name for name, module in model.named_modules()}
    rows = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if not isinstance(output, Tensor) or list(module.named_children()) or isinstance(module, nn.Identity):
            return  # containers are shown through their layers
        weight = getattr(module, "weight", None)
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = output.size * weight.size // weight.shape[3]  # kh*kw*C/groups multiply-adds for each output
        elif isinstance(module, nn.Linear):
            macs = output.size * weight.shape[0]
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
