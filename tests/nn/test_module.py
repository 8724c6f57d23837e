"""Module: what it finds, how its state is named, laid out, saved and loaded."""

from __future__ import annotations

import pickle
from contextlib import nullcontext

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import Tensor, cuda, kernels, models, nn, optim
from minires.models.pretrained import Zeros
from minires.testing import kink_free_array


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (3, 2), padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.note = "no state"

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), nn.Identity())
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.fc = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.global_avg_pool2d(self.body(x)) * self.scale)


STATE = {  # PyTorch's order: a module's own parameters first, then its children's
    "scale": (4,),
    "body.0.conv.weight": (4, 3, 3, 2),  # OIHW
    "body.0.conv.bias": (4,),
    "body.0.bn.weight": (4,),
    "body.0.bn.bias": (4,),
    "body.0.bn.running_mean": (4,),
    "body.0.bn.running_var": (4,),
    "body.0.bn.num_batches_tracked": (),
    "fc.weight": (2, 4),  # (out, in)
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def net() -> Net:
    net = Net()
    for i, parameter in enumerate(net.parameters()):
        parameter.data[...] = kink_free_array(parameter.shape, i)
    return net


def test_names():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == [n for n in STATE if not n.endswith(BUFFERS)]
    assert list(net.parameters()) == [parameter for _, parameter in net.named_parameters()]
    names = ["", "body", "body.0", "body.0.conv", "body.0.bn", "body.1", "fc"]
    assert [name for name, _ in net.named_modules()] == names
    assert list(net.modules()) == [module for _, module in net.named_modules()]
    assert [name for name, _ in net.named_children()] == ["body", "fc"]


def test_a_replaced_layer_takes_the_place_of_the_old_one():
    net = Net()
    net.fc = nn.Linear(net.fc.in_features, 10)
    assert {name: parameter.shape for name, parameter in net.named_parameters()}["fc.weight"] == (4, 10)
    assert net.state_dict()["fc.bias"].shape == (10,)
    net.fc = nn.Identity()
    assert not any(name.startswith("fc") for name in net.state_dict())
    net.scale = None
    assert "scale" not in net.state_dict()


def test_a_parameter_used_in_two_places_is_listed_once():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [name for name, _ in tied.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert set(tied.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    optim.SGD(tied.parameters(), lr=0.1)  # which refuses parameters listed twice


# The state


def test_state_dict_has_pytorchs_names_and_layouts(net):
    state = net.state_dict()
    assert {name: array.shape for name, array in state.items()} == STATE
    assert list(state) == list(STATE)
    conv, fc = net.body[0].conv.weight.data, net.fc.weight.data
    for (o, i, h, w), value in np.ndenumerate(state["body.0.conv.weight"]):
        assert value == conv[h, w, i, o]
    np.testing.assert_array_equal(state["fc.weight"], fc.T)
    assert state["body.0.bn.num_batches_tracked"].dtype == np.int64
    assert all(array.flags.c_contiguous for array in state.values())


def test_state_dict_holds_copies(net):
    before = net.state_dict()
    changed = net.state_dict()
    for array in changed.values():
        array[...] = 7
    after = net.state_dict()
    assert all((before[name] == after[name]).all() for name in STATE)


def test_a_state_dict_loads_into_another_net_which_then_computes_the_same(net):
    x = Tensor(kink_free_array((2, 5, 4, 3)).astype(np.float32))
    net(x)  # moves the running statistics
    other = Net()
    other.load_state_dict(net.state_dict())
    net.eval(), other.eval()
    np.testing.assert_array_equal(net(x).data, other(x).data)
    assert other.body[0].bn.num_batches_tracked == 1
    assert other.body[0].bn.num_batches_tracked.dtype == np.int64
    assert all((other.state_dict()[name] == array).all() for name, array in net.state_dict().items())


def test_loading_is_in_place(net):
    """The optimiser's flat buffer stays where the parameters are."""
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    arrays = [parameter.data for parameter in net.parameters()]
    mean = net.body[0].bn.running_mean
    net.load_state_dict({name: np.full(shape, 3) for name, shape in STATE.items()})
    assert all(parameter.data is array for parameter, array in zip(net.parameters(), arrays))
    assert net.body[0].bn.running_mean is mean
    assert (optimizer.flat == 3).all()
    assert mean.tolist() == [3] * 4
    assert optimizer.flat.dtype == mean.dtype == np.float32


def test_strict_loading_lists_everything_that_is_wrong_and_changes_nothing(net):
    before = net.state_dict()
    state = {**before, "head.weight": np.ones(3), "fc.weight": np.ones((3, 4)), "scale": np.ones(1)}
    del state["body.0.conv.bias"], state["body.0.bn.running_var"]
    with pytest.raises(ValueError, match="the state does not fit Net") as caught:
        net.load_state_dict(state)
    message = str(caught.value)
    assert "missing: body.0.conv.bias, body.0.bn.running_var" in message
    assert "unexpected: head.weight" in message
    assert "misshapen: scale has shape (1,), expected (4,), fc.weight has shape (3, 4), expected (2, 4)" in message
    assert all((net.state_dict()[name] == array).all() for name, array in before.items())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("fc.weight", np.full((2, 4), "text")),
        ("body.0.bn.num_batches_tracked", np.array(np.nan)),
        ("body.0.bn.num_batches_tracked", np.array(1e300)),
        ("body.0.bn.num_batches_tracked", np.array(2.5)),
        ("body.0.bn.running_var", np.full(4, "x")),
    ],
)
def test_loading_what_is_no_number_changes_nothing(net, name, array):
    before = net.state_dict()
    state = {other: np.full(shape, 3) for other, shape in STATE.items()}
    with pytest.raises(ValueError, match=f"load_state_dict: {name}: "):
        net.load_state_dict({**state, name: array})
    assert all((net.state_dict()[other] == value).all() for other, value in before.items())


def test_loading_that_is_not_strict_takes_what_there_is(net):
    before = net.state_dict()
    net.load_state_dict({"fc.weight": np.ones((2, 4)), "head.weight": np.ones(3)}, strict=False)
    assert (net.fc.weight.data == 1).all()
    assert all((net.state_dict()[name] == array).all() for name, array in before.items() if name != "fc.weight")
    with pytest.raises(ValueError, match=r"misshapen: fc.weight has shape \(3, 4\)"):
        net.load_state_dict({"fc.weight": np.ones((3, 4)), "scale": np.zeros(4)}, strict=False)
    assert net.scale.data.any()


def test_a_state_from_before_there_were_counters(net):
    """PyTorch before 0.4.1 had no num_batches_tracked, and its files are still about. Some, but not all, is a fault."""
    net.body[0].bn.num_batches_tracked[...] = 5
    state = {name: array for name, array in net.state_dict().items() if "num_batches" not in name}
    net.load_state_dict(state)
    assert net.body[0].bn.num_batches_tracked == 0
    with pytest.raises(ValueError, match=r"missing: body.0.bn.num_batches_tracked"):
        net.load_state_dict({**state, "head.num_batches_tracked": np.array(3)})


# Modes, freezing, devices


def test_train_and_eval_reach_every_module():
    net = Net()
    assert all(module.training for module in net.modules())
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    net.body.train()
    assert [name for name, module in net.named_modules() if not module.training] == ["", "fc"]


def test_evaluating_gives_every_module_its_mode_back():
    net = Net()
    net.body.eval()
    modes = {module: module.training for module in net.modules()}
    with net.evaluating():
        assert not any(module.training for module in net.modules())
    assert {module: module.training for module in net.modules()} == modes


def test_a_move_to_where_it_is_changes_nothing():
    net = Net()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    net(Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32))).sum().backward()
    before = net.state_dict()
    net.to("cpu")
    optimizer.step()
    assert any(not np.array_equal(array, before[name]) for name, array in net.state_dict().items())


