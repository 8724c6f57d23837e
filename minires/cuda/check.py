"""`minires check`: every kernel, and training steps, compared with the reference on this GPU.

Nobody can try all GPUs, drivers and versions of CuPy. A wrong kernel does not crash: the network trains badly. The
check runs each function of the backend on random arrays, and training steps of ResNet-20, in each precision of the GPU.
The check compares the results with those of reference.py on the CPU. All of this takes about a minute (estimate), half
of it for compiling the kernels.

`examples/measure/gpu_check.py`, for developers, has the same cases, and takes times too.

Reading order: last in cuda.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import minires.functional as F
from minires import kernels, models, optim, reference
from minires.cuda import blas, convolution, elementwise, precision
from minires.cuda.batch_norm import normalise_add_relu, normalise_add_relu_backward
from minires.cuda.optimizers import prepare_lr, sgd_update, stop_unless_finite
from minires.cuda.step import DeviceStep
from minires.device import Array, module_of, to_device
from minires.reference import Geometry, Running
from minires.tensor import Tensor, no_grad

TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}  # of results, in L2 norm; a product in tf32 may be truncated
SUMS = 1e-4  # of what is kept in float32 beside bfloat16: the terms of these sums were exact
FAR = 10  # a pixel that was not written hardly shows in a norm
# What CUDA's errors say when the context is lost, without the underscores of the driver's.
LOST = ("illegaladdress", "misalignedaddress", "illegalinstruction", "launchfail", "launchtimeout", "hardwarestack",
        "invalidpc", "invalidaddressspace", "eccuncorrectable")  # fmt: skip


# Results and expected results ---------------------------------------------------------------------------------------


def differences(got: Any, expected: Any, names: str, tolerance: float) -> list[dict[str, Any]]:
    """The distance of each output, one or several called `names`, from the expected output.

    error      L2 norm of the difference, relative to the norm of the expected output
    nans       number of unexpected NaNs
    bad, of    number of elements that differ by more than the tolerance of their value and of the mean square; of all
    first_bad  the index of the first of them, with the result and the expected value; None if there is none
    wrong      whether error is above the tolerance, an element FAR times above its own, or a NaN unexpected

    The `tolerance` for bfloat16 is SUMS for outputs in float32.
    """
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    rows: list[dict[str, Any]] = []
    for name, a, b in zip(names.split(), got, expected, strict=True):
        if b is None:
            continue
        allowed = SUMS if tolerance == TOLERANCE["bf16"] and a.dtype == np.float32 else tolerance
        a, b = to_device(a, "cpu").astype(np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            rows.append({"name": name, "wrong": True, "error": None, "shape": a.shape, "expected_shape": b.shape})
            continue
        size = max(float(np.linalg.norm(b)), 1e-30)
        error = float(np.linalg.norm(a - b)) / size
        nans = int((np.isnan(a) & ~np.isnan(b)).sum())
        apart = abs(a - b) / (abs(b) + size / max(b.size, 1) ** 0.5)
        apart = np.where(np.isnan(a) & np.isnan(b), 0, apart)
        bad = ~(apart <= allowed)
        row = {"name": name, "error": error, "nans": nans, "bad": int(bad.sum()), "of": int(b.size)}
        wrong = nans > 0 or not error <= allowed or bool((apart > FAR * allowed).any())
        row |= {"wrong": wrong, "first_bad": None}
        if wrong and bad.any():
            index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), b.shape))
            row |= {"first_bad": index, "got": float(a[index]), "expected": float(b[index])}
        rows.append(row)
    return rows


def described(rows: list[dict[str, Any]]) -> str:
    """One line on `differences`: the largest error; of what is wrong, how and where."""
    wrong = [row for row in rows if row["wrong"]]
    if not wrong:
        return f"error {max(row['error'] for row in rows):.0e}"
    texts = []
    for row in wrong:
        if row["error"] is None:
            texts.append(f"{row['name']} has shape {row['shape']}, expected {row['expected_shape']}")
            continue
        text = f"{row['name']}: error {row['error']:.0e}, {row['bad']} of {row['of']} bad, {row['nans']} NaN"
        if row["first_bad"] is not None:
            text += f", first at {row['first_bad']}: got {row['got']:.6g}, expected {row['expected']:.6g}"
        texts.append(text)
    return "; ".join(texts)


@contextmanager
def computing(choice: str, algorithm: str = "auto") -> Iterator[None]:
    """Inside, the kernels compute in this precision, and convolutions by `algorithm`."""
    before = precision.current, convolution.algorithm
    precision.use(choice)
    convolution.algorithm = algorithm
    try:
        yield
    finally:
        precision.current, convolution.algorithm = before


# Cases --------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A function, and what it is called with.

    outputs      names of the results, separated by spaces; of a function that returns None, its first arguments
    arguments    with NumPy arrays
    activations  which of the arguments are activations, and so bfloat16 where activations are
    function     by the CUDA kernels
    definition   the same, by functions of reference.py
    """

    name: str
    outputs: str
    arguments: tuple[Any, ...]
    activations: tuple[int, ...]
    function: Callable[..., Any]
    definition: Callable[..., Any]

    def compare(self, dtype: str = "float32", tolerance: float = TOLERANCE["fp32"]) -> list[dict[str, Any]]:
        """`differences` of the results from the definition's, with activations of this dtype."""
        device, host = self.on_device(dtype)
        got, expected = self.function(*device), self.definition(*host)
        if got is None:  # an update: what it has changed
            count = len(self.outputs.split())
            got, expected = tuple(a.copy() for a in device[:count]), tuple(host[:count])
        return differences(got, expected, self.outputs, tolerance)

    def on_device(self, dtype: str) -> tuple[list[Any], list[Any]]:
        """The arguments on the GPU, and copies of the same numbers on the host."""
        import cupy

        device, host = [], []
        for i, value in enumerate(self.arguments):
            if isinstance(value, (np.ndarray, np.generic)):
                stored = cupy.asarray(value)
                if i in self.activations and dtype != "float32":
                    stored = stored.astype(dtype)
                device.append(stored)
                host.append(stored.get().astype(value.dtype))
            else:
                device.append(value)
                host.append(value)
        return device, host


