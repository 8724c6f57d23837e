"""How much memory a training step will take on the CPU, predicted without running the step.

The arrays that the tape keeps are counted, after a forward pass of two images, in the closures of the tape. The rest
is computed from shapes: parameters, gradients, the optimiser's buffers, and the work space of the convolution that
needs the most. The prediction is for the start of backward, when every array is still kept.

Reading order: when `--dry-run` is asked for.
"""

from __future__ import annotations

import copy
import gc
import math
import types
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minires import kernels, nn
from minires.reference import Geometry, output_size
from minires.tensor import Node, Tensor, no_grad

LIBRARIES = 60_000_000  # bytes of Python, NumPy and minires themselves


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step; `total` is the peak of the process."""

    weights: int  # parameters, gradients and the optimiser's buffers
    activations: int  # what the tape keeps for backward
    workspace: int  # transformed weights, partial sums and scratch buffers of the kernels

    @property
    def total(self) -> int:
        """The sum, with Python and the libraries."""
        return LIBRARIES + self.weights + self.activations + self.workspace


def step_memory(model: nn.Module, image: tuple[int, int, int], batch_size: int, slots: int) -> StepMemory:
    """The memory of a training step on `batch_size` images (H, W, C) on the CPU, float32.

    slots   buffers of the optimiser, each as large as all parameters: 2 for Adam, 1 for SGD with momentum

    The model is not changed.
    """
    model = copy.deepcopy(model).train()
    layers: set[tuple] = set()

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            shape = (batch_size, *inputs[0].shape[1:])
            layers.add((shape, module.weight.shape, module.geometry))

    two_images = Tensor(np.zeros((2, *image), np.float32))
    with no_grad(), nn.observe(note):
        model(two_images)
    images = batch_size * int(np.prod(image))
    activations = kept_bytes(model(two_images), model) // 2 * batch_size + 4 * images
    parameters = sum(p.size for p in model.parameters())
    workspace_bytes = kernels.part("workspace_bytes")
    if workspace_bytes:
        workspace = workspace_bytes(layers)
    else:  # the optimiser makes three arrays as large as all parameters, after the activations are freed
        workspace = max(reference_workspace_bytes(layers), 3 * 4 * parameters - activations)
    return StepMemory(4 * parameters * (2 + slots), activations, workspace)


def reference_workspace_bytes(layers: Iterable[tuple[tuple, tuple, Geometry]]) -> int:
    """The temporary memory of reference.py, for the layer that needs the most: the columns of im2col, as many numbers
    for their gradient, twice the padded input, and four arrays of the output's size.

    layers  for each convolution: the input's shape, the weight's shape, and the geometry
    """
    most = 0
    for x_shape, weight_shape, geometry in layers:
        positions = x_shape[0] * math.prod(output_size(x_shape, *geometry))
        padded = x_shape[0] * math.prod(n + 2 * p for n, p in zip(x_shape[1:3], geometry.padding)) * x_shape[3]
        columns = positions * math.prod(weight_shape[:3]) if geometry.kernel != (1, 1) else 0
        most = max(most, 2 * columns + 2 * padded + 4 * positions * weight_shape[3])
    return 4 * most


def kept_bytes(output: Tensor, model: nn.Module) -> int:
    """Bytes of all arrays that the tape of `output` holds for backward, without the model's own arrays."""
    own = {id(_owner(tensor.data)) for tensor in model.parameters()}
    containers = (Node, Tensor, types.FunctionType, types.CellType, tuple, list, dict)
    seen: set[int] = set()
    pending, total = [output], 0
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, nn.Parameter):
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            owner = _owner(thing)
            if id(owner) not in own:
                own.add(id(owner))
                total += owner.nbytes
        elif isinstance(thing, types.FunctionType):
            pending += thing.__closure__ or ()  # not its module's globals
        elif isinstance(thing, containers) or hasattr(thing, "__dataclass_fields__"):
            pending += gc.get_referents(thing)
    return total


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory `array` is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
