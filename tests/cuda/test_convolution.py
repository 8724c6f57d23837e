"""The convolutions without columns, in every precision, at sizes that no tile divides; threads in both orders."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from minires import cuda, reference
from minires.cuda import convolution, launch
from minires.reference import Geometry
from tests import simulator

ROUNDING = {"fp32": 1e-6, "tf32": 1e-3, "bf16": 1e-2}  # of an L2 norm
CASES = [  # x, outputs, geometry: 3x3 as in the ResNets, strides, dilation, other kernels, sizes that fill no tile
    ((2, 7, 6, 16), 64, Geometry((3, 3), (1, 1), (1, 1), (1, 1))),
    ((3, 9, 8, 24), 40, Geometry((3, 3), (2, 2), (1, 1), (1, 1))),
    ((1, 12, 13, 8), 136, Geometry((3, 3), (1, 1), (1, 1), (1, 1))),
    ((1, 9, 7, 40), 8, Geometry((2, 3), (1, 2), (0, 1), (2, 1))),
    ((2, 5, 5, 8), 24, Geometry((3, 1), (1, 1), (2, 0), (1, 2))),
]


def arrays(case, seed=0):
    """x, weight and dy, integers so small that every precision has them exactly."""
    shape, outputs, geometry = case
    rng = np.random.default_rng(seed)
    size = reference.output_size(shape, *geometry)
    shapes = (shape, (*geometry.kernel, shape[3], outputs), (shape[0], *size, outputs))
    return [rng.integers(-3, 4, s).astype(np.float32) for s in shapes]


def gpu_array(x):
    import cupy

    return cupy.asarray(x)


def options(geometry):
    return {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation, "groups": 1}


def run(case, x, weight, dy, device="simulated", reverse=False):
    """y, dx, dweight on a simulated GPU, or on a real one; and the launches that the simulated one has counted."""
    with simulator.gpu(reverse=reverse) if device == "simulated" else nullcontext() as gpu:
        import cupy

        x, weight, dy = map(cupy.asarray, (x, weight, dy))
        y = cuda.conv2d(x, weight, None, **options(case[2]))
        dx, dweight = cuda.conv2d_backward(dy, x, weight, **options(case[2]), need_dx=True, need_dweight=True)
        results = [a.get().astype(np.float64) for a in (y, dx, dweight)]
    return results, gpu.launches if gpu else None


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def device(request):
    """Where to run; the simulated one needs a compiler."""
    if request.param == "simulated" and simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    return request.param


@pytest.fixture(params=["implicit", "columns", "async"])
def algorithm(request, monkeypatch):
    if (
        request.param == "async"
        and "precision" in request.fixturenames
        and request.getfixturevalue("precision") != "tf32"
    ):
        pytest.skip("the variant with cp.async is for tf32")
    monkeypatch.setattr(convolution, "algorithm", request.param)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_come_out_exactly(case, algorithm, precision, device):
    """Sums of up to 360 products of small integers: float32 holds them, so nothing may be off. bfloat16 results
    round."""
    x, weight, dy = arrays(case)
    got, launches = run(case, x, weight, dy, device)
    if launches is not None:
        assert ("convolution" in launches) == (algorithm == "implicit")
        assert ("convolution_async" in launches) == (algorithm == "async")
        assert ("weight_gradient" in launches) == (algorithm != "columns")
    y = reference.conv2d(*(a.astype(np.float64) for a in (x, weight)), None, **options(case[2]))
    expected = [y, *reference.conv2d_backward(dy, x, weight, **options(case[2]), need_dx=True, need_dweight=True)]
    for i, (a, b) in enumerate(zip(got, expected)):
        tolerance = 2**-8 if precision == "bf16" and i < 2 else 0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=0)


def test_rounding_is_that_of_the_precision(algorithm, precision, device):
    case = CASES[0]
    rng = np.random.default_rng(1)
    x, weight, dy = (rng.standard_normal(a.shape).astype(np.float32) for a in arrays(case))
    got, _ = run(case, x, weight, dy, device)
    double = [a.astype(np.float64) for a in (dy, x, weight)]
    y = reference.conv2d(*double[1:], None, **options(case[2]))
    expected = [y, *reference.conv2d_backward(*double, **options(case[2]), need_dx=True, need_dweight=True)]
    for a, b in zip(got, expected):
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < ROUNDING[precision]
        rounds = precision != "fp32" and (algorithm != "columns" or device == "simulated")  # cuBLAS may do without
        assert not rounds or error > 1e-5, "tensor cores round, simulated ones too"


@pytest.mark.parametrize(("positive", "times"), [(False, 2), (True, 20)])
def test_what_rounding_behind_cp_async_is_worth(gpu, monkeypatch, positive, times):
    """It costs a hundred instructions a step. Without it the tensor core cuts off, and all numbers become smaller."""
    monkeypatch.setattr(convolution, "algorithm", "async")
    monkeypatch.setattr(convolution.precision, "current", "tf32")
    case = ((2, 6, 6, 32), 32, CASES[0][2])
    rng, errors = np.random.default_rng(0), []
    x, weight = (rng.standard_normal(a.shape).astype(np.float32) for a in arrays(case)[:2])
    if positive:
        x, weight = abs(x), abs(weight)
    expected = reference.conv2d(x.astype(np.float64), weight.astype(np.float64), None, **options(case[2]))
    source = launch.source
    for rounded in (True, False):
        if not rounded:
            monkeypatch.setattr(launch, "source", lambda *a: source(*a).replace("return round_to_tf32(", "return ("))
            launch.program.cache_clear()
        got = cuda.conv2d(*map(gpu_array, (x, weight)), None, **options(case[2])).get()
        errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    assert errors[0] < 4e-4
    assert errors[1] > times * errors[0]


@pytest.mark.parametrize("case", CASES[:2], ids=str)
@pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
def test_the_order_of_the_threads_does_not_matter(case, algorithm, precision):
    """A missing barrier would give two answers. Bit for bit, on numbers that round."""
    rng = np.random.default_rng(2)
    x, weight, dy = (rng.standard_normal(a.shape).astype(np.float32) for a in arrays(case))
    for a, b in zip(run(case, x, weight, dy)[0], run(case, x, weight, dy, reverse=True)[0]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("outputs", [8, 16, 32, 64, 128])
def test_every_width_of_tile(outputs, precision, device, monkeypatch):
    monkeypatch.setattr(convolution, "algorithm", "implicit")
    monkeypatch.setattr(convolution, "tile_n", lambda outputs, rows=0: outputs if outputs >= 16 else 16)
    case = ((1, 6, 5, 16), outputs, Geometry((3, 3), (1, 1), (1, 1), (1, 1)))
    x, weight, dy = arrays(case)
    got, _ = run(case, x, weight, dy, device)
    expected = reference.conv2d_backward(dy, x, weight, **options(case[2]), need_dx=True, need_dweight=True)
    np.testing.assert_allclose(got[1], expected[0], rtol=2**-8 if precision == "bf16" else 0)
    np.testing.assert_array_equal(got[2], expected[1])


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_long_sum_is_split_and_columns_are_made_in_chunks(algorithm, precision, kernel, device, monkeypatch):
    """1,280 positions: two parts; and so little room for columns that three chunks are needed."""
    monkeypatch.setattr(convolution, "COLUMN_BYTES", 2 * 16 * 16 * 9 * 8 * 4)
    case = ((5, 16, 16, 8), 8, Geometry((kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1)))
    x, weight, dy = arrays(case)
    got, launches = run(case, x, weight, dy, device)
    assert launches is None or launches["sum_parts"] >= 1 or (kernel == 3 and algorithm == "columns")
    expected = reference.conv2d_backward(dy, x, weight, **options(case[2]), need_dx=True, need_dweight=True)
    np.testing.assert_allclose(got[1], expected[0], rtol=2**-8 if precision == "bf16" else 0)
    np.testing.assert_array_equal(got[2], expected[1])


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_added_where_asked_for(any_gpu, algorithm, precision, kernel):
    import cupy

    dtype = "bfloat16" if precision == "bf16" else "float32"
    case = ((2, 5, 6, 16), 8, Geometry((kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1)))
    x, weight, dy = arrays(case)
    add_to = cupy.asarray(x).astype(dtype)
    dx = convolution.input_gradient(cupy.asarray(dy).astype(dtype), x.shape, cupy.asarray(weight), case[2], add_to)
    assert dx is add_to
    expected, _ = reference.conv2d_backward(dy, x, weight, **options(case[2]), need_dx=True, need_dweight=False)
    np.testing.assert_allclose(dx.get().astype(np.float32), expected + x, rtol=2**-7 if precision == "bf16" else 0)


def test_the_plan(precision, monkeypatch):
    three, one = Geometry((3, 3), (1, 1), (1, 1), (1, 1)), Geometry((1, 1), (1, 1), (0, 0), (1, 1))
    strided = Geometry((1, 1), (2, 2), (0, 0), (1, 1))
    assert convolution.plan(one, 3, 5) == "product"
    assert convolution.plan(three, 3, 64) == "columns"  # a stem: 3 channels are no whole piece
    best = "columns" if precision == "fp32" else "implicit"
    assert convolution.plan(three, 64, 64) == convolution.plan(strided, 64, 64) == best
    monkeypatch.setattr(convolution, "algorithm", "implicit")
    assert convolution.plan(three, 64, 64) == "implicit"
    assert convolution.plan(three, 64, 64, groups=2) == "columns"
    monkeypatch.setattr(convolution, "algorithm", "async")
    assert convolution.plan(three, 64, 64) == "implicit", "in every precision; only tf32 has a variant of the kernel"
    monkeypatch.setattr(convolution, "algorithm", "columns")
    assert convolution.plan(three, 64, 64) == "columns"


@pytest.mark.parametrize("precision", ["fp32", "bf16"], indirect=True)
def test_without_a_variant_for_cp_async_the_usual_kernel_is_launched(gpu, precision, monkeypatch):
    monkeypatch.setattr(convolution, "algorithm", "async")
    case = CASES[0]
    x, weight, _ = arrays(case)
    got = cuda.conv2d(gpu_array(x), gpu_array(weight), None, **options(case[2])).get().astype(np.float64)
    assert gpu.launches["convolution"] == 1
    assert not gpu.launches["convolution_async"]
    expected = reference.conv2d(x, weight, None, **options(case[2]))
    np.testing.assert_allclose(got, expected, rtol=2**-8 if precision == "bf16" else 0)


@pytest.mark.parametrize(
    ("positions", "tiles"), [(1, 1), (511, 3), (524_288, 5), (524_287, 72), (2048, 144), (8192, 1)]
)
def test_parts_cover_all_positions(positions, tiles):
    parts, rows = convolution.split(positions, tiles)
    assert (parts - 1) * rows < positions <= parts * rows
    assert parts * tiles <= 2 * max(convolution.BLOCKS, tiles)


@pytest.mark.parametrize(("positions", "parts"), [(2048, 4), (2047, 3), (100, 1)])  # the last of three is shorter
@pytest.mark.parametrize("groups", [1, 3])
def test_a_product_in_parts_is_the_product(gpu, positions, parts, groups):
    import cupy

    rng = np.random.default_rng(0)
    columns, dy = (rng.standard_normal((positions, groups, n)).astype(np.float32) for n in (9, 4))
    assert convolution.split(positions, 1)[0] == parts
    out = cupy.empty((9, groups * 4), dtype="float32")
    gpu.reset()
    found = convolution._split_product(cupy.asarray(columns), cupy.asarray(dy), 9, 4 * groups, out, groups)
    expected = np.einsum("pgk,pgo->kgo", columns.astype(np.float64), dy).reshape(9, 4 * groups)
    np.testing.assert_allclose(cupy.asnumpy(found), expected, rtol=1e-4, atol=1e-4)
    assert gpu.launches["gemm"] == (1 if parts == 1 else groups * (2 if positions % parts else 1))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], ids=hex)  # NumPy's, the GPU's, the simulator's
def test_nan_in_an_image_is_nan_in_all_that_depends_on_it(algorithm, precision, device, bits):
    """Rounding to tf32 must not turn it into a number, as adding to its bits does; so uninitialised memory is seen."""
    x, weight, dy = arrays(CASES[0])
    x[1, 3, 3, 5] = np.array(bits, np.uint32).view(np.float32)
    (y, dx, dweight), _ = run(CASES[0], x, weight, dy, device)
    assert np.isnan(y[1, 2:5, 2:5]).all()
    assert np.isfinite(y[0]).all()
    assert np.isfinite(dx).all()
    assert np.isnan(dweight[:, :, 5]).all()
    assert np.isfinite(np.delete(dweight, 5, axis=2)).all()


@pytest.mark.parametrize(
    ("outputs", "rows", "width"),
    [(8, 1000, 16), (40, 1000, 32), (64, 1000, 64), (256, 1000, 128), (136, 1000, 128), (256, 66, 128), (256, 64, 64),
     (256, 20, 32), (256, 1, 32)],
)  # fmt: skip
def test_tiles_are_wide_unless_they_were_too_few(outputs, rows, width):
    assert convolution.tile_n(outputs, rows) == width


@pytest.mark.parametrize(
    ("channels", "outputs", "positions", "expected"),  # of a 3x3 kernel; the tile and the parts of its gradient
    [(256, 256, 512 * 8 * 8, (128, 7)), (64, 64, 512 * 32 * 32, (64, 52)), (512, 512, 512 * 4 * 4, (128, 1)),
     (16, 16, 128 * 32 * 32, (16, 132)), (64, 64, 4 * 8 * 8, (64, 1))],
)  # fmt: skip
def test_a_weights_gradient_takes_wide_tiles_and_as_many_parts_as_fill_the_gpu(channels, outputs, positions, expected):
    tile = convolution.tile_n(outputs)
    tiles = -(-9 * channels // convolution.TILE_M) * -(-outputs // tile)
    parts, _ = convolution.split(positions, tiles)
    assert (tile, parts) == expected
    assert parts * tiles <= max(convolution.BLOCKS, tiles), "all at once"


@pytest.mark.parametrize(("kernel", "groups"), [(1, 2), (3, 2), (3, 8)])
def test_groups_are_one_batch_of_products(gpu, precision, kernel, groups, monkeypatch):
    """Not a product, and copies, for each of them. Eight channels in two groups, or each by itself; in two chunks."""
    import cupy

    geometry = Geometry((kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1))
    item = 2 if precision == "bf16" else 4
    monkeypatch.setattr(convolution, "COLUMN_BYTES", 2 * 6 * 5 * kernel * kernel * 8 * item)
    x, weight, dy = arrays(((4, 6, 5, 8), 16, geometry))
    weight = weight[:, :, : 8 // groups]
    same = {**options(geometry), "groups": groups}
    device = [cupy.asarray(np.ascontiguousarray(a)) for a in (dy, x, weight)]
    gpu.reset()
    y = cuda.conv2d(*device[1:], None, **same)
    gradients = cuda.conv2d_backward(*device, **same, need_dx=True, need_dweight=True)
    chunks = 1 if kernel == 1 else 2
    assert gpu.launches["gemm"] == 3 * chunks
    assert gpu.launches["im2col"] == (0 if kernel == 1 else 2 * chunks)
    assert not set(gpu.launches) - {"gemm", "im2col", "col2im", "accumulate", "from_float", "as_float"}, "no copies"
    expected = reference.conv2d_backward(dy, x, weight, **same, need_dx=True, need_dweight=True)
    for a, b in zip((y, *gradients), (reference.conv2d(x, weight, None, **same), *expected), strict=True):
        np.testing.assert_allclose(a.get().astype(np.float64), b, rtol=2**-8 if precision == "bf16" else 0)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_gradient_is_written_to_any_place_of_the_optimisers_buffer(offset, precision, device, monkeypatch):
    """The kernel writes pairs of floats; a buffer may have an odd number of them before this weight."""
    monkeypatch.setattr(convolution, "algorithm", "implicit")
    x, weight, dy = arrays(CASES[0])
    expected = reference.conv2d_backward(
        dy, x, weight, **options(CASES[0][2]), need_dx=False, need_dweight=True
    )[1]  # fmt: skip
    with simulator.gpu() if device == "simulated" else nullcontext():
        import cupy

        buffer = cupy.zeros(weight.size + 3, dtype="float32")
        out = buffer[offset : offset + weight.size].reshape(weight.shape)
        x, dy = (convolution.convert(cupy.asarray(a), convolution.precision.activation()) for a in (x, dy))
        assert convolution.weight_gradient(dy, x, weight.shape, CASES[0][2], out=out) is out
        got = buffer.get()
    np.testing.assert_array_equal(got[offset : offset + weight.size].reshape(weight.shape), expected)
    assert not got[:offset].any()
    assert not got[offset + weight.size :].any()


@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
def test_the_launches_take_these_tiles_and_parts(gpu, monkeypatch, kind):
    """256 channels at 8x8, batch 512, as in 22 layers of ResNet-101: what is launched, without running it."""
    import cupy

    seen = []

    def program(file, x, tile):
        return {file: lambda grid, block, **arguments: seen.append((file, tile, grid))}

    monkeypatch.setattr(convolution, "_program", program)
    monkeypatch.setattr(convolution, "sum_parts", lambda partials, out: seen.append(("parts", len(partials))))
    monkeypatch.setattr(convolution.precision, "current", kind)
    monkeypatch.setattr(convolution, "algorithm", "implicit")
    monkeypatch.setattr(convolution, "convert", lambda x, dtype: x)
    x, weight = cupy.empty((512, 8, 8, 256), dtype="float32"), cupy.empty((3, 3, 256, 256), dtype="float32")
    convolution.forward(x, weight, Geometry((3, 3), (1, 1), (1, 1), (1, 1)))
    convolution.weight_gradient(x, x, weight.shape, Geometry((3, 3), (1, 1), (1, 1), (1, 1)))
    assert seen == [
        ("convolution", 128, (256, 2)), ("weight_gradient", 128, (18, 2, 7)), ("parts", 7),
    ]  # fmt: skip
