"""Batch norm with the shortcut's addition and the ReLU in the same passes, as the fused branch has it.

It is held to the reference's batch norm, addition and ReLU, one after the other. Batch norm alone is tested with every
backend (tests/backends).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minires import cuda, reference
from minires.cuda.batch_norm import normalise_add_relu, normalise_add_relu_backward
from minires.testing import LAYOUTS, image_shapes, kink_free_array, seeds
from tests import simulator
from tests.backends.conftest import Backend


@pytest.fixture(scope="module", params=["simulated", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "simulated" and simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    return Backend("cuda", request.param, "float32")


@given(
    shape=image_shapes(), training=st.booleans(), add=st.booleans(), relu=st.booleans(), again=st.booleans(),
    buffers=st.booleans(), seed=seeds(), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_batch_norm_with_shortcut_and_relu(backend, shape, training, add, relu, again, buffers, seed, layout):
    assume(math.prod(shape[:3]) >= 2)
    x, c = kink_free_array(shape, seed), shape[3:]
    mean, var = reference.batch_norm_statistics(x)
    if not training:  # others than the batch's own
        mean, var = kink_free_array(c, seed + 1), 0.5 + abs(kink_free_array(c, seed + 2))
    weight, bias, dz = kink_free_array(c, seed + 3), kink_free_array(c, seed + 4), kink_free_array(shape, seed + 6)
    plain = reference.batch_norm_apply(x, mean, var, weight, bias, 1e-5)
    assume(abs(plain).min() > 1e-4)  # float32 may take the other side of the ReLU
    z = kink_free_array(shape, seed + 5) if add else plain
    shortcut = z - plain if add else None
    g = reference.relu_backward(dz, z) if relu else dz
    expected = *reference.batch_norm_backward(g, x, mean, var, weight, 1e-5, training), g
    z = reference.relu(z) if relu else z

    with backend.active() as cupy:
        device = [backend.array(a, layout) for a in (x, mean, var, weight, bias)]
        added = None if shortcut is None else backend.array(shortcut, layout)
        got = normalise_add_relu(*device, 1e-5, added, relu)
        backend.expect(backend.result("normalise_add_relu", got), z)

        again = again and not add  # computed again or read: only a shortcut asks for z
        mask = {"bias" if again else "z": device[4] if again else backend.array(z, layout)} if relu else {}
        out = tuple(cupy.empty(c, dtype="float32") for _ in range(2)) if buffers else (None, None)
        gradients = normalise_add_relu_backward(
            backend.array(dz, layout), *device[:4], 1e-5, training, **mask, need_dshortcut=True, out=out
        )
        assert not buffers or (gradients[1] is out[0] and gradients[2] is out[1])
        for gradient, right in zip(gradients, expected, strict=True):
            backend.expect(backend.result("normalise_add_relu_backward", gradient), right)
        without = normalise_add_relu_backward(backend.array(dz, layout), *device[:4], 1e-5, training, **mask)
        assert without[3] is None
        for a, b in zip(without[:3], gradients):
            backend.expect(backend.result("normalise_add_relu_backward", a), b.get().astype(np.float64))


def test_the_mask_of_a_relu_is_computed_again_to_the_same_bit(any_gpu):
    """With `bias` the backward does not read z; g, which it masks, must be zero exactly where z is."""
    import cupy

    rng = np.random.default_rng(0)
    x, dz = (cupy.asarray(rng.standard_normal((3, 5, 7, 8)).astype(np.float32)) for _ in range(2))
    weight, bias = (cupy.asarray(rng.standard_normal(8).astype(np.float32)) for _ in range(2))
    mean, var = cuda.batch_norm_statistics(x)
    z = normalise_add_relu(x, mean, var, weight, bias, 1e-5, None, relu=True)
    arguments = (dz, x, mean, var, weight, 1e-5, True)
    read = normalise_add_relu_backward(*arguments, z=z, need_dshortcut=True)
    again = normalise_add_relu_backward(*arguments, bias=bias, need_dshortcut=True)
    assert 0.2 < (z.get() == 0).mean() < 0.8
    for a, b in zip(read, again, strict=True):
        np.testing.assert_array_equal(a.get(), b.get())


def test_batches_are_counted_on_the_device_once_whatever_the_grid(any_gpu):
    """700 channels: three blocks, of which one counts."""
    import cupy

    x, batches = cupy.ones((1, 2, 1, 700), dtype="float32"), cupy.zeros((), dtype="int64")
    running = reference.Running(*(cupy.zeros(700, dtype="float32") for _ in range(2)), batches, 0.5)
    any_gpu.reset()
    for _ in range(3):
        cuda.batch_norm_statistics(x, running)
    if isinstance(any_gpu, simulator.Gpu):
        assert any_gpu.launches == {"batch_norm_partials": 3, "batch_norm_statistics": 3}
    assert int(batches) == 3
    np.testing.assert_array_equal(running.mean.get(), np.full(700, 0.875))
