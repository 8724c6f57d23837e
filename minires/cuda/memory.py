"""How much of a GPU's memory a training step will take, and the error message when memory runs out.

Reading order: after step.py. Next: check.py.
"""

from __future__ import annotations

from minires.cuda import blas, convolution, precision
from minires.nn import Conv2d, Module
from minires.nn.summary import Summary, format_bytes, summary


def step_bytes(model: Module, image: tuple[int, int, int], batch: int, slots: int, table: Summary | None = None) -> int:
    """An estimate of the memory that a training step with the CUDA kernels takes, for images of shape (H, W, C).

    The sum of: weights, gradients and `slots` buffers of the optimiser; the outputs of all layers, which backward
    needs; three times the largest output (a gradient, the next gradient, the shortcut's); the largest im2col columns;
    the workspace of cuBLAS. A test compares the estimate with the measured peak of simulated steps: the estimate is at
    most 10 % below the peak, and at most 30 % above (tests/cuda/test_memory.py).
    """
    table = table or summary(model, image)
    share = 0.5 if precision.current == "bf16" else 1.0  # of float32
    largest = max(row.activation_bytes for row in table.rows)
    fixed = 4 * table.parameters * (2 + slots) + blas.WORKSPACE_BYTES
    return int(
        fixed + batch * share * (table.activation_bytes + 3 * largest) + _column_bytes(model, table, batch, share)
    )


def _column_bytes(model: Module, table: Summary, batch: int, share: float) -> float:
    """The bytes of the im2col columns in the layer that needs the most."""
    modules, most = dict(model.named_modules()), 0.0
    for row in table.rows:
        module = modules[row.name]
        if isinstance(module, Conv2d):
            geometry = module.geometry
            if convolution.plan(geometry, module.in_channels, module.out_channels, module.groups) == "columns":
                positions = row.activation_bytes / 4 / module.out_channels
                kernel = geometry.kernel[0] * geometry.kernel[1] * module.in_channels
                most = max(most, min(4 * share * batch * positions * kernel, convolution.COLUMN_BYTES))
    return most


def largest_batch(
    model: Module, image: tuple[int, int, int], slots: int, available: int, table: Summary | None = None
) -> int:
    """The largest batch with an estimate within `available` bytes; 0 if none fits."""
    low, high = 0, 1 << 20
    table = table or summary(model, image)
    while low < high:  # the largest that fits is in low..high
        middle = (low + high + 1) // 2
        fits = step_bytes(model, image, middle, slots, table) <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def explain(model: Module, shape: tuple[int, int, int, int], slots: int) -> str:
    """One line for a step on images (N, H, W, C) that has run out of memory."""
    import cupy

    _, total = cupy.cuda.runtime.memGetInfo()
    batch, image = shape[0], shape[1:]
    failed = f"the GPU is out of memory: a step of {batch} images of {image[0]}x{image[1]}"
    try:
        table = summary(model, image)  # runs one image
    except MemoryError:
        return f"{failed} does not fit beside what is there already, the GPU has {format_bytes(total)}"
    needed = step_bytes(model, image, batch, slots, table)
    available = int(0.9 * total)  # the rest: the driver, fragments, other programs
    fits = largest_batch(model, image, slots, available, table)
    advice = f"the largest batch that fits is about {fits}" if fits else "not even one image fits"
    return f"{failed} needs about {format_bytes(needed)} (predicted), the GPU has {format_bytes(total)}; {advice}"
