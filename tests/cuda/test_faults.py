"""The tests of the CUDA kernels are themselves tested: faults planted in the .cu files must be noticed."""

from __future__ import annotations

import numpy as np
import pytest

from minires import cuda, kernels, reference
from minires.cuda import convolution, launch
from minires.cuda.batch_norm import normalise_add_relu, normalise_add_relu_backward
from minires.reference import Geometry
from tests import simulator

pytestmark = pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
GEOMETRY = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
STRIDED = Geometry((3, 3), (2, 2), (1, 1), (1, 1))


def both_orders(function):
    """function(cupy) with the threads in order and backwards, on the host."""
    results = []
    for reverse in (False, True):
        with simulator.gpu(reverse=reverse):
            import cupy

            result = function(cupy)
            results.append([a.get() for a in (result if isinstance(result, tuple) else (result,)) if a is not None])
    return results


def check(function, expected):
    """Both orders give the same bits, and what is expected."""
    forwards, backwards = both_orders(function)
    for a, b, c in zip(forwards, backwards, expected if isinstance(expected, tuple) else (expected,)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-4)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def statistics():
    x = random(5, 9, 9, 12)
    check(lambda cupy: cuda.batch_norm_statistics(cupy.asarray(x)), reference.batch_norm_statistics(x))


def parts():
    """Eighteen partial results of each channel, merged by as many threads."""
    x, dy, weight = random(10, 30, 30, 12), random(10, 30, 30, 12, seed=1), random(12, seed=2)
    mean, var = expected = reference.batch_norm_statistics(x)
    check(lambda cupy: cuda.batch_norm_statistics(cupy.asarray(x)), expected)
    host = dy, x, mean, var, weight
    dx, dweight, dbias = reference.batch_norm_backward(*host, 1e-5, True)

    def run(cupy):
        dx, dweight, dbias = cuda.batch_norm_backward(*map(cupy.asarray, host), 1e-5, True)
        return dx, dweight / 100, dbias / 100  # sums of 9,000

    check(run, (dx, dweight / 100, dbias / 100))


def sums():
    x = random(5, 9, 9, 12)
    check(lambda cupy: cuda.column_sum(cupy.asarray(x)), reference.column_sum(x))


def batch_norm():
    """With a shortcut and the ReLU, as the fused branch has it."""
    x, dz, weight, bias = random(3, 9, 9, 8), random(3, 9, 9, 8, seed=1), random(8, seed=2), random(8, seed=3)
    mean, var = reference.batch_norm_statistics(x)
    z = reference.relu(reference.batch_norm_apply(x, mean, var, weight, bias, 1e-5) + dz)
    g = reference.relu_backward(dz, z)

    def run(cupy):
        device = [cupy.asarray(a) for a in (x, mean, var, weight, bias)]
        out = normalise_add_relu(*device, 1e-5, cupy.asarray(dz), relu=True)
        arguments = [cupy.asarray(a) for a in (dz, x, mean, var, weight)]
        return out, *normalise_add_relu_backward(*arguments, 1e-5, True, z=cupy.asarray(z), need_dshortcut=True)

    check(run, (z, *reference.batch_norm_backward(g, x, mean, var, weight, 1e-5, True), g))


def running():
    """70 channels: three blocks."""
    x, start = random(5, 3, 3, 70), [random(70, seed=i) for i in (1, 2)]

    def moved(module, asarray):
        statistics = reference.Running(*(asarray(a.copy()) for a in start), asarray(np.array(4)), 0.1)
        module.batch_norm_statistics(asarray(x), statistics)
        return statistics[:3]

    check(lambda cupy: moved(cuda, cupy.asarray), moved(reference, np.asarray))


def loss():
    logits, labels = 3 * random(20, 40), np.random.default_rng(0).integers(0, 40, 20)
    check(
        lambda cupy: cuda.cross_entropy(cupy.asarray(logits), cupy.asarray(labels), 0.1),
        reference.cross_entropy(logits, labels, 0.1),
    )


