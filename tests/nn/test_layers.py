"""The layers: gradients with respect to input and parameters, settings, state."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor, kernels, models, nn
from minires.testing import check_layer, conv_geometries, image_shapes, kink_free_array, pool_geometries, shapes

TWO_OR_MORE = image_shapes(channels=3).filter(lambda shape: shape[0] * shape[1] * shape[2] >= 2)


@given(geometry=conv_geometries(), bias=st.booleans())
def test_conv2d(geometry, bias):
    check_layer(
        lambda: nn.Conv2d(
            geometry.x_shape[3], geometry.weight_shape[3], geometry.weight_shape[:2], bias=bias, **geometry.options
        ),
        geometry.x_shape,
    )


def test_batch_norm():
    check_layer(lambda: nn.BatchNorm2d(3), TWO_OR_MORE)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    check_layer(lambda: nn.Linear(3, 4, bias), shapes(max_dims=3).map(lambda shape: (*shape[:-1], 3)))


@pytest.mark.parametrize("layer", [nn.ReLU, nn.Flatten, nn.Identity, lambda: nn.Dropout(0.3)])
def test_layers_without_parameters(layer):
    check_layer(layer, shapes())


@pytest.mark.parametrize("layer", [nn.MaxPool2d, nn.AvgPool2d])
@given(geometry=pool_geometries())
def test_pooling(layer, geometry):
    check_layer(lambda: layer(**geometry.options), geometry.x_shape)


def test_global_avg_pool2d():
    check_layer(nn.GlobalAvgPool2d, image_shapes())


def test_a_small_network_of_all_layers():
    check_layer(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, generator=np.random.default_rng(0)),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2, stride=1),
            nn.AvgPool2d(2),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        (2, 6, 5, 2),
    )


class Residual(nn.Module):
    """A basic block, as models/ has it."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = True) -> Tensor:
        return nn.branch(x, [(self.conv1, self.bn1), (self.conv2, self.bn2)], shortcut, relu)


@pytest.mark.parametrize(
    "call",
    [
        lambda block, x: block(x),
        lambda block, x: block(x, relu=False),
        lambda block, x: block(x, x),
        lambda block, x: block(x, x * x),
        lambda block, x: block(x, x, relu=False),
    ],
)
def test_a_residual_block(call):
    check_layer(lambda: Residual(2), (2, 4, 3, 2), call=call)


def test_a_branch_is_the_equation_of_the_paper():
    block = Residual(2)
    x = Tensor(kink_free_array((2, 4, 3, 2)))  # float64: the definition
    h = F.relu(block.bn1(block.conv1(x)))
    expected = F.relu(block.bn2(block.conv2(h)) + x)
    np.testing.assert_array_equal(
        nn.branch(x, [(block.conv1, block.bn1), (block.conv2, block.bn2)], x).data, expected.data
    )


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 4, 3, 1), (2, 4, 3, 3)])
@pytest.mark.parametrize("way", ["fused", "reference", "frozen", "observed", "evaluation"])
def test_a_shortcut_of_another_shape_is_refused_however_the_branch_is_computed(way, shape):
    block, x = Residual(2), Tensor(np.ones((2, 4, 3, 2), np.float32), requires_grad=True)
    if way == "frozen":
        nn.freeze_batch_norm(block)
    if way == "evaluation":
        block.eval()
    kernels.use("reference" if way == "reference" else "auto")
    try:
        with (
            nn.observe(lambda *_: None) if way == "observed" else nullcontext(),
            pytest.raises(
                ValueError, match=r"nn.branch: the shortcut has shape \(2, .*\), the branch ends in \(2, 4, 3"
            ),
        ):
            block(x, Tensor(np.ones(shape, np.float32)))
    finally:
        kernels.use("auto")


def test_an_array_is_no_input_of_a_branch():
    with pytest.raises(
        TypeError, match=r"conv1 \(Conv2d\): conv2d: input is of type ndarray, expected a Tensor: wrap it, Tensor\(x\)"
    ):
        Residual(2)(np.ones((2, 4, 3, 2), np.float32))


def test_a_counter_that_is_no_array_is_an_error():
    bn = nn.BatchNorm2d(2)
    bn.num_batches_tracked = 0
    with pytest.raises(TypeError):
        bn(Tensor(np.ones((2, 3, 3, 2), np.float32)))
    with pytest.raises(ValueError, match="num_batches_tracked: the buffer is of type int, expected an array"):
        bn.load_state_dict(nn.BatchNorm2d(2).state_dict())


