"""What only the reference has: im2col and its transpose, in integers, where nothing rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from minires import kernels, reference
from minires.reference import output_size, pair
from minires.testing import conv_geometries, seeds


def arguments(geometry):
    return geometry.weight_shape[:2], geometry.stride, geometry.padding, geometry.dilation


@given(geometry=conv_geometries(), seed=seeds())
def test_col2im_is_the_transpose_of_im2col(xp, geometry, seed):
    """<im2col(x), c> = <x, col2im(c)> for all x and c, without tolerance."""
    rng = np.random.default_rng(seed)
    x = xp.asarray(rng.integers(-99, 100, geometry.x_shape))
    kernel, *rest = arguments(geometry)
    columns = reference.im2col(x, kernel, *rest)
    size = output_size(x.shape, kernel, *rest)
    assert columns.shape == (x.shape[0], *size, *kernel, x.shape[3])
    c = xp.asarray(rng.integers(-99, 100, columns.shape))
    back = reference.col2im(c, x.shape, *rest)
    assert back.shape == x.shape
    assert int((columns * c).sum()) == int((x * back).sum())


@given(geometry=conv_geometries(), seed=seeds())
def test_im2col_picks_the_right_pixels(xp, geometry, seed):
    """Every element, from its definition: columns[n,i,j,u,v,c] = padded[n, i*s + u*d, j*s + v*d, c]."""
    x = np.random.default_rng(seed).integers(-99, 100, geometry.x_shape)
    kernel, (sh, sw), (ph, pw), (dh, dw) = arguments(geometry)
    columns = reference.im2col(xp.asarray(x), kernel, (sh, sw), (ph, pw), (dh, dw))
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    n, i, j, u, v, c = np.indices(columns.shape)
    xp.testing.assert_array_equal(columns, padded[n, i * sh + u * dh, j * sw + v * dw, c])


@given(geometry=conv_geometries())
def test_col2im_of_ones_counts_the_windows_that_meet_a_pixel(xp, geometry):
    kernel, *rest = arguments(geometry)
    ones = xp.ones(geometry.x_shape, dtype=int)
    columns = reference.im2col(ones, kernel, *rest)  # 0 where a window sticks out of the image
    counts = reference.col2im(columns, geometry.x_shape, *rest)
    assert int(counts.sum()) == int(columns.sum())
    assert int(counts.max()) <= kernel[0] * kernel[1]


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "padding", "dilation", "expected"),
    [(32, 3, 1, 1, 1, 32), (32, 3, 2, 1, 1, 16), (224, 7, 2, 3, 1, 112), (7, 3, 2, 0, 2, 2), (2, 3, 1, 0, 1, 0)],
)
def test_output_size(n, kernel, stride, padding, dilation, expected):
    both = [(value, value) for value in (kernel, stride, padding, dilation)]
    assert output_size((1, n, n, 1), *both) == (expected, expected)


def test_pair():
    assert pair("stride", 2, 1) == pair("stride", [2, 2], 1) == pair("stride", np.int64(2), 1) == (2, 2)
    assert pair("padding", (0, 3), 0) == (0, 3)
    for bad in (0, (1, 0), (1, 2, 3), 1.5, "ab", None):
        with pytest.raises(ValueError, match=r"stride is .*, expected an integer >= 1, or a pair of them"):
            pair("stride", bad, 1)


def test_float64_always_gets_the_reference(monkeypatch):
    """Gradient checks are about the definition; and it is what every backend is compared with."""
    assert kernels.of(np.zeros(1)) is reference
    monkeypatch.setattr(kernels, "_choice", "auto")  # put back afterwards
    kernels.use("reference")
    assert kernels.of(np.zeros(1, np.float32)) is reference
    assert kernels.in_use("cpu") == kernels.in_use("cuda") == "reference"
    with pytest.raises(ValueError, match="kernels: 'fast' is unknown, expected one of auto, reference"):
        kernels.use("fast")
