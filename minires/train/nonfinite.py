"""Where a loss stopped being finite: the first layer whose output holds NaN or infinity.

Reading order: when a loss is NaN; loop.py asks here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minires.device import Array, module_of
from minires.nn import Module, observe
from minires.tensor import Tensor, no_grad


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or the weights are not finite. The text is one line saying where."""


def first_nonfinite_layer(model: Module, x: Array) -> str | None:
    """Where NaN or infinity first appears when the batch `x` goes through `model`, in words; None for nowhere.

    Runs the forward pass again, which moves the running statistics of batch norm.
    """

    def finite(array: Array) -> bool:
        array = array if array.dtype.kind == "f" else array.astype("float32")  # bfloat16
        return bool(module_of(array).isfinite(array).all())

    if not finite(x):
        return "the input images are not finite"
    names = {module: name for name, module in model.named_modules()}
    found = []

    def look(module: Module, inputs: tuple, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not finite(output.data):
            found.append(module)

    with no_grad(), observe(look):  # a layer is observed before the module around the layer
        model(Tensor(x))
    if not found:
        return None
    layer = found[0]
    why = "" if all(finite(p.data) for p in layer.parameters()) else ", whose weights are not finite either"
    name = names[layer] or "the model itself"
    return f"the first layer whose output is not finite is {name} ({type(layer).__name__}){why}"


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silences NumPy's warnings about overflow: they would precede the check that names the layer.

    np.errstate is not enough: it holds for one thread, and the CPU kernels have several.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
