"""The integration proof: a whole training step through autograd on the simulated GPU, against the reference on the CPU.

Launches are counted, and nothing may wait for the GPU or copy anything to or from it within a step.
"""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import kernels, models, nn, optim
from minires.cuda import convolution
from tests import simulator

# Launches of one step: at most 12 a convolution with its batch norm (forward 5: the product, three for the batch norm,
# the running statistics; columns 1 more; backward 3 for the batch norm, 2 to 4 for the convolution), and a few around
# them. More means that something fell out of the kernels.
LAUNCHES_PER_LAYER, LAUNCHES_AROUND = 13, 40


@pytest.fixture
def choose():
    """kernels.use, put back afterwards."""
    yield kernels.use
    kernels.use("auto")


def build(depth, **options):
    mr.manual_seed(0)
    return models.build(depth, 10, **options)


def images(size, n=4):
    rng = np.random.default_rng(3)
    return rng.standard_normal((n, size, size, 3)).astype(np.float32), rng.integers(0, 10, n)


def step(model, x, labels, optimizer):
    """Loss of one step of training; the gradients and the weights are left in the model."""
    loss = F.cross_entropy(model(mr.Tensor(x)), labels, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def on_both(gpu, choose, model_options, optimizer_of, size, n=4):
    """(loss, gradients, state) of one step by the reference on the CPU, and by the CUDA kernels on the simulated
    GPU."""
    import cupy

    results = []
    x, labels = images(size, n)
    for device, choice in (("cpu", "reference"), ("cuda", "auto")):
        choose(choice)
        model = build(**model_options).to(device)
        optimizer = optimizer_of(model.parameters())
        data = (x, labels) if device == "cpu" else (cupy.asarray(x), cupy.asarray(labels))
        gpu.reset()
        loss = step(model, *data, optimizer)
        if device == "cuda":
            assert gpu.synchronisations == 0
            assert gpu.copies == {}
            launches = gpu.launches.copy()
        gradients = {name: mr.device.to_device(p.grad, "cpu") for name, p in model.named_parameters()}
        results.append((loss.item(), gradients, model.state_dict()))
    return *results, launches


def relative(got, expected):
    """The L2 norm of the difference of all arrays together, relative to the expected ones."""
    difference = sum(float(((got[name] - expected[name]) ** 2).sum()) for name in expected)
    return (difference / sum(float((expected[name] ** 2).sum()) for name in expected)) ** 0.5


@pytest.mark.parametrize("algorithm", ["implicit", "columns"])
@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "adam", pytest.param("adamw", marks=pytest.mark.nightly("2 s; `minires check` has its update"))],
)
def test_a_step_of_resnet20_equals_the_reference(any_gpu, choose, algorithm, optimizer, monkeypatch):
    if algorithm == "implicit" and optimizer != "sgd":
        pytest.skip("the optimisers do not know how the gradients were made")
    monkeypatch.setattr(convolution, "algorithm", algorithm)
    make = {
        "sgd": lambda params: optim.SGD(params, 0.1, 0.9, 5e-4, nesterov=True),
        "adam": lambda params: optim.Adam(params, 1e-3, weight_decay=1e-4),
        "adamw": lambda params: optim.AdamW(params, 1e-3),
    }[optimizer]
    (loss, gradients, state), (got_loss, got_gradients, got_state), launches = on_both(
        any_gpu, choose, {"depth": 20}, make, size=16
    )
    assert got_loss == pytest.approx(loss, rel=1e-5)  # a GPU's compiler fuses multiplications and additions
    assert relative(got_gradients, gradients) < 1e-4
    # Adam moves every weight by about lr, whatever its gradient: where that is rounding, it may move the other way.
    assert relative(got_state, state) < (1e-5 if optimizer == "sgd" else 1e-3)
    layers = sum(name.endswith("conv1.weight") or name.endswith("conv2.weight") for name in gradients)
    assert sum(launches.values()) <= LAUNCHES_PER_LAYER * layers + LAUNCHES_AROUND
    if isinstance(any_gpu, simulator.Gpu):
        assert launches["convolution"] == (
            0 if algorithm == "columns" else 18 + 16
        )  # all but the stem; strided ones: once