def kernel_cases(n: int, h: int, c: int, parameters: int) -> list[Case]:
    """Each function of the backend that multiplies no matrices, and the two of batch_norm.py for fused branches: on n
    images of h x (h + 1) with c channels, and on so many parameters."""
    backend, rng = sys.modules["minires.cuda"], np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    x, shortcut, dy = (normal(n, h, h + 1, c) for _ in range(3))
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    weight, bias = rng.uniform(0.5, 1.5, c).astype(np.float32), normal(c)
    norm = (mean, var, weight, bias, 1e-5)
    x[abs(reference.batch_norm_apply(x, *norm)) < 1e-2] += 0.1  # no sign shall hang on a rounding
    y = reference.relu(reference.batch_norm_apply(x, *norm))
    z = _add_relu(x, shortcut, *norm)
    logits, labels = normal(n, 10), rng.integers(0, 10, n)
    probabilities = reference.cross_entropy(logits, labels, 0.1)[1]
    flat = [normal(parameters) for _ in range(3)]
    images = rng.integers(0, 256, (n, h, h + 1, 3), dtype=np.uint8)
    offsets = [rng.integers(0, 9, n), rng.integers(0, 9, n), rng.integers(0, 2, n).astype(bool)]
    choices = np.stack([rng.permutation(n), *offsets], axis=1).astype(np.int32)
    window = ((3, 3), (2, 2), (1, 1))
    pooled, features, vector = reference.max_pool2d(x, *window), normal(n, c), np.array([0.5, 0.4, 0.3], np.float32)
    losses = np.array([2, np.nan, np.inf], np.float32)
    adam = (*flat, abs(flat[0]), 3, 1e-3, 0.9, 0.999, 1e-8, 0.01)
    gradients = "dx dweight dbias"
    own = [
        Case("batch_norm_statistics", "mean var running_mean running_var batches", (x, bias, weight, np.array(7)), (0,),
             partial(_statistics, backend), partial(_statistics, reference)),
        Case("normalise_add_relu", "z", (x, None, *norm), (0,), _add_relu_by_cuda, _add_relu),
        Case("normalise_add_relu + shortcut", "z", (x, shortcut, *norm), (0, 1), _add_relu_by_cuda, _add_relu),
        Case("normalise_add_relu_backward", gradients, (dy, x, None, mean, var, weight, bias), (0, 1),
             _add_relu_backward_by_cuda, _add_relu_backward),
        Case("normalise_add_relu_backward + shortcut", f"{gradients} dshortcut", (dy, x, z, mean, var, weight, None),
             (0, 1, 2), _add_relu_backward_by_cuda, _add_relu_backward),
        Case("accumulate", "sum", (x, dy), (0, 1), _sum_by_cuda, np.add),
        Case("to float32", "x", (x,), (0,), partial(elementwise.convert, dtype="float32"), np.array),
        Case("sgd_update after a loss that is not finite", "parameters", (flat[0][:100], losses), (),
             _stopped_by_cuda, _stopped),
    ]  # fmt: skip
    contract: list[tuple[str, str, tuple, tuple]] = [
        ("batch_norm_apply", "y", (x, *norm), (0,)),
        ("batch_norm_backward", gradients, (dy, x, mean, var, weight, 1e-5, True), (0, 1)),
        ("batch_norm_backward in evaluation", gradients, (dy, x, mean, var, weight, 1e-5, False), (0, 1)),
        ("column_sum", "sum", (x,), (0,)),
        ("relu", "y", (x,), (0,)),
        ("relu_backward", "dx", (dy, y), (0, 1)),
        ("max_pool2d", "y", (x, *window), (0,)),
        ("max_pool2d_backward", "dx", (pooled, x, pooled, *window), (0, 1, 2)),
        ("avg_pool2d", "y", (x, *window), (0,)),
        ("avg_pool2d_backward", "dx", (pooled, x.shape, *window), (0,)),
        ("global_avg_pool2d", "y", (x,), (0,)),
        ("global_avg_pool2d_backward", "dx", (features, x), (1,)),
        ("cross_entropy", "loss probabilities", (logits, labels, 0.1), ()),
        ("cross_entropy_backward", "dlogits", (np.float32(2), probabilities, labels, 0.1), ()),
        ("sgd_update", "parameter gradient velocity", (*flat, 0.1, 0.9, 5e-4, True), ()),
        ("adam_update", "parameter gradient mean square", (*adam, False), ()),
        ("adam_update decoupled", "parameter gradient mean square", (*adam, True), ()),
        ("crop_and_flip", "images", (images, *offsets, 4), ()),
        ("make_batch", "x y", (images, labels, choices, 0, n, 4, vector, vector), ()),
        ("normalize", "images", (images, vector, vector), ()),
    ]
    functions = [[getattr(module, name.split()[0]) for module in (backend, reference)] for name, *_ in contract]
    return [*own, *(Case(*case, ours, definition) for case, (ours, definition) in zip(contract, functions))]


