"""The least cost of a training step: its operations and bytes, and their time on a GPU that wastes none.

    python examples/measure/roofline.py            # the tables of docs/fast-cuda.md

The floor of a product, or of a pass over memory, is the longer of two times: the multiply-adds at the GPU's peak rate,
or the bytes at the GPU's bandwidth (Williams, Waterman and Patterson 2009, Roofline). The floor of a step is the sum
over all products and passes, since each is a launch of its own. Caches larger than an array, launch costs and idle
multiprocessors are left out. The pooling, the classifier and the shortcut of option A, below 1 %, are left out too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from minires import cuda, models, nn
from minires.models.pretrained import Zeros
from minires.nn.summary import Summary, format_bytes, summary
from minires.reference import output_size
from minires.tensor import Tensor, no_grad


@dataclass(frozen=True)
class Gpu:
    """Bytes and floating-point operations a second, from the data sheet (dense, without sparsity)."""

    name: str
    bandwidth: float
    peak: dict[str, float]


H100 = Gpu("H100 SXM", 3.35e12, {"fp32": 67e12, "tf32": 494e12, "bf16": 989e12})
H200 = Gpu("H200", 4.8e12, {"fp32": 67e12, "tf32": 494e12, "bf16": 989e12})


def gpu_named(name: str) -> Gpu:
    """The data sheet of the GPU that calls itself so: an H100's, or else an H200's."""
    return H100 if "H100" in name else H200


@dataclass(frozen=True)
class Layer:
    """A convolution of one image and what follows it: K = kh*kw*C inputs of each of the M = Ho*Wo positions, O
    outputs."""

    name: str
    kernel: tuple[int, int]
    channels: int
    outputs: int
    stride: tuple[int, int]
    size: tuple[int, int]  # (H, W)
    out: tuple[int, int]  # (Ho, Wo)

    @property
    def k(self) -> int:
        """kh * kw * C."""
        return self.kernel[0] * self.kernel[1] * self.channels

    @property
    def is_product(self) -> bool:
        """A 1x1 convolution of stride 1: a matrix product on the images as they are."""
        return self.kernel == self.stride == (1, 1)


@functools.lru_cache(maxsize=1)  # of the network in hand, for several precisions
def layers(model: nn.Module, image: int) -> list[Layer]:
    """The convolutions of `model` for an image (image, image, 3), in the order in which they run."""
    names = {module: name for name, module in model.named_modules()}
    found = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            geometry, shape = module.geometry, inputs[0].shape
            out = output_size(shape, *geometry)
            arguments = (geometry.kernel, module.in_channels, module.out_channels, geometry.stride, shape[1:3], out)
            found.append(Layer(names[module], *arguments))

    with no_grad(), nn.observe(note):
        model.eval()(Tensor(np.zeros((1, image, image, 3), np.float32)))
    return found


@dataclass(frozen=True)
class Cost:
    """What a step needs: floating-point operations, and bytes by what moves them; and its floor in seconds."""

    operations: float
    product_bytes: float
    column_bytes: float
    batch_norm_bytes: float
    optimizer_bytes: float
    seconds: float


def step_cost(
    model: nn.Module, image: int, batch: int, precision: str, gpu: Gpu, columns: bool, optimizer_passes: int = 5
) -> Cost:
    """The cost of a training step on `batch` images.

    columns           whether convolutions other than 1x1 go through im2col and col2im, or without columns
    optimizer_passes  over the parameters: 5 for SGD with momentum, 7 for Adam
    """
    size = 2 if precision == "bf16" else 4  # bytes of an activation
    operations = products = column_bytes = norms = seconds = 0.0
    parameters = sum(p.size for p in model.parameters())
    chain = layers(model, image)
    names = {layer.name for layer in chain}
    for i, layer in enumerate(chain):
        m = batch * layer.out[0] * layer.out[1]
        x = batch * layer.size[0] * layer.size[1] * layer.channels * size
        y, weight = m * layer.outputs * size, layer.k * layer.outputs * size
        in_columns = columns and not layer.is_product
        a = m * layer.k * size if in_columns else x  # what the product reads
        for name in ("forward", "input gradient", "weight gradient"):
            if i == 0 and name == "input gradient":
                continue  # nobody wants the gradient of the images
            work, moved = 2.0 * m * layer.k * layer.outputs, a + y + weight
            operations += work
            products += moved
            seconds += max(work / gpu.peak[precision], moved / gpu.bandwidth)
            if in_columns:
                column_bytes += a + x
        norms += _batch_norm_passes(layer, names) * y
    moved = column_bytes + norms + optimizer_passes * 4 * parameters
    return Cost(
        operations, products, column_bytes, norms, optimizer_passes * 4 * parameters, seconds + moved / gpu.bandwidth
    )


def _batch_norm_passes(layer: Layer, names: set[str]) -> int:
    """Passes over the output. Forward reads it twice and writes once, backward reads dy and x twice and writes dx. The
    last of a block also reads the shortcut; its backward reads y once and writes the shortcut's gradient down."""
    block, _, conv = layer.name.rpartition(".")
    ends_block = conv == "conv3" or (conv == "conv2" and f"{block}.conv3" not in names)
    return 4 + 7 if ends_block else 3 + 5