@pytest.mark.nightly("13 s; ResNet-20 is tried in any case")
@pytest.mark.parametrize(
    ("options", "size"), [({"depth": 50, "stem": "cifar"}, 16), ({"depth": 18, "stem": "imagenet"}, 64)]
)
def test_a_step_of_the_large_networks_equals_the_reference(any_gpu, choose, options, size):
    """Bottlenecks and projections; the stem of 7x7 with stride 2 and max pooling."""
    options = {**options, "zero_init_last": True}
    reference, got, launches = on_both(
        any_gpu, choose, options, lambda params: optim.SGD(params, 0.1, 0.9), size=size, n=3
    )
    assert got[0] == pytest.approx(reference[0], rel=1e-5)
    assert relative(got[1], reference[1]) < 1e-3
    assert relative(got[2], reference[2]) < 1e-3
    layers = sum(value.ndim == 4 for value in reference[1].values())
    assert sum(launches.values()) <= LAUNCHES_PER_LAYER * layers + LAUNCHES_AROUND


@pytest.mark.parametrize("precision", ["tf32", "bf16"], indirect=True)
def test_other_precisions_round_but_do_the_same(any_gpu, choose, precision):
    reference, got, launches = on_both(any_gpu, choose, {"depth": 20}, lambda params: optim.SGD(params, 0.1), size=16)
    assert got[0] == pytest.approx(reference[0], rel={"tf32": 1e-3, "bf16": 2e-2}[precision])
    assert relative(got[1], reference[1]) < {"tf32": 0.1, "bf16": 0.3}[precision]
    assert all(gradient.dtype == np.float32 for gradient in got[1].values())
    assert launches["convolution"] > 0 or not isinstance(any_gpu, simulator.Gpu)


@pytest.mark.nightly("10 s; test_other_precisions_round_but_do_the_same has the gradients")
def test_the_step_learns(any_gpu, precision):
    """Five steps on one batch: the loss falls in every precision."""
    import cupy

    x, labels = images(8)
    model = build(20).to("cuda")
    optimizer = optim.SGD(model.parameters(), 0.05, 0.9)
    data = cupy.asarray(x), cupy.asarray(labels)
    losses = [step(model, *data, optimizer).item() for _ in range(5)]
    assert losses[-1] < 0.6 * losses[0]


def norms_of(model):
    return (m for m in model.modules() if isinstance(m, mr.nn.BatchNorm2d))


def test_evaluation_equals_the_reference(any_gpu, choose):
    import cupy

    x, _ = images(16)
    logits = []
    for device, choice in (("cpu", "reference"), ("cuda", "auto")):
        choose(choice)
        model = build(20).to(device).eval()
        for norm in norms_of(model):
            norm.running_mean += 0.1
            norm.running_var *= 1.5
        any_gpu.reset()
        with mr.no_grad():
            logits.append(model(mr.Tensor(x if device == "cpu" else cupy.asarray(x))).numpy())
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-3, atol=1e-4)
    if isinstance(any_gpu, simulator.Gpu):  # a product, its columns and a batch norm in each layer, and no more
        assert any_gpu.launches["batch_norm_apply"] == len(list(norms_of(model)))
        assert sum(any_gpu.launches.values()) <= 3 * len(list(norms_of(model))) + 5  # option A, the end


def test_the_reference_runs_on_the_gpu_too(any_gpu, choose):
    """MINIRES_KERNELS=reference: plain array expressions through CuPy, no kernel of our own."""
    import cupy

    choose("reference")
    x, labels = images(8)
    model = build(20).to("cuda")
    loss = step(model, cupy.asarray(x), cupy.asarray(labels), optim.SGD(model.parameters(), 0.1))
    assert np.isfinite(loss.item())
    assert not set(any_gpu.launches) & {"gemm", "batch_norm_apply", "im2col", "sgd_update"}


