"""Files of real PyTorch: read by minires, and its own read by PyTorch."""

from __future__ import annotations

import collections
import importlib
import time
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires import models

torch = pytest.importorskip("torch", reason="PyTorch is not installed (optional: pip install torch)")
pytestmark = pytest.mark.torch
twins = importlib.import_module("examples.measure.torch_networks")

LAYOUTS = [pytest.param(True, id="zip"), pytest.param(False, id="legacy")]


@pytest.fixture(params=LAYOUTS)
def save(request, tmp_path):
    """torch.save in either layout; the path."""

    def save(content, **options) -> Path:
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param, **options)
        return path

    return save


def quiet(line: str) -> None:
    raise AssertionError(f"said {line!r}")


def trained(depth: int, stem: str, num_classes: int):
    """A network in PyTorch whose statistics are those of data, not of a new network."""
    torch.manual_seed(depth)
    model = twins.build(depth, stem, num_classes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        model.train()
        for _ in range(2):
            model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module", params=[18, 50, 101])
def network(request):
    depth = request.param
    model = trained(depth, "imagenet", 1000)
    images = np.random.default_rng(0).standard_normal((3, 96, 96, 3)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return depth, model, images, logits


def test_logits_and_top_5_of_a_network_are_pytorchs(network, save):
    """Within 1e-4 relative, element by element against the largest logit; the first five classes in the same order."""
    depth, theirs, images, expected = network
    path = save(theirs.state_dict())
    ours = getattr(models, f"resnet{depth}")(weights=path)
    with mr.no_grad():
        logits = ours.eval()(mr.Tensor(images)).numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.linalg.norm(logits - expected) < 1e-4 * np.linalg.norm(expected)
    np.testing.assert_array_equal(np.argsort(-logits, axis=1)[:, :5], np.argsort(-expected, axis=1)[:, :5])
    assert np.ptp(expected, axis=1).min() > 0.1  # not five equal numbers


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_a_network_there_and_back_is_the_same_bits(network, save, tmp_path, suffix):
    """torch.save, load_weights, a model, save_weights, torch.load into torch's own model."""
    depth, theirs, _, _ = network
    ours = getattr(models, f"resnet{depth}")(weights=save(theirs.state_dict()))
    path = tmp_path / f"ours{suffix}"
    mr.save_weights(ours, path)
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)
        assert isinstance(state, collections.OrderedDict)
    else:
        state = {name: torch.from_numpy(array) for name, array in mr.load_weights(path).items()}
    again = twins.build(depth, "imagenet", 1000)
    again.load_state_dict(state)  # strict
    for name, tensor in theirs.state_dict().items():
        found = again.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name


def test_resnet101_loads_within_a_second(tmp_path):
    for new in (True, False):
        path = tmp_path / f"{new}.pth"
        torch.save(twins.build(101, "imagenet", 1000).state_dict(), path, _use_new_zipfile_serialization=new)
        assert path.stat().st_size > 178e6
        model = models.resnet101()
        model.load_state_dict(mr.load_weights(path))  # warm
        start = time.process_time()  # other programs do not count
        model.load_state_dict(mr.load_weights(path))
        assert time.process_time() - start < 1


DTYPES = [
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_there_and_back(save, tmp_path, dtype):
    tensor = (torch.arange(6).reshape(2, 3) * 3).to(getattr(torch, dtype))
    state = {"t": tensor, "scalar": tensor[1, 1], "empty": tensor[:0], "Größe": tensor}
    found = mr.load_weights(save(state), log=quiet)
    assert found["t"].dtype == dtype
    for name, expected in state.items():
        np.testing.assert_array_equal(found[name], expected.numpy())
        assert found[name].shape == tuple(expected.shape)
    mr.save_weights(found, tmp_path / "ours.pth")
    for name, again in torch.load(tmp_path / "ours.pth", weights_only=True).items():
        assert again.dtype == tensor.dtype
        assert torch.equal(again, state[name])


def test_bfloat16_becomes_float32(save):
    tensor = torch.randn(1000).bfloat16()
    found = mr.load_weights(save({"a": tensor, "b": tensor[3:7], "c": tensor.reshape(10, 100).t()}))
    assert found["a"].dtype == np.float32
    np.testing.assert_array_equal(found["a"], tensor.float().numpy())
    np.testing.assert_array_equal(found["b"], tensor[3:7].float().numpy())
    np.testing.assert_array_equal(found["c"], tensor.reshape(10, 100).t().float().numpy())


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_types_without_a_storage_of_their_own(tmp_path, dtype):
    tensor = torch.arange(6).to(getattr(torch, dtype)).reshape(2, 3)
    torch.save({"a": tensor, "b": tensor[1:]}, tmp_path / "x.pth")
    found = mr.load_weights(tmp_path / "x.pth")
    assert found["a"].dtype == dtype
    np.testing.assert_array_equal(found["a"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(found["b"], [[3, 4, 5]])


def test_types_that_numpy_does_not_have(tmp_path):
    torch.save({"a": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "x.pth")
    with pytest.raises(mr.WeightsError, match=r"asks for torch\.float8_e4m3fn"):
        mr.load_weights(tmp_path / "x.pth")


def test_views_strides_offsets_and_shared_storages(save):
    base = torch.randn(60)
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state = {
        "base": base, "offset": base[7:], "step": base[3::4], "transposed": base.reshape(6, 10).t(),
        "corner": base.reshape(3, 4, 5)[1:, ::2, 1:4], "expanded": base[:3].expand(4, 3), "channels_last": image,
        "scalar": base[5],
    }  # fmt: skip
    found = mr.load_weights(save(state), log=quiet)
    for name, expected in state.items():
        np.testing.assert_array_equal(found[name], expected.numpy(), err_msg=name)
    found["base"][7] = 100
    assert found["offset"][0] == found["transposed"][7, 0] == 100


def test_parameters_a_wrapper_and_a_prefix(save):
    """A checkpoint of a training run with DataParallel: epoch, optimiser, and module. before every name."""
    model = torch.nn.DataParallel(twins.build(20))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {"epoch": 7, "best": 91.2, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    lines: list[str] = []
    path = save(content)
    state = mr.load_weights(path, strip_prefix=True, log=lines.append)
    ours = models.resnet20()
    ours.load_state_dict(state)
    np.testing.assert_array_equal(ours.state_dict()["fc.bias"], model.module.fc.bias.detach().numpy())
    assert "taking the weights under 'state_dict'; not read: 'epoch', 'best', 'optimizer'" in lines[0]
    assert "took 'module.' from the beginning of" in lines[1]

    found = mr.load_weights(save(dict(twins.build(20).named_parameters())), log=quiet)  # Parameters, not tensors
    assert found["conv1.weight"].shape == (16, 3, 3, 3)


def test_an_akamaster_checkpoint(save):
    """As github.com/akamaster/pytorch_resnet_cifar10 writes it: DataParallel's prefix, linear, no batch counters."""
    theirs = trained(20, None, 10)
    state = collections.OrderedDict()
    for name, tensor in theirs.state_dict().items():
        if "num_batches_tracked" not in name:
            state["module." + name.replace("fc.", "linear.")] = tensor
    ours = models.resnet20(weights=save({"state_dict": state, "best_prec1": 91.73}))
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    with torch.no_grad(), mr.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        logits = ours.eval()(mr.Tensor(images)).numpy()
    assert np.linalg.norm(logits - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(save, protocol):
    state = twins.build(20).state_dict()
    found = mr.load_weights(save(state, pickle_protocol=protocol), log=quiet)
    assert list(found) == list(state)
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in state.items())


def test_a_whole_pickled_model_is_refused_by_name(save):
    with pytest.raises(mr.WeightsError, match=r"asks for torch\.nn\.modules\.(container\.Sequential|linear\.Linear)"):
        mr.load_weights(save(torch.nn.Sequential(torch.nn.Linear(2, 2))))


def test_a_traced_program_is_refused_by_name(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(mr.WeightsError, match="is a TorchScript program"):
        mr.load_weights(tmp_path / "x.pt")


def test_our_files_can_be_mapped_by_pytorch(tmp_path):
    """Storages begin at multiples of 64 bytes."""
    mr.save_weights({f"layer{i}.weight": np.full(i + 1, i, np.float32) for i in range(20)}, tmp_path / "x.pth")
    state = torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)
    for i, tensor in enumerate(state.values()):
        assert torch.equal(tensor, torch.full((i + 1,), float(i)))
        assert tensor.data_ptr() % 64 == 0