def _statistics(module: ModuleType, x: Array, mean: Array, var: Array, batches: Array) -> tuple[Array, ...]:
    """The statistics of x, and the running ones that they have moved."""
    return *module.batch_norm_statistics(x, Running(mean, var, batches, 0.1)), mean, var, batches


def _stopped_by_cuda(parameter: Array, losses: Array) -> Array:
    """(losses, parameters) after two steps against the gradient 1, of which the first had the loss."""
    xp, shape = module_of(parameter), parameter.shape
    rows = xp.empty((len(losses), *shape), dtype="float32")
    for i in range(len(losses)):
        rows[i] = parameter
        schedule, velocity, stopped = None, xp.zeros(shape, dtype="float32"), xp.zeros(1, dtype="float32")
        for loss in (losses[i : i + 1], losses[:1]):
            schedule = prepare_lr(schedule, parameter, 0.5, 1, (0.0, 0.0))
            stop_unless_finite(loss, stopped, schedule)
            sgd_update(rows[i], xp.ones(shape, dtype="float32"), velocity, schedule, 0.0, 0.0, False)
    return rows


def _stopped(parameter: Array, losses: Array) -> Array:
    return parameter - np.isfinite(losses)[:, None].astype(np.float32)


def _sum_by_cuda(a: Array, b: Array) -> Array:
    total = a.copy()
    elementwise.accumulate(total, b)
    return total


