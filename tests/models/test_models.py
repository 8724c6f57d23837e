"""Every network against the table its file opens with: parameters, stage sizes, layers; plain twins and features."""

from __future__ import annotations

import re

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import kernels, models, nn
from minires.models import resnet, resnet_cifar
from minires.models.pretrained import Zeros


def parameters(model: nn.Module) -> int:
    return sum(p.size for p in model.parameters())


def table(module) -> list[tuple[str, int]]:
    """(network, the numbers at the end of its line) from a module docstring."""
    lines = [line.split() for line in module.__doc__.splitlines() if re.match(r"\s+resnet\d+ ", line)]
    return [(words[0], [int(w.replace(",", "")) for w in words if re.fullmatch(r"[\d,]{5,}", w)]) for words in lines]


def test_the_tables_are_there():
    assert [name for name, _ in table(resnet)] == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert [name for name, _ in table(resnet_cifar)] == [f"resnet{depth}" for depth in resnet_cifar.DEPTHS]


@pytest.mark.parametrize(("name", "counts"), table(resnet))
def test_parameters_of_the_large_networks(name, counts):
    constructor = getattr(models, name)
    drawn = {"generator": Zeros()}  # nobody looks at the weights, and to draw 60 million takes a second
    assert [parameters(constructor(**drawn)), parameters(constructor(10, stem="cifar", **drawn))] == counts


@pytest.mark.parametrize(("name", "counts"), table(resnet_cifar))
def test_parameters_of_the_small_networks(name, counts):
    assert [parameters(getattr(models, name)())] == counts


@pytest.mark.parametrize("depth", models.DEPTHS)
def test_the_depth_counts_the_layers_with_weights(depth):
    """Convolutions and the linear layer, without the shortcuts' projections, number `depth`."""
    named = models.build(depth, generator=Zeros()).named_modules()
    layers = [name for name, m in named if isinstance(m, (nn.Conv2d, nn.Linear)) and "downsample" not in name]
    assert len(layers) == depth


def stage_sizes(model: nn.Module, size: int) -> list[tuple[int, ...]]:
    with mr.no_grad():
        features = model.eval().features(mr.Tensor(np.zeros((1, size, size, 3), np.float32)))
    return [feature.shape[1:] for feature in features.values()]


def test_resnet101_at_224():
    """The sizes of the paper's table 1, and 44.5 million parameters."""
    summary = mr.summary(models.resnet101(), (224, 224, 3))
    sizes = {row.name: row.output for row in summary.rows}
    assert sizes["conv1"] == (112, 112, 64)
    assert sizes["maxpool"] == (56, 56, 64)
    assert sizes["layer1.2.bn3"] == (56, 56, 256)
    assert sizes["layer2.3.bn3"] == (28, 28, 512)
    assert sizes["layer3.22.bn3"] == (14, 14, 1024)
    assert sizes["layer4.2.bn3"] == (7, 7, 2048)
    assert sizes["fc"] == (1000,)
    assert summary.parameters == 44_549_160
    assert summary.macs == pytest.approx(7.80e9, rel=0.01)  # published: 7.8 GMACs for the stride on the 3x3


@pytest.mark.parametrize(
    ("depth", "stem", "size", "expected"),
    [
        (18, "imagenet", 64, [(16, 16, 64), (8, 8, 128), (4, 4, 256), (2, 2, 512)]),
        (50, "cifar", 32, [(32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048)]),
        (20, None, 32, [(32, 32, 16), (16, 16, 32), (8, 8, 64)]),
        (18, "cifar", 33, [(33, 33, 64), (17, 17, 128), (9, 9, 256), (5, 5, 512)]),  # a size no stride divides
    ],
)
def test_features(depth, stem, size, expected):
    assert stage_sizes(models.build(depth, stem=stem), size) == expected


