"""What a launch refuses: each kind of argument that does not fit, by the kernel's and the argument's name."""

from __future__ import annotations

import numpy as np
import pytest

from minires.cuda import launch

SOURCE = """
// a comment
extern "C" __global__ void __launch_bounds__(256) scale(
    const activation* __restrict__ x,  // [n, 2 * m], aligned
    float* y,                          // [n, 2 * m], or null
    const long long* __restrict__ z,   // [1], aligned to 16
    float factor,
    int n,
    int m) {
    y[0] = factor;
}
"""


def test_declarations_are_read():
    (parameters,) = launch.parse(SOURCE).values()
    names = ["x", "y", "z", "factor", "n", "m"]
    assert [p.name for p in parameters] == names
    assert [p.type for p in parameters] == ["activation", "float", "long long", "float", "int", "int"]
    assert [p.optional for p in parameters] == [False, True, False, False, False, False]
    assert [p.aligned for p in parameters] == [0, None, 16, None, None, None]
    assert eval(parameters[0].shape, {}, {"n": 3, "m": 5}) == 30
    assert parameters[3].shape is None


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("float* x", "x is a pointer and has no comment that gives its shape"),
        ("double x", "x has type double, expected one of float, int, long long"),
        ("float x[3]", "cannot read the declaration"),
    ],
)
def test_declarations_that_cannot_be_checked_are_errors(declaration, message):
    with pytest.raises(ValueError, match=message):
        launch.parse(f'extern "C" __global__ void f(\n    {declaration}) {{')


def test_every_kernel_has_a_declaration_that_can_be_checked():
    kernels = [name for path in launch.FOLDER.glob("*.cu") for name in launch.parse(launch.source(path.stem))]
    assert len(kernels) == len(set(kernels)) >= 30


def test_every_file_opens_with_formula_launch_shape_and_traffic():
    for path in launch.FOLDER.glob("*.cu"):
        lines = path.read_text().splitlines()
        opening = "\n".join(line for line in lines[: next(i for i, s in enumerate(lines) if not s.startswith("//"))])
        assert "=" in opening, path
        for word in ("Launch shape", "Traffic"):
            assert word.lower() in opening.lower(), f"{path.name} says nothing of its {word}"


@pytest.fixture
def apply(gpu):
    """relu over arrays that are right, but for what the test changes."""
    import cupy

    def call(vector=1, grid=(1,), block=(32,), **changes):
        x = cupy.asarray(np.linspace(-1, 1, 12, dtype=np.float32))
        arguments = {"x": x, "y": cupy.empty(12, dtype="float32"), "size": 12, **changes}
        arguments = {name: value for name, value in arguments.items() if value is not ...}
        launch.program("elementwise", VECTOR=vector)["relu"](grid, block, **arguments)
        return arguments["y"]

    call.cupy = cupy
    return call


def test_a_launch(apply):
    assert apply().get().tolist() == np.maximum(np.linspace(-1, 1, 12, dtype=np.float32), 0).tolist()


def test_what_does_not_fit_is_refused(apply):
    cupy = apply.cupy
    floats = cupy.asarray(np.zeros(24, np.float32))
    for changes, kind, message in [
        ({"x": np.zeros(12, np.float32)}, TypeError, "relu: x is a ndarray on the host, expected an array on the GPU"),
        ({"x": 3.0}, TypeError, "relu: x is a float on the host"),
        ({"x": None}, TypeError, r"relu: x is None, expected an array of \[size\]"),
        ({"x": floats[:12].astype("int32")}, TypeError, "relu: x has dtype int32, the kernel takes float32"),
        ({"x": floats[:11]}, ValueError, r"relu: x has shape \(11,\), the kernel takes 12 elements: \[size\]"),
        ({"x": floats[::2]}, ValueError, r"relu: x of shape \(12,\) is not contiguous"),
        ({"x": floats[1:13], "vector": 4}, ValueError, "relu: x is at an address that is no multiple of 16"),
        ({"size": 12.5}, TypeError, "relu: size is 12.5, expected a number of type long long"),
        ({"size": ...}, TypeError, r"relu: arguments \['size'\] are missing or not known"),
        ({"size": ..., "sise": 12}, TypeError, r"relu: arguments \['sise', 'size'\] are missing or not known"),
        ({"block": (2048,)}, ValueError, r"relu: blocks of \(2048,\) threads, expected 1 to 1024"),
        ({"grid": (0,)}, ValueError, r"relu: a grid of \(0,\) blocks"),
        ({"grid": (1, 70000)}, ValueError, r"relu: a grid of \(1, 70000\) blocks"),
    ]:
        with pytest.raises(kind, match=message):
            apply(**changes)


def test_a_number_that_does_not_fit_its_type_is_refused(gpu):
    import cupy

    x = cupy.zeros((2, 3), dtype="float32")
    with pytest.raises(TypeError, match="column_sum_partials: rows is 5000000000, expected a number of type int"):
        launch.program("sums")["column_sum_partials"](
            (1, 1), (32, 8), x=x, partials=x, rows=5_000_000_000, channels=3, parts=2
        )


def test_vectors_are_used_where_they_fit(gpu):
    import cupy

    x = cupy.zeros(64, dtype="float32")
    assert launch.vector_width(8, x, None) == 4
    assert launch.vector_width(6, x) == 1
    assert launch.vector_width(8, x, x[1:]) == 1
    assert launch.vector_width(8, x[4:]) == 4


def test_the_text_to_compile_holds_its_includes():
    """CuPy's cache of compiled kernels looks at nothing else."""
    text = launch.source("convolution", (("TILE_N", "32"),))
    assert text.startswith("#define TILE_N 32\n")
    assert "#include" not in text
    assert "struct bfloat16" in text
    assert "multiply_tiles" in text