def _add_relu_by_cuda(
    x: Array, shortcut: Array | None, mean: Array, var: Array, weight: Array, bias: Array, eps: float
) -> Array:
    return normalise_add_relu(x, mean, var, weight, bias, eps, shortcut, relu=True)


def _add_relu(
    x: Array, shortcut: Array | None, mean: Array, var: Array, weight: Array, bias: Array, eps: float
) -> Array:
    z = reference.batch_norm_apply(x, mean, var, weight, bias, eps)
    return reference.relu(z if shortcut is None else z + shortcut)


def _add_relu_backward_by_cuda(
    dz: Array, x: Array, z: Array | None, mean: Array, var: Array, weight: Array, bias: Array | None
) -> tuple:
    """The gradients behind batch norm and ReLU: by the bias without a shortcut, by z with one."""
    found = normalise_add_relu_backward(
        dz, x, mean, var, weight, 1e-5, True, z=z, bias=bias, need_dshortcut=z is not None
    )
    return found[:3] if z is None else found


def _add_relu_backward(
    dz: Array, x: Array, z: Array | None, mean: Array, var: Array, weight: Array, bias: Array | None
) -> tuple:
    output = reference.batch_norm_apply(x, mean, var, weight, bias, 1e-5) if z is None else z
    g = reference.relu_backward(dz, output)
    found = reference.batch_norm_backward(g, x, mean, var, weight, 1e-5, True)
    return found if z is None else (*found, g)