@pytest.mark.parametrize(
    ("depth", "stem", "output_stride", "steps"),
    [
        (18, "imagenet", 16, {"c4": 1, "c5": 2}),
        (18, "imagenet", 8, {"c4": 2, "c5": 4}),
        (50, "imagenet", 16, {"c4": 1, "c5": 2}),
        (50, "imagenet", 8, {"c4": 2, "c5": 4}),
        (18, "cifar", 2, {"c4": 2, "c5": 4}),
    ],
)
@pytest.mark.parametrize("kernels_in_use", ["auto", "reference"])
def test_output_stride(depth, stem, output_stride, steps, kernels_in_use):
    """Every second, or fourth, position of a dilated network's features is what the strided one computes there."""
    size = 32 if stem == "imagenet" else 16
    strided = models.build(depth, stem=stem, generator=np.random.default_rng(0)).eval()
    dilated = models.build(depth, stem=stem, output_stride=output_stride, generator=Zeros()).eval()
    dilated.load_state_dict(strided.state_dict())  # the same names and shapes
    x = mr.Tensor(np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32))
    kernels.use(kernels_in_use)
    try:
        with mr.no_grad():
            expected, found = strided.features(x), dilated.features(x)
    finally:
        kernels.use("auto")
    for name, step in {"c2": 1, "c3": 1, **steps}.items():
        assert found[name].shape[1] == step * expected[name].shape[1]
        difference = found[name].numpy()[:, ::step, ::step] - expected[name].numpy()
        assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(expected[name].numpy())
    assert found["c5"].shape[1] == size // output_stride


@pytest.mark.parametrize("depth", [20, 18, 50])
def test_a_plain_network_is_its_resnet_without_shortcuts(depth):
    """The same convolutions in the same order, no projections, and x is not added."""
    plain, residual = models.build(depth, shortcut=False), models.build(depth)
    wanted = [key for key in residual.state_dict() if "downsample" not in key]
    assert list(plain.state_dict()) == wanted
    block = plain.layer1[1]
    nn.init.constant_(block.layers()[-1][1].weight, 0.0)
    channels = block.conv1.in_channels
    x = mr.Tensor(np.ones((2, 4, 4, channels), np.float32))
    assert np.all(block(x).numpy() == 0)  # F(x) = 0 and nothing is added


@pytest.mark.parametrize("depth", [20, 18, 50])
def test_zero_init_makes_a_block_the_identity(depth):
    """With zero gamma, relu(F(x) + x) is relu(x): gradients.md's invariant, on the networks' own blocks."""
    block = models.build(depth, zero_init_last=True).layer1[1]
    x = np.random.default_rng(0).standard_normal((2, 4, 4, block.conv1.in_channels)).astype(np.float32)
    np.testing.assert_array_equal(block(mr.Tensor(x)).numpy(), np.maximum(x, 0))
    *inner, last = (
        norm.weight.data for _, norm in block.layers()
    )  # zeros in an earlier one would do the same at first
    assert not last.any()
    assert all((weight == 1).all() for weight in inner)


def test_option_a_subsamples_and_pads_with_zeros():
    block = resnet_cifar.CifarBlock(16, 32, 2, shortcut=True)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 16)).astype(np.float32)
    y = block.shortcut_of(mr.Tensor(x)).numpy()
    np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
    assert not y[..., :8].any()
    assert not y[..., 24:].any()


def test_generator_and_seed_decide_the_weights():
    first = models.resnet20(generator=np.random.default_rng(3)).state_dict()
    mr.manual_seed(5)
    again = models.resnet20(generator=np.random.default_rng(3)).state_dict()
    mr.manual_seed(5)
    seeded = models.resnet20().state_dict()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["conv1.weight"], seeded["conv1.weight"])


def test_weights_of_a_file(tmp_path):
    trained = models.resnet18(10, "cifar")
    mr.save_weights(trained, tmp_path / "x.safetensors")
    loaded = models.resnet18(10, "cifar", weights=tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded.fc.weight.data, trained.fc.weight.data)