def test_requires_grad_freezes_and_zero_grad_forgets():
    net = Net()
    net.body.requires_grad_(False)
    x = Tensor(kink_free_array((2, 5, 4, 3)).astype(np.float32))
    net(x).backward(np.ones((2, 2)))
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["scale", "fc.weight"]
    net.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())
    net.requires_grad_()
    net(x).backward(np.ones((2, 2)))
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_to_an_unusable_device_is_an_error_and_changes_nothing():
    net = Net()
    weight = net.fc.weight.data
    with pytest.raises(ValueError, match="'tpu' is unknown"):
        net.to("tpu")
    if not cuda.is_available():
        with pytest.raises(RuntimeError, match="device 'cuda' is not usable"):
            net.to("cuda")
    assert net.to("cpu") is net
    assert net.fc.weight.data is weight


@pytest.mark.gpu
def test_moving_to_the_gpu_and_back(net):
    before = net.state_dict()
    x = kink_free_array((2, 5, 4, 3)).astype(np.float32)
    expected = net.eval()(Tensor(x)).data
    net.to("cuda")
    assert {parameter.device for parameter in net.parameters()} == {"cuda"}
    np.testing.assert_allclose(net(Tensor(x).to("cuda")).numpy(), expected, rtol=1e-4, atol=1e-5)
    net.to("cpu")
    assert all((net.state_dict()[name] == array).all() for name, array in before.items())