# Settings and state


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.Conv2d(3, 4, (3, 2), 2, 1, 2), lambda x, m: F.conv2d(x, m.weight, m.bias, 2, 1, 2)),
        (nn.Conv2d(3, 6, 3, groups=3, bias=False), lambda x, m: F.conv2d(x, m.weight, groups=3)),
        (nn.MaxPool2d(3, 2, 1), lambda x, m: F.max_pool2d(x, 3, 2, 1)),
        (nn.AvgPool2d(3, 2, 1), lambda x, m: F.avg_pool2d(x, 3, 2, 1)),
        (nn.MaxPool2d(2), lambda x, m: F.max_pool2d(x, 2)),
        (nn.Linear(3, 5), lambda x, m: F.linear(x, m.weight, m.bias)),
    ],
)
def test_a_layer_is_its_function_with_its_settings(layer, function):
    x = Tensor(kink_free_array((2, 8, 9, 3)).astype(np.float32))
    np.testing.assert_array_equal(layer(x).data, function(x, layer).data)


def test_batch_norm_moves_its_statistics_in_training_only():
    bn = nn.BatchNorm2d(2, momentum=0.5)
    x = Tensor(kink_free_array((3, 4, 5, 2)).astype(np.float32))
    values = x.data.reshape(-1, 2).astype(np.float64)
    bn(x)
    np.testing.assert_allclose(bn.running_mean, 0.5 * values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bn.running_var, 0.5 + 0.5 * values.var(0, ddof=1), rtol=1e-5)
    assert bn.num_batches_tracked == 1
    before = bn.running_mean.copy()
    y = bn.eval()(x)
    np.testing.assert_array_equal(bn.running_mean, before)
    assert bn.num_batches_tracked == 1
    expected = (values - bn.running_mean) / np.sqrt(bn.running_var + 1e-5)
    np.testing.assert_allclose(y.data.reshape(-1, 2), expected, rtol=1e-4, atol=1e-5)
    assert y.dtype == bn.running_mean.dtype == np.float32


def test_dropout_follows_the_mode_and_its_generator():
    x = Tensor(np.ones(1000, np.float32))
    layer = nn.Dropout(0.5, np.random.default_rng(3))
    assert layer.eval()(x) is x
    dropped = layer.train()(x).data
    assert 400 < (dropped == 0).sum() < 600
    np.testing.assert_array_equal(dropped, nn.Dropout(0.5, np.random.default_rng(3))(x).data)


def test_sequential_is_like_a_list():
    layers = [nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)]
    sequential = nn.Sequential(*layers)
    assert len(sequential) == 3
    assert list(sequential) == layers
    assert sequential[0] is layers[0]
    assert sequential[-1] is layers[2]
    with pytest.raises(IndexError):
        sequential[3]
    assert [name for name, _ in sequential.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = Tensor(kink_free_array((2, 3)).astype(np.float32))
    np.testing.assert_array_equal(sequential(x).data, layers[2](F.relu(layers[0](x))).data)
    assert nn.Sequential()(x) is x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(0, 4, 3), "in_channels is 0, expected an integer >= 1"),
        (lambda: nn.Conv2d(3, 4.0, 3), "out_channels is 4.0, expected an integer"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3 and out_channels=4"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "groups=4 must divide"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size is 0"),
        (lambda: nn.Linear(3, -1), "out_features is -1"),
        (lambda: nn.BatchNorm2d(0), "num_features is 0"),
        (lambda: nn.Dropout(1.5), "p is 1.5, expected a probability"),
        (lambda: nn.Linear(3, 4)(Tensor([1.0])), r"linear: input has shape \(1,\)"),
        (lambda: nn.BatchNorm2d(4)(Tensor(np.ones((2, 2, 2, 3)))), r"weight has shape \(4,\), the input"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Frozen batch norm -----------------------------------------------------------------------------------------------


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))


def test_a_frozen_batch_norm_stays_as_it_is_while_the_rest_trains():
    model = small_network()
    model(Tensor(np.random.default_rng(0).standard_normal((2, 5, 5, 3)).astype(np.float32)))  # moves the statistics
    x = Tensor(np.random.default_rng(1).standard_normal((2, 5, 5, 3)).astype(np.float32))
    expected, before = model.eval()(x).numpy(), model.state_dict()
    assert nn.freeze_batch_norm(model) is model
    model.train()
    output = model(x)
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-6)
    output.backward(np.random.default_rng(2).standard_normal(output.shape).astype(np.float32))
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())

    nn.freeze_batch_norm(model, frozen=False)
    output = model(x)
    assert not np.allclose(output.numpy(), expected)
    output.backward(np.ones(output.shape, np.float32))
    assert model[1].weight.grad is not None
    assert not np.array_equal(model[1].running_mean, before["1.running_mean"])


def test_the_gradient_through_a_frozen_batch_norm():
    check_layer(lambda: nn.freeze_batch_norm(nn.BatchNorm2d(3)), image_shapes(channels=3))