def test_fc_can_be_replaced():
    model = models.resnet18(1000, "cifar")
    model.fc = nn.Linear(model.fc.in_features, 7)
    assert model(mr.Tensor(np.zeros((2, 8, 8, 3), np.float32))).shape == (2, 7)
    assert model.state_dict()["fc.weight"].shape == (7, 512)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build(19), "depth: 19 is unknown, expected one of 20, 32, 44, 56, 110, 1202, 18"),
        (lambda: models.build(20, stem="imagenet"), "stem: ResNet-20 has a stem of its own"),
        (lambda: models.build(18, stem="big"), "stem is 'big', expected one of 'imagenet', 'cifar'"),
        (lambda: models.resnet18(output_stride=4), "output_stride is 4, expected 8, 16 or 32"),
        (lambda: models.resnet18(output_stride=16, stem="cifar"), "output_stride is 16, expected 2, 4 or 8"),
        (lambda: models.CifarResNet(21), r"depth is 21, expected 6n \+ 2"),
        (lambda: models.build(18, num_classes=0), "out_features is 0"),
        (lambda: models.resnet20(in_channels=0), "in_channels is 0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_channels_first_input_is_named():
    with pytest.raises(ValueError, match=r"it looks like \(N,C,H,W\)"):
        models.resnet20()(mr.Tensor(np.zeros((2, 3, 32, 32), np.float32)))


@pytest.mark.parametrize("depth", models.DEPTHS[:1] + models.DEPTHS[6:8])
def test_build_has_the_defaults_of_the_constructor(depth):
    built, constructed = models.build(depth), getattr(models, f"resnet{depth}")()
    assert built.input_shape == constructed.input_shape
    assert {name: p.shape for name, p in built.named_parameters()} == {
        name: p.shape for name, p in constructed.named_parameters()
    }
    assert built.fc.out_features == (10 if depth == 20 else 1000)


@pytest.mark.parametrize("model", [models.resnet20, models.resnet18, models.resnet50])
@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_channels(model, channels, tmp_path):
    grey = model(5, in_channels=channels)
    assert grey.input_shape[2] == channels
    x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 32, 32, channels)).astype(np.float32))
    assert grey(x).shape == (2, 5)
    mr.save_weights(grey, tmp_path / "x.npz")
    again = models.from_weights(tmp_path / "x.npz")
    assert again.input_shape == grey.input_shape
    with mr.no_grad():
        np.testing.assert_array_equal(again.eval()(x).data, grey.eval()(x).data)


def test_grey_pictures_that_were_channels_first():
    """After the transposition that the error advises, the axis of length 1 keeps a stride that means nothing."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((2, 1, 9, 8)).astype(np.float32)
    last = first.transpose(0, 2, 3, 1)
    weight, plain = mr.Tensor(rng.standard_normal((3, 3, 1, 4)).astype(np.float32)), np.array(last, order="C")
    assert last.flags.c_contiguous
    assert last.strides != plain.strides
    for padding in (0, 1):
        y = F.conv2d(mr.Tensor(last), weight, padding=padding)
        np.testing.assert_array_equal(y.data, F.conv2d(mr.Tensor(plain), weight, padding=padding).data)
    model = models.resnet20(in_channels=1, generator=np.random.default_rng(1))
    np.testing.assert_array_equal(model(mr.Tensor(last)).data, model(mr.Tensor(plain)).data)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "ImageNet", True, object()])
def test_torchvisions_spellings_of_weights(weights):
    with pytest.raises(mr.WeightsError, match="torchvision's weights are weights='imagenet' here"):
        models.resnet18(weights=weights)


@pytest.mark.parametrize("model", [models.resnet18, models.resnet20])
def test_pretrained_is_an_older_spelling(model):
    with pytest.raises(TypeError, match="pretrained: torchvision's weights are weights='imagenet' here"):
        model(pretrained=True)