# Observing and printing


def test_observe_sees_every_call_innermost_first():
    net, calls = Net(), []
    x = Tensor(np.zeros((1, 4, 4, 3), np.float32))
    with nn.observe(
        lambda module, inputs, output: calls.append((type(module).__name__, inputs[0].shape, output.shape))
    ):
        net(x)
    net(x)
    assert calls == [
        ("Conv2d", (1, 4, 4, 3), (1, 4, 5, 4)),
        ("BatchNorm2d", (1, 4, 5, 4), (1, 4, 5, 4)),
        ("Block", (1, 4, 4, 3), (1, 4, 5, 4)),
        ("Identity", (1, 4, 5, 4), (1, 4, 5, 4)),
        ("Sequential", (1, 4, 4, 3), (1, 4, 5, 4)),
        ("Linear", (1, 4), (1, 2)),
        ("Net", (1, 4, 4, 3), (1, 2)),
    ]


def test_observers_nest_and_go_when_an_error_passes():
    layer, seen = nn.Identity(), []
    with nn.observe(lambda *_: seen.append("outer")):
        with nn.observe(lambda *_: seen.append("inner")):
            layer(1)
        with pytest.raises(KeyError), nn.observe(lambda *_: seen.append("never")):
            raise KeyError
        layer(1)
    layer(1)
    assert seen == ["outer", "inner", "outer"]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.MaxPool2d(3, 2, 1), "MaxPool2d(kernel_size=3, stride=2, padding=1)"),
        (nn.Dropout(0.25), "Dropout(p=0.25)"),
        (nn.Upsample(2), "Upsample(scale_factor=2, mode='nearest')"),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss(weight=None, ignore_index=-100, label_smoothing=0.0)"),
    ],
)
def test_repr_shows_the_settings(layer, text):
    assert repr(layer) == text


def test_repr_shows_the_tree():
    assert repr(Net()) == (
        "Net(\n"
        "  (body): Sequential(\n"
        "    (0): Block(\n"
        "      (conv): Conv2d(3, 4, kernel_size=(3, 2), stride=1, padding=1, dilation=1, groups=1, bias=True)\n"
        "      (bn): BatchNorm2d(4, eps=1e-05, momentum=0.1)\n"
        "    )\n"
        "    (1): Identity()\n"
        "  )\n"
        "  (fc): Linear(4, 2, bias=False)\n"
        ")"
    )


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module does not define forward"):
        nn.Module()(1)


# The layer at fault is named by its path.


def test_a_wrong_shape_names_the_layer(net):
    net.body[0].conv = nn.Conv2d(5, 4, 3)
    with pytest.raises(ValueError, match=r"^body.0.conv \(Conv2d\): conv2d: input has 3 channels"):
        net(Tensor(np.zeros((2, 6, 6, 3), np.float32)))
    with pytest.raises(ValueError, match=r"^0.conv \(Conv2d\): conv2d: input has 3 channels"):
        net.body(Tensor(np.zeros((2, 6, 6, 3), np.float32)))
    with pytest.raises(ValueError, match=r"^conv2d: input has 3 channels"):  # there is no path to the layer itself
        net.body[0].conv(Tensor(np.zeros((2, 6, 6, 3), np.float32)))


def test_an_error_of_a_layer_of_ones_own_names_it_too(net):
    class Broken(nn.Module):
        def forward(self, x):
            return x @ np.ones((99, 2))

    net.body = nn.Sequential(nn.Identity(), Broken())
    with pytest.raises(ValueError, match=r"^body.1 \(Broken\): "):
        net(Tensor(np.zeros((2, 6, 6, 3), np.float32)))


def test_errors_without_one_text_are_left_alone(net):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("a text", 2)

    net.fc = Broken()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        net(Tensor(np.zeros((2, 6, 6, 3), np.float32)))
    assert error.value.args == ("a text", 2)


