"""The fused branch by its contract (nn.fused.Branch): against the reference's operations, one after the other."""

from __future__ import annotations

import importlib
import weakref

import numpy as np
import pytest

from minires import cuda, kernels, reference
from minires.nn import BatchNorm2d
from minires.nn.fused import BranchLayer, InferenceLayer
from minires.reference import Geometry, Running
from tests import simulator

branch_file = importlib.import_module("minires.cuda.branch")  # `cuda.branch` is the function
ROUNDING = {"fp32": 1e-4, "tf32": 0.1, "bf16": 0.3}  # of an L2 norm; where it rounds, a ReLU may take the other side
ONE, THREE = (Geometry((k, k), (1, 1), (k // 2,) * 2, (1, 1)) for k in (1, 3))
STRIDED = Geometry((3, 3), (2, 2), (1, 1), (1, 1))
BRANCHES = {  # name: geometries and widths
    "basic": [(THREE, 8, 8), (THREE, 8, 8)],
    "bottleneck": [(ONE, 16, 8), (THREE, 8, 8), (ONE, 8, 16)],
    "projection": [(STRIDED, 8, 16)],
}


def make(name):
    """x and layers of a branch, dz, and a shortcut; on the host."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    layers = []
    for geometry, c, o in BRANCHES[name]:
        weight = draw(*geometry.kernel, c, o) / (geometry.kernel[0] * c**0.5)
        layers.append(BranchLayer(weight, geometry, 1 + draw(o) / 4, draw(o), 1e-5))
    x = draw(3, 6, 5, BRANCHES[name][0][1])
    size = x.shape
    for geometry, _, o in BRANCHES[name]:
        size = (size[0], *reference.output_size(size, *geometry), o)
    return x, layers, draw(*size), draw(*size)


def plain(x, layers, shortcut, relu, dz):
    """z, (count, mean, var) of each layer, dx, gradients and dshortcut by the reference's operations, in float64."""
    saved, z = [], x
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        y = reference.conv2d(z, layer.weight, None, *layer.geometry[1:], 1)
        mean, var = reference.batch_norm_statistics(y)
        saved.append((z, y, mean, var))
        z = reference.batch_norm_apply(y, mean, var, layer.bn_weight, layer.bn_bias, layer.eps)
        z = z + shortcut if last and shortcut is not None else z
        saved[-1] += (z,)
        z = reference.relu(z) if relu or not last else z
    gradients, g, dshortcut = [], dz, None
    for i in reversed(range(len(layers))):
        (before, y, mean, var, out), layer, last = saved[i], layers[i], i == len(layers) - 1
        g = reference.relu_backward(g, out) if relu or not last else g
        dshortcut = g if last else dshortcut
        g, dweight, dbias = reference.batch_norm_backward(g, y, mean, var, layer.bn_weight, layer.eps, True)
        g, dconv = reference.conv2d_backward(g, before, layer.weight, *layer.geometry[1:], 1, True, True)
        gradients = [dconv, dweight, dbias, *gradients]
    return (
        z,
        [(s[1].size // s[1].shape[3], *s[2:4]) for s in saved],
        g,
        gradients,
        dshortcut if shortcut is not None else None,
    )


def double(layers):
    return [
        layer._replace(**{n: getattr(layer, n).astype(np.float64) for n in ("weight", "bn_weight", "bn_bias")})
        for layer in layers
    ]


def on_device(layers):
    import cupy

    return [
        layer._replace(**{n: cupy.asarray(getattr(layer, n)) for n in ("weight", "bn_weight", "bn_bias")})
        for layer in layers
    ]


def close(got, expected, tolerance):
    got = got.get().astype(np.float64)
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= tolerance * (1 + np.linalg.norm(expected))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("kind", ["none", "x", "other"])
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_in_training(any_gpu, name, kind, relu, precision):
    import cupy

    x, layers, dz, other = make(name)
    if kind == "x" and name == "projection":
        pytest.skip("x has another shape than the result")
    shortcut = {"none": None, "x": x, "other": other}[kind]
    wide = None if shortcut is None else shortcut.astype(np.float64)
    z, statistics, dx, gradients, dshortcut = plain(x.astype(np.float64), double(layers), wide, relu, dz.astype(float))

    device_x, device_dz = cupy.asarray(x), cupy.asarray(dz)
    device_shortcut = device_x if kind == "x" else None if shortcut is None else cupy.asarray(shortcut)
    tolerance = ROUNDING[precision]
    for buffers in (False, True):
        out = [cupy.empty(g.shape, dtype="float32") if buffers and i % 2 else None for i, g in enumerate(gradients)]
        for need_dx in (True, False):
            running = [
                Running(
                    cupy.zeros(layer.bn_bias.shape, "float32"), cupy.zeros(layer.bn_bias.shape, "float32"), None, 1.0
                )
                for layer in layers
            ]
            tracked = [layer._replace(running=r) for layer, r in zip(on_device(layers), running)]
            got_z, backward = cuda.branch(device_x, tracked, device_shortcut, relu)
            got_dx, got_gradients, got_dshortcut = backward(device_dz, need_dx, kind == "x", out)
            close(got_z, z, tolerance)
            for got, (y, mean, var) in zip(running, statistics, strict=True):
                close(got.mean, mean, tolerance)
                close(got.var, var * y / (y - 1), tolerance)
            for got, buffer, expected in zip(got_gradients, out, gradients, strict=True):
                assert buffer is None or got is buffer
                assert got.dtype == np.float32
                close(got, expected, tolerance)
            assert (got_dx is None) == (not need_dx)
            if need_dx:
                assert got_dx.dtype == np.float32
                close(got_dx, dx + (dshortcut if kind == "x" else 0), tolerance)
            assert (got_dshortcut is None) == (kind != "other")
            if kind == "other":
                assert got_dshortcut.dtype == np.float32
                close(got_dshortcut, dshortcut, tolerance)
            np.testing.assert_array_equal(device_dz.get(), dz)  # it belongs to the caller
            np.testing.assert_array_equal(device_x.get(), x)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_in_inference(any_gpu, name, add, folded, relu, precision):
    import cupy

    x, layers, _, shortcut = make(name)
    rng = np.random.default_rng(9)
    described, z = [], x.astype(np.float64)
    for i, layer in enumerate(double(layers)):
        norm = None if folded else BatchNorm2d(layer.bn_bias.size)
        scale, shift = 1, layer.bn_bias
        if norm:
            norm.weight.data, norm.bias.data = layer.bn_weight, layer.bn_bias
            norm.running_mean, norm.running_var = rng.standard_normal(shift.shape), 0.5 + rng.random(shift.shape)
            scale, shift = norm.scale_and_shift()
        z = reference.conv2d(z, layer.weight, None, *layer.geometry[1:], 1) * scale + shift
        last = i == len(layers) - 1
        z = z + shortcut if add and last else z
        z = reference.relu(z) if relu or not last else z
        weight, bias = (cupy.asarray(a.astype(np.float32)) for a in (layer.weight, layer.bn_bias))
        if norm:
            for tensor in (norm.weight, norm.bias):
                tensor.data = cupy.asarray(tensor.data.astype(np.float32))
            for name in ("running_mean", "running_var"):
                setattr(norm, name, cupy.asarray(getattr(norm, name).astype(np.float32)))
        described.append(InferenceLayer(weight, layer.geometry, norm, bias if folded else None))
    got = cuda.evaluate_branch(cupy.asarray(x), described, cupy.asarray(shortcut) if add else None, relu)
    close(got, z, ROUNDING[precision])


def test_backward_frees_each_array_once_it_is_past_it(gpu, monkeypatch):
    """When the first layer's convolution goes back, the outputs of the layers behind it are gone already."""
    import cupy

    x, layers, dz, _ = make("bottleneck")
    _, backward = cuda.branch(cupy.asarray(x), on_device(layers), None, True)
    kept = [weakref.ref(saved.y._memory) for saved in backward.args[2]]
    alive = []
    real = branch_file.convolution.weight_gradient

    def weight_gradient(*arguments, **options):
        alive.append([reference() is not None for reference in kept])
        return real(*arguments, **options)

    monkeypatch.setattr(branch_file.convolution, "weight_gradient", weight_gradient)
    backward(cupy.asarray(dz), False, False, [None] * 9)
    assert alive == [[True, True, False], [True, False, False], [False, False, False]]


def test_the_branch_in_use_is_this_one(gpu):
    import cupy

    assert kernels.of(cupy.zeros(1, dtype="float32")).branch is branch_file.branch
    assert isinstance(gpu, simulator.Gpu)