def product_cases(n: int, h: int, c: int) -> list[tuple[Case, str]]:
    """The linear layer, and convolutions of every kind, forward and backward; each with the way to convolve."""
    backend, rng = sys.modules["minires.cuda"], np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def convolution_case(
        name: str, kernel: int, stride: int, ins: int, outs: int, groups: int = 1, dilation: int = 1
    ) -> Case:
        padding = dilation * (kernel // 2)
        geometry = Geometry((kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation))
        x, weight = normal(n, h, h + 1, ins), normal(kernel, kernel, ins // groups, outs) / kernel / ins**0.5
        dy = normal(n, *reference.output_size(x.shape, *geometry), outs)
        ours, definition = (partial(_convolve, module, geometry, groups) for module in (backend, reference))
        return Case(name, "y dx dweight", (x, dy, weight, normal(outs)), (0, 1), ours, definition)

    features, weight, bias, dy = normal(n, c), normal(c, 10), normal(10), normal(n, 10)
    ours, definition = (partial(_linear, module) for module in (backend, reference))
    cases = [(Case("linear", "y dx dweight dbias", (features, weight, bias, dy), (), ours, definition), "auto")]
    for name, *shape in (
        ("1x1", 1, 1, c, 2 * c),
        ("1x1, stride 2", 1, 2, c, 2 * c),
        ("3x3", 3, 1, c, c),
        ("3x3, stride 2", 3, 2, c, 2 * c),
        ("7x7, stride 2, of 3 channels", 7, 2, 3, c),
        ("3x3, 2 groups", 3, 1, c, c, 2),
        ("3x3, dilation 2", 3, 1, c, c, 1, 2),
    ):
        cases.append((convolution_case(f"convolution {name}", *shape), "columns"))
    for outs in (16, 40, 64, 136):  # with as many positions as fill a GPU: tiles of 16, 32, 64 and 128, some in part
        cases.append((convolution_case(f"convolution 3x3 without columns, {outs} outputs", 3, 1, 16, outs), "implicit"))
    for name, *shape in (("stride 2", 3, 2, c, 2 * c), ("dilation 2", 3, 1, c, c, 1, 2)):
        cases.append((convolution_case(f"convolution 3x3, {name}, without columns", *shape), "implicit"))
    for outs in (16, 40, 64, 136):
        cases.append((convolution_case(f"convolution 3x3 by cp.async, {outs} outputs", 3, 1, 16, outs), "async"))
    return cases


def _linear(module: ModuleType, x: Array, weight: Array, bias: Array, dy: Array) -> tuple[Array, ...]:
    return module.linear(x, weight, bias), *module.linear_backward(dy, x, weight, True, True)


def _convolve(
    module: ModuleType, geometry: Geometry, groups: int, x: Array, dy: Array, weight: Array, bias: Array
) -> tuple:
    options = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation, "groups": groups}
    y = module.conv2d(x, weight, bias, **options)
    return y, *module.conv2d_backward(dy, x, weight, **options, need_dx=True, need_dweight=True)


# Training steps -----------------------------------------------------------------------------------------------------

LR = 0.05
# The most by which the loss and the weights' update may be apart: a ReLU may take the other side.
APART = {"fp32": (1e-5, 1e-2), "tf32": (5e-3, 0.2), "bf16": (5e-2, 0.5)}


def steps_are_right(choice: str, batch: int, size: int) -> tuple[bool, str]:
    """Whether a step of ResNet-20 has the loss and moves the weights as the reference does on the CPU, and whether
    four steps recorded and replayed as a CUDA graph are four steps; in words too."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((batch, size, size, 3), dtype=np.float32), rng.integers(0, 10, batch)
    kernels.use("reference")
    try:
        model, optimizer = _resnet20("cpu")
        before = optimizer.flat.copy()
        loss = F.cross_entropy(model(Tensor(x)), labels)
        loss.backward()
        optimizer.step()
    finally:
        kernels.use("auto")
    moved, expected = optimizer.flat - before, loss.item()

    with computing(choice):
        (first,), after = _device_steps(x, labels, 1, graph=False)
        eager, graph = (_device_steps(x, labels, 4, graph=graph) for graph in (False, True))
    apart = abs(first - expected) / expected, float(np.linalg.norm(after - before - moved) / np.linalg.norm(moved))
    same = np.array_equal(eager[0], graph[0], equal_nan=True) and np.array_equal(eager[1], graph[1], equal_nan=True)
    limits = APART[choice]
    right = [a <= most for a, most in zip(apart, limits)]  # NaN is not
    texts = [
        f"{what} {a:.0e} apart{'' if ok else ' (WRONG)'}, at most {most:.0e}"
        for what, a, most, ok in zip((f"loss {first:.4f},", "the weights' update"), apart, limits, right)
    ]
    texts.append(
        "as a CUDA graph " + ("the same" if same else f"DIFFERENT: {graph[0]}, launched one by one {eager[0]}")
    )
    return all(right) and same, "; ".join(texts)


def evaluation_is_right(choice: str, batch: int, size: int) -> tuple[bool, str]:
    """Whether ResNet-20 gives the logits of the reference in evaluation; in words too."""
    x = np.random.default_rng(1).standard_normal((batch, size, size, 3), dtype=np.float32)
    kernels.use("reference")
    try:
        with no_grad():
            expected = _resnet20("cpu")[0].eval()(Tensor(x)).data
    finally:
        kernels.use("auto")
    with computing(choice), no_grad():
        got = _resnet20("cuda")[0].eval()(Tensor(to_device(x, "cuda"))).data
    rows = differences(got, expected, "logits", 10 * TOLERANCE[choice])  # through twenty layers
    return not rows[0]["wrong"], described(rows)


def _resnet20(device: str) -> tuple[Any, optim.SGD]:
    model = models.build(20, generator=np.random.default_rng(0)).to(device)
    return model, optim.SGD(model.parameters(), LR, 0.9)


def _device_steps(x: np.ndarray, labels: np.ndarray, count: int, graph: bool) -> tuple[list[float], np.ndarray]:
    """The losses of some steps on one batch, and the weights after them."""
    model, optimizer = _resnet20("cuda")
    step = DeviceStep(model, optimizer, F.cross_entropy, graph=graph)
    device_x, device_labels = to_device(x, "cuda"), to_device(labels, "cuda")
    with step.active():
        for _ in range(count):
            step(device_x, device_labels, LR)
        losses = [loss for loss, _ in step.read()]
    return losses, to_device(optimizer.flat, "cpu")


# The check ----------------------------------------------------------------------------------------------------------

SIZES = {"kernels": [(32, 16, 64, 1_000_000), (3, 7, 6, 1001)], "products": (83, 15, 32), "steps": (8, 32)}
TINY = {"kernels": [(2, 6, 8, 1000), (1, 5, 3, 101)], "products": (1, 5, 16), "steps": (2, 8)}  # for a simulated GPU


def tasks(sizes: dict[str, Any]) -> Iterator[tuple[str, Callable[[], tuple[bool, str]]]]:
    """(name, function) of each part of the check; the function says whether it is right, and how far off."""
    known = [choice for choice in precision.CHOICES if not precision.why_not(choice)]
    for same in zip(*(kernel_cases(*shape) for shape in sizes["kernels"])):  # one case, of every shape
        for choice in known:
            if choice == "fp32" or (choice == "bf16" and same[0].activations):  # tf32 is a matter of products
                yield f"{same[0].name}, {choice}", partial(_compared, same, choice)
    for case, algorithm in product_cases(*sizes["products"]):
        for choice in known:
            if choice == "bf16" and not case.activations:
                continue  # as in tf32
            if choice != "tf32" and algorithm == "async":
                continue  # as in "implicit"
            yield f"{case.name}, {choice}", partial(_compared, [case], choice, algorithm)
    for choice in known:
        yield f"training steps of ResNet-20, {choice}", partial(steps_are_right, choice, *sizes["steps"])
        yield f"evaluation of ResNet-20, {choice}", partial(evaluation_is_right, choice, *sizes["steps"])


def _compared(cases: Sequence[Case], choice: str, algorithm: str = "auto") -> tuple[bool, str]:
    with computing(choice, algorithm):
        dtype, rows = precision.activation(), []
        for case in cases:
            found = case.compare(dtype, TOLERANCE[choice])
            if len(cases) > 1:
                found = [{**row, "name": f"{row['name']} for {case.arguments[0].shape}"} for row in found]
            rows += found
    return not any(row["wrong"] for row in rows), described(rows)


def breaks_the_context(text: str) -> bool:
    """Whether an error with this text leaves a CUDA context in which nothing works any more."""
    text = text.lower().replace("_", "")
    return any(word in text for word in LOST)


def _print(line: str) -> None:
    print(line, flush=True)  # so that a hang shows where it is


def check(say: Callable[[str], None] = _print, sizes: dict[str, Any] = SIZES) -> list[str]:
    """Run all tasks, with a line for each; the names of those that are wrong. Needs a usable GPU.

    An exception is a wrong result too. After one that loses the CUDA context nothing can be right: the check ends.
    Raises `MemoryError` where the GPU's memory is taken by others, and `RuntimeError` where the reference is in use.
    """
    import cupy

    if kernels.in_use("cuda") != "cuda":
        raise RuntimeError("check: the kernels in use are the reference's; choose others by kernels.use('auto')")

    start, wrong, count = time.monotonic(), [], 0
    driver = cupy.cuda.runtime.driverGetVersion()
    say(
        f"CUDA {driver // 1000}.{driver % 1000 // 10} by the driver, CuPy {cupy.__version__}, NumPy {np.__version__}, "
        f"cuBLAS {blas.version()}"
    )
    say(
        "error: the norm (L2) of the difference from the reference on the CPU, relative to the reference; at most "
        f"{TOLERANCE['fp32']:.0e} in fp32, {TOLERANCE['tf32']:.0e} in tf32, {TOLERANCE['bf16']:.0e} in bf16"
    )
    for choice in precision.CHOICES:
        if reason := precision.why_not(choice):
            say(f"not checked: {reason}")
    for name, task in tasks(sizes):
        try:
            right, text = task()
            cupy.cuda.runtime.deviceSynchronize()  # an error of the GPU belongs to the task that made it
        except MemoryError:  # says nothing of the kernels
            raise
        except Exception as error:  # CUDA's and CuPy's have no common class
            right, text = False, " ".join(f"{type(error).__name__}: {error}".split())
        count += 1
        wrong += [] if right else [name]
        say(f"{'ok   ' if right else 'WRONG'}  {name:<56}{text}")
        if not right and breaks_the_context(text):
            say("after this error nothing works on this GPU until the program ends: the rest is not checked")
            break
    seconds = time.monotonic() - start
    say(f"{count - len(wrong)} of {count} are right, after {seconds:.0f} s")
    return wrong