def test_arrays_on_different_devices_are_a_clear_error(any_gpu):
    x, _ = images(8)
    model = build(20).to("cuda")
    with pytest.raises(ValueError, match=r"arrays on different devices meet: \(4, 8, 8, 3\) on 'cpu', .* on 'cuda'"):
        model(mr.Tensor(x))
    import cupy

    with pytest.raises(ValueError, match=r"on 'cuda', .* on 'cpu'; move the model or its input by .to\('cuda'\)"):
        build(20)(mr.Tensor(cupy.asarray(x)))
    with pytest.raises(ValueError, match="arrays on different devices meet"):
        F.linear(mr.Tensor(cupy.zeros((2, 3), dtype="float32")), mr.Tensor(np.zeros((3, 4), np.float32)))


def test_what_does_not_exist_on_a_gpu_is_said(choose):
    with pytest.raises(ValueError, match="precision: 'fp8' is unknown, expected one of fp32, tf32, bf16"):
        kernels.use_precision("fp8")


@pytest.mark.parametrize("label", [-1, 10, 1 << 40])
@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_a_label_that_is_no_class_makes_the_loss_nan(any_gpu, choose, label, choice):
    """Nobody looks at labels on the GPU: no foreign memory may be read, and nothing plausible come out."""
    import cupy

    if choice == "reference" and isinstance(any_gpu, simulator.Gpu) and label > 0:
        pytest.skip("NumPy's indices do not wrap around, as CuPy's do")
    choose(choice)
    logits = mr.Tensor(cupy.asarray(np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)))
    logits.requires_grad = True
    loss = F.cross_entropy(logits, cupy.asarray(np.array([3, label, 0, 9])), 0.1)
    assert np.isnan(loss.item())
    loss.backward(cupy.ones((), dtype="float32"))
    if choice == "auto":
        gradient = logits.grad.get()
        assert np.isnan(gradient[1]).all()
        assert np.isfinite(gradient[[0, 2, 3]]).all()


def test_a_numpy_too_old_for_bfloat16_is_said(gpu, monkeypatch):
    """CuPy then lets `use` pass, and fails at the first array."""
    pytest.importorskip("ml_dtypes")
    import cupy

    def empty(shape, dtype):
        raise TypeError("Unsupported dtype bfloat16")

    monkeypatch.setattr(cupy, "empty", empty)
    with pytest.raises(RuntimeError, match=r"'bf16' does not work with this CuPy, simulated \(TypeError: Unsupported"):
        kernels.use_precision("bf16")
    monkeypatch.setattr(np, "__version__", "2.1.1")
    with pytest.raises(
        RuntimeError, match=r"'bf16' needs NumPy 2.1.2 .*Unsupported dtype.* pip install 'numpy>=2.1.2'"
    ):
        kernels.use_precision("bf16")
    assert kernels.default_precision("bf16") == "tf32"


def test_a_gpu_without_tensor_cores_for_it_refuses_tf32_and_bf16():
    if simulator.why_not():
        pytest.skip(str(simulator.why_not()))
    for capability, default in (((7, 5), "fp32"), ((8, 0), "tf32"), ((12, 0), "tf32")):
        with simulator.gpu(capability=capability):
            assert mr.cuda.capability() == capability
            assert mr.info()["gpu"]["capability"] == f"{capability[0]}.{capability[1]}"
            assert kernels.default_precision() == kernels.default_precision("no such thing") == default
            assert kernels.default_precision("bf16") == ("fp32" if default == "fp32" else "bf16")
            for precision in ("tf32", "bf16"):
                if default == "fp32":
                    with pytest.raises(RuntimeError, match=f"'{precision}' needs .* 8.0 .* has 7.5; use 'fp32'"):
                        kernels.use_precision(precision)
                else:
                    kernels.use_precision(precision)
                kernels.use_precision("fp32")
    assert kernels.default_precision() == "tf32" or mr.cuda.is_available()


def test_an_optimiser_goes_on_when_the_kernels_are_changed(any_gpu):
    """The learning rate is a number for the reference, and an array on the device for CUDA."""
    p = nn.Parameter(np.ones(3, np.float32))
    p.data = mr.device.to_device(p.data, "cuda")
    optimizer = optim.SGD([p], lr=0.25)
    for choice in ("reference", "auto", "reference", "auto"):
        kernels.use(choice)
        p.grad = mr.device.to_device(np.ones(3, np.float32), "cuda")
        optimizer.step()
    kernels.use("auto")
    assert mr.device.to_device(p.data, "cpu").tolist() == [0, 0, 0]