def implicit(geometry=GEOMETRY, draw=random):
    x, weight = draw(2, 7, 6, 8), draw(3, 3, 8, 24, seed=1)
    size = reference.output_size(x.shape, *geometry)
    dy = draw(2, *size, 24, seed=2)
    options = {"stride": geometry.stride, "padding": geometry.padding, "dilation": (1, 1), "groups": 1}
    backward = {"need_dx": True, "need_dweight": True}

    def run(cupy):
        device = [cupy.asarray(a) for a in (dy, x, weight)]
        y = cuda.conv2d(*device[1:], None, **options)
        return y, *cuda.conv2d_backward(*device, **options, **backward)

    y = reference.conv2d(x, weight, None, **options)
    check(run, (y, *reference.conv2d_backward(dy, x, weight, **options, **backward)))


def wide():
    """136 outputs: tiles of 128, whose weight takes two loads a thread."""
    x, weight = random(1, 4, 12, 16), random(3, 3, 16, 136, seed=1)
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "tile_n", lambda outputs, rows=0: 128)
        check(
            lambda cupy: cuda.conv2d(cupy.asarray(x), cupy.asarray(weight), None, **options),
            reference.conv2d(x, weight, None, **options),
        )


def by_cp_async():
    """Twelve steps: the stages are used again and again. In tf32, of numbers that it holds exactly."""
    kernels.use_precision("tf32")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "algorithm", "async")
            patch.setattr(convolution, "tile_n", lambda outputs, rows=0: 64)
            implicit(draw=lambda *shape, seed=0: np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32))
    finally:
        kernels.use_precision("fp32")


def strided():
    implicit(STRIDED)


def pairs():
    """In bfloat16, whose words are pairs; of numbers so small that even the sums are exact."""
    pytest.importorskip("ml_dtypes")
    kernels.use_precision("bf16")
    try:
        implicit(draw=lambda *shape, seed=0: np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32))
    finally:
        kernels.use_precision("fp32")


def batch():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    top, left, flip = np.array([0, 4, 8]), np.array([7, 4, 1]), np.array([True, False, True])
    check(
        lambda cupy: cuda.crop_and_flip(*(cupy.asarray(a) for a in (images, top, left, flip)), 4),
        reference.crop_and_flip(images, top, left, flip, 4),
    )