def test_a_frozen_residual_network_trains_as_in_evaluation():
    """On every backend: the fused branches must not move a frozen norm's statistics either."""
    model = nn.freeze_batch_norm(models.resnet20(generator=np.random.default_rng(0)))
    x = Tensor(np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32))
    before = model.state_dict()
    logits = model.train()(x)
    np.testing.assert_allclose(logits.numpy(), model.eval()(x).numpy(), rtol=1e-4, atol=1e-5)
    F.cross_entropy(logits, np.array([1, 2])).backward()
    assert model.conv1.weight.grad is not None
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(1, 4), F.relu), "Sequential: element 1 is not a Module but the function relu"),
        (lambda: nn.Sequential([nn.ReLU()]), r"element 0 is not a Module but a list; .* nn.Sequential\(\*layers\)"),
        (lambda: nn.Sequential({"a": nn.ReLU()}), r"element 0 is not a Module but a dict; .*\(\*layers.values\(\)\)"),
        (lambda: nn.Sequential(nn.Linear), r"element 0 is not a Module but the class Linear; .* Linear\(...\)"),
        (lambda: nn.ModuleList([nn.ReLU(), None]), "ModuleList: element 1 is not a Module but of type NoneType"),
        (lambda: nn.ModuleList([nn.ReLU()]).append(3), "ModuleList: element 1 is not a Module but of type int"),
    ],
)
def test_what_is_no_module_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_module_list_belongs_to_its_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
            self.layers.append(nn.Linear(3, 3))

        def forward(self, x):
            for layer in self.layers:
                x = F.tanh(layer(x))
            return x

    names = [name for name, _ in Net().named_parameters()]
    assert names == [f"layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    assert len(Net().layers) == 3
    assert isinstance(Net().layers[-1], nn.Linear)
    check_layer(Net, (2, 3))
    assert isinstance(Net().layers[1:], nn.ModuleList)
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert layers[:2](Tensor(np.ones((1, 3), np.float32))).shape == (1, 4)
    assert layers[:1][0] is layers[0]
    with pytest.raises(NotImplementedError, match="ModuleList does not define forward"):
        Net().layers(Tensor([1.0]))


@pytest.mark.parametrize("layer", [nn.Tanh, nn.Sigmoid])
def test_nonlinearities(layer):
    check_layer(layer, shapes())


@pytest.mark.parametrize("layer", [lambda: nn.Upsample(2), lambda: nn.Upsample((1, 3))])
def test_upsample(layer):
    check_layer(layer, image_shapes())


@pytest.mark.parametrize("size", [1, (2, 3)])
def test_adaptive_avg_pool2d(size):
    layer = nn.AdaptiveAvgPool2d(size)
    check_layer(lambda: layer, (2, 4, 6, 3))
    x = kink_free_array((2, 4, 6, 3))
    h, w = layer.output_size
    expected = x.reshape(2, h, 4 // h, w, 6 // w, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-12)


def test_adaptive_avg_pool2d_of_another_size():
    with pytest.raises(ValueError, match="AdaptiveAvgPool2d: 3x3 windows do not divide an image of 4x6"):
        nn.AdaptiveAvgPool2d(3)(Tensor(np.zeros((1, 4, 6, 2))))
    assert nn.AdaptiveAvgPool2d(1)(Tensor(np.ones((1, 5, 7, 2)))).shape == (1, 1, 1, 2)


def test_losses_as_layers():
    logits, labels = Tensor(kink_free_array((4, 3))), np.array([0, 2, -1, 1])
    criterion = nn.CrossEntropyLoss(weight=np.array([1.0, 2.0, 3.0]), ignore_index=-1, label_smoothing=0.1)
    expected = F.cross_entropy(logits, labels, 0.1, np.array([1.0, 2.0, 3.0]), -1)
    assert criterion(logits, labels).item() == expected.item()
    assert nn.CrossEntropyLoss()(logits, labels % 3).item() == F.cross_entropy(logits, labels % 3).item()
    target = kink_free_array((4, 3), 1)
    assert nn.MSELoss()(logits, target).item() == F.mse_loss(logits, target).item()
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


@pytest.mark.parametrize("option", [{"padding": "same"}, {"stride": 0}, {"dilation": 0}, {"stride": (1, 2, 3)}])
def test_the_settings_of_a_convolution_are_looked_at_when_it_is_made(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is "):
        nn.Conv2d(1, 2, 3, **option)


def test_a_loss_called_like_a_function():
    with pytest.raises(TypeError, match=r"takes its settings; the loss is nn.CrossEntropyLoss\(\)\(logits, labels\)"):
        nn.CrossEntropyLoss(Tensor(np.zeros((2, 3))), np.array([0, 1]))
    with pytest.raises(TypeError, match="takes its settings"):
        nn.CrossEntropyLoss(weight="balanced")
    with pytest.raises(ValueError, match=r"AdaptiveAvgPool2d: input has shape \(2, 3\), expected \(N,H,W,C\)"):
        nn.AdaptiveAvgPool2d(1)(Tensor(np.zeros((2, 3))))