@pytest.mark.parametrize("kernels_in_use", ["auto", "reference"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (lambda model: setattr(model, "conv1", nn.Conv2d(1, 64, 3, bias=False)), "conv1"),
        (lambda model: setattr(model.layer3[1], "conv2", nn.Conv2d(9, 256, 3, bias=False)), "layer3.1.conv2"),
        (lambda model: setattr(model.layer2[0].downsample, "0", nn.Conv2d(9, 128, 1, 2)), "layer2.0.downsample.0"),
        (lambda model: setattr(model.layer4[0], "bn1", nn.BatchNorm2d(7)), "layer4.0.bn1"),
        (lambda model: setattr(model, "fc", nn.Linear(9, 10)), "fc"),
    ],
)  # fmt: skip
def test_a_fused_branch_names_the_layer_too(spoil, path, training, kernels_in_use):
    model = models.resnet18(10, "cifar", generator=Zeros()).train(training)
    spoil(model)
    kernels.use(kernels_in_use)
    try:
        with nullcontext() if training else mr.no_grad(), pytest.raises(ValueError, match=rf"^{path} \(\w+\): "):
            model(Tensor(np.zeros((2, 16, 16, 3), np.float32)))
    finally:
        kernels.use("auto")


def test_images_as_bytes_and_as_an_array_name_the_first_layer():
    for images in (Tensor(np.zeros((2, 32, 32, 3), np.uint8)), np.zeros((2, 32, 32, 3), np.float32)):
        with pytest.raises(TypeError, match=r"^conv1 \(Conv2d\): conv2d: input (has dtype uint8|is of type ndarray), "):
            models.resnet20()(images)
    with pytest.raises(TypeError, match="linear: input is of type ndarray"):
        nn.Linear(3, 2)(np.zeros((2, 3), np.float32))


def test_a_list_of_layers_is_warned_of():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)
            self.blocks = [nn.Linear(2, 2)]
            self.known = (self.head, self.head.weight)  # a second name for what is part of the network

    with pytest.warns(
        UserWarning, match="Net.blocks is a list: the Linear in it will not be trained; use nn.ModuleList"
    ) as found:
        list(Net().parameters())
    assert len(found) == 1
    assert found[0].filename == __file__  # where the parameters were asked for
    with pytest.warns(UserWarning, match=r"^0.blocks is a list") as found:
        optim.SGD(nn.Sequential(Net()).parameters(), lr=0.1)
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ([(nn.Linear(2, 2), nn.Linear(2, 2))], "is a list: the Linear in it"),
        ({"a": [nn.Linear(2, 2)]}, "is a dict: the Linear in it"),
        ([nn.Parameter(np.ones(2, np.float32))], "the Parameter in it will not be trained; make it an attribute"),
    ],
)
def test_containers_in_containers_are_looked_into(hidden, said):
    layer = nn.Identity()
    layer.hidden = hidden
    with pytest.warns(UserWarning, match=said):
        layer.parameters()


def test_a_parameter_is_not_replaced_by_a_tensor_or_an_array():
    layer = nn.Linear(3, 2)
    for value in (np.zeros((3, 2), np.float32), Tensor(np.zeros((3, 2), np.float32), requires_grad=True)):
        with pytest.raises(TypeError, match=r"weight is a Parameter, a .* is not trained: assign nn.Parameter"):
            layer.weight = value
    layer.weight = nn.Parameter(np.zeros((3, 2), np.float32))
    layer.bias = None
    assert list(layer.state_dict()) == ["weight"]


def test_a_text_that_somebody_changed_is_left_alone(net):
    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(9, 2)

        def forward(self, x):
            try:
                return self.inner(x)
            except ValueError as error:
                error.args = (f"while in step 7: {error}",)
                raise

    net.fc = Middle()
    with pytest.raises(ValueError, match=r"^while in step 7: inner \(Linear\)|^while in step 7: linear"):
        net(Tensor(np.zeros((2, 6, 6, 3), np.float32)))


def test_an_error_of_another_class_and_one_raised_twice(net):
    class Missing(ValueError):
        def __str__(self):
            return f"field {self.args[0]!r} is missing"

    shared = ValueError("shared")

    class Raises(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def forward(self, x):
            raise self.error

    with pytest.raises(Missing, match=r"^field 'image' is missing$"):
        nn.Sequential(Raises(Missing("image")))(1)
    with pytest.raises(ValueError, match=r"^0 \(Raises\): shared"):
        nn.Sequential(Raises(shared))(1)
    with pytest.raises(ValueError, match=r"^1 \(Raises\): shared"):
        nn.Sequential(nn.Identity(), Raises(shared))(1)


def test_an_error_can_be_pickled_without_the_layer():
    with pytest.raises(ValueError, match="conv1") as caught:
        models.resnet20()(Tensor(np.zeros((2, 8, 8, 5), np.float32)))
    content = pickle.dumps(caught.value)
    assert len(content) < 2000
    assert str(pickle.loads(content)) == str(caught.value)