CASES = [(101, 512), (101, 128), (50, 512), (18, 512), (110, 128), (20, 128)]


def markdown(gpu: Gpu = H200) -> str:
    """The table of docs/fast-cuda.md."""
    head = ["network, batch", "TFLOP", "products", "columns", "batch norm", "optimiser"]
    head += ["fp32", "tf32", "tf32, no columns", "bf16, no columns"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for depth, batch in CASES:
        model = models.build(depth, 10, "cifar", generator=Zeros())  # only shapes count
        with_columns = {p: step_cost(model, 32, batch, p, gpu, columns=True) for p in ("fp32", "tf32")}
        without = {p: step_cost(model, 32, batch, p, gpu, columns=False) for p in ("tf32", "bf16")}
        c = with_columns["fp32"]
        gigabytes = [c.product_bytes, c.column_bytes, c.batch_norm_bytes, c.optimizer_bytes]
        times = [with_columns["fp32"], with_columns["tf32"], without["tf32"], without["bf16"]]
        lines.append(
            f"| ResNet-{depth}, {batch} | {c.operations / 1e12:.2f} | "
            + " | ".join(f"{value / 1e9:.1f} GB" for value in gigabytes)
            + " | "
            + " | ".join(f"{1e3 * cost.seconds:.1f} ms" for cost in times)
            + " |"
        )
    return "\n".join(lines)


OVER_FLOOR = 2  # estimates made from the machine code, for ResNet-101 on an H100, are 1.75 to 2.3 times its floors
RUNS = (18, 101, 110)  # the networks
TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-10
START_SECONDS = 20  # to read the images and to compile the kernels
WRITTEN = 0.3e9  # bytes of a checkpoint that are written in a second


def _memory(model: nn.Module, table: Summary, precision: str, batch: int, slots: int) -> int:
    """The predicted bytes of a step, in a precision that this machine need not have."""
    before = cuda.precision.current
    cuda.precision.current = precision
    try:
        return cuda.step_bytes(model, (32, 32, 3), batch, slots, table)
    finally:
        cuda.precision.current = before


def runs(gpu: Gpu = H100, batch: int = 512, epochs: int = 30) -> str:
    """The second table: trainings on CIFAR-10 by the recipes of examples/train_cifar.py. All times are estimates."""
    from examples.train_cifar import recipe

    head = ["network", "precision", "recipe", "memory", "floor of a step", "a step", "an epoch", f"{epochs} epochs"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for depth in RUNS:
        settings, model = recipe(depth, batch), models.build(depth, 10, "cifar", generator=Zeros())
        table, slots = summary(model, (32, 32, 3)), 1 if settings["optimizer"] == "sgd" else 2
        checkpoint = 4 * table.parameters * (2 + slots) / WRITTEN
        what = f"{settings['optimizer']} {settings['lr']:g}, decay {settings['weight_decay']:g}"
        for precision in ("tf32", "bf16"):
            floor = step_cost(model, 32, batch, precision, gpu, columns=False, optimizer_passes=3 + 2 * slots).seconds
            step = OVER_FLOOR * floor
            evaluation = TEST_IMAGES / batch * step / 3  # a forward pass
            epoch = TRAINING_IMAGES // batch * step + evaluation + checkpoint
            memory = _memory(model, table, precision, batch, slots)
            lines.append(
                f"| ResNet-{depth} | {precision} | {what} | {format_bytes(memory)} | {1e3 * floor:.1f} ms | "
                f"{1e3 * step:.0f} ms | {epoch:.1f} s | {(START_SECONDS + epochs * epoch) / 60:.1f} min |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), runs(), sep="\n\n")