SYNC = "__syncthreads();"
FAULTS = {  # what: file, text, what it becomes, the guard that must notice
    "a barrier missing in the statistics' tree": (
        "batch_norm",
        f"counts[thread] = n;\n        }}\n        {SYNC}",
        "counts[thread] = n;\n        }",
        statistics,
    ),
    "a barrier missing in a sum's tree": (
        "sums",
        f"sums[thread][i] += sums[thread + half * blockDim.x][i];\n        {SYNC}",
        "sums[thread][i] += sums[thread + half * blockDim.x][i];",
        sums,
    ),
    "the last part of a sum left out": ("sums", "part < parts; part++", "part < parts - 1; part++", sums),
    "every block counts the batch": (
        "batch_norm",
        "if (c == 0 && batches)",
        "if (threadIdx.x == 0 && batches)",
        running,
    ),
    "the batch not counted": ("batch_norm", "batches[0] += 1;", ";", running),
    "the running variance biased": ("batch_norm", "v * unbiased", "v", running),
    "half of the threads that merge left out": (
        "batch_norm",
        "for (int half = MERGERS / 2; half > 0; half /= 2) {\n        if (ty < half) {",
        "for (int half = MERGERS / 4; half > 0; half /= 2) {\n        if (ty < half) {",
        parts,
    ),
    "half of the threads that add up left out": (
        "batch_norm",
        "for (int half = MERGERS / 2; half > 0; half /= 2) {\n        if (ty < half) sums",
        "for (int half = MERGERS / 4; half > 0; half /= 2) {\n        if (ty < half) sums",
        parts,
    ),
    "the second of two rows left out": ("batch_norm", "k < BACKWARD_ROWS; k++", "k < 1; k++", batch_norm),
    "the mean of two parts not weighted": ("batch_norm", "__fdividef(other_count, total)", "0.5f", statistics),
    "the difference of two means forgotten": (
        "batch_norm",
        "other_squares + difference * difference",
        "other_squares + 0.0f * difference",
        statistics,
    ),
    "no ReLU": ("batch_norm", "value.v[i] > 0.0f ||", "true ||", batch_norm),
    "the last row left out": (
        "batch_norm",
        "row < rows; row += gridDim.y",
        "row < rows - 1; row += gridDim.y",
        batch_norm,
    ),
    "the mean term of dx forgotten": ("batch_norm", "-a * sum / count - b * mean[c]", "-b * mean[c]", batch_norm),
    "the sum of half a warp": ("loss", "int d = 16; d > 0; d /= 2) v +=", "int d = 8; d > 0; d /= 2) v +=", loss),
    "a barrier missing between two steps of a tile": (
        "convolution",
        f"if (step + 1 < steps) keep(1 - buffer);\n        {SYNC}",
        "if (step + 1 < steps) keep(1 - buffer);",
        implicit,
    ),
    "no padding above": ("tensor_core", "exists ? p.i * sh - ph : h", "exists ? p.i * sh : h", implicit),
    "the halves of a pair exchanged": (
        "tensor_core",
        "make_float2(first, second)",
        "make_float2(second, first)",
        implicit,
    ),
    "the second load of a step of the weight left out": (
        "convolution",
        "bool inside = c0 + b_channel + i * B_ROWS * PER_WORD < c",
        "bool inside = i == 0 && c0 + b_channel < c",
        wide,
    ),
    "a tap left out": ("convolution", "if (v == kw) v = 0, u++;", "if (v == kw - 1) v = 0, u++;", implicit),
    "copies not waited for": ("convolution_async", "wait_group<STAGES - 2>();", "", by_cp_async),
    "copies waited for too late": (
        "convolution_async",
        "wait_group<STAGES - 2>();",
        "wait_group<STAGES - 1>();",
        by_cp_async,
    ),
    "a barrier missing behind the wait": (
        "convolution_async",
        "        __syncthreads();           // for",
        "        // for",
        by_cp_async,
    ),
    "the group of a step not closed": (
        "convolution_async",
        "stage - 1);\n        commit_group();",
        "stage - 1);",
        by_cp_async,
    ),
    "positions used before they are located": (
        "weight_gradient",
        f"    locate(1);\n    {SYNC}",
        "    locate(1);",
        implicit,
    ),
    "bfloat16 of the wrong row": (
        "tensor_core",
        "return make_uint4(e.x, e.y, o.x, o.y);",
        "return make_uint4(o.x, o.y, e.x, e.y);",
        pairs,
    ),
    "the halves of a pair not interleaved": ("tensor_core", "(raw.x & 0xffffu) | raw.z << 16", "raw.x", pairs),
    "the weight not turned": ("elementwise", "(taps - 1 - t) * channels", "t * channels", implicit),
    "col2im without the stride": ("columns", "if (i < 0 || i % sh ||", "if (i < 0 ||", strided),
    "im2col not padded": ("columns", "int r = i * sh + u * dh - ph", "int r = i * sh + u * dh", strided),
    "flips ignored": ("images", "flip[image] ? w - 1 - s : s", "s", batch),
}


@pytest.fixture(autouse=True)
def _implicit_where_possible(monkeypatch, request):
    monkeypatch.setattr(convolution, "algorithm", "columns" if "im2col" in str(request.node.name) else "implicit")


GUARDS = [sums, statistics, parts, batch_norm, running, loss, implicit, wide, by_cp_async, strided, pairs, batch]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.__name__)
def test_without_a_fault_the_guards_pass(guard):
    guard()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(monkeypatch, name):
    file, text, fault, guard = FAULTS[name]
    original = launch.source
    (path,) = (path for path in launch.FOLDER.glob(f"{file}.cu*") if path.suffix in (".cu", ".cuh"))
    assert text in path.read_text(), f"{path.name} no longer contains {text!r}: bring the fault up to date"

    def source(wanted, defines=()):
        return original(wanted, defines).replace(text, fault)

    monkeypatch.setattr(launch, "source", source)
    with pytest.raises(AssertionError):
        guard()
