"""Training on a GPU: recorded steps equal eager ones bit for bit, nothing waits, and the loop sees every loss.

Runs on the simulated GPU everywhere, and on a real one where there is one.
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import cuda, data, kernels, models, nn, optim, train
from minires.cuda.graph import RecordingError
from minires.cuda.step import READ_EVERY, DeviceStep
from minires.optim import schedules
from tests import simulator

STEPS = 20
SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def cupy(request):
    """CuPy: on the simulated GPU, and on a real one."""
    if request.param == "simulated" and simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    with simulator.gpu() if request.param == "simulated" else nullcontext():
        yield importlib.import_module("cupy")


@pytest.fixture
def precision(request):
    """fp32, unless a test asks for another one; put back afterwards."""
    kernels.use_precision(getattr(request, "param", "fp32"))
    yield cuda.precision.current
    kernels.use_precision("fp32")


class Small(nn.Module):
    """Convolutions of both kinds, batch norm, a shortcut, pooling and a classifier: every kernel of a ResNet."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = nn.branch(x, [(self.conv1, self.bn1)])
        x = nn.branch(x, [(self.conv2, self.bn2), (self.conv3, self.bn3)], shortcut=x)
        return self.fc(mr.functional.global_avg_pool2d(x))


def parts(optimizer="sgd", model=Small, seed=0):
    mr.manual_seed(seed)
    model = model().to("cuda")
    if optimizer == "sgd":
        return model, optim.SGD(model.parameters(), 0.1, 0.9, 5e-4, nesterov=True)
    return model, optim.Adam(model.parameters(), 0.01)


def batches(cupy, count, n=4, size=6):
    rng = np.random.default_rng(0)
    for _ in range(count):
        x, y = rng.standard_normal((n, size, size, 3)).astype(np.float32), rng.integers(0, 10, n)
        yield cupy.asarray(x), cupy.asarray(y)


def run(cupy, optimizer, graph, count=STEPS):
    """(state of model and optimiser as bytes, results) after `count` steps at a learning rate that moves."""
    model, optimizer = parts(optimizer)
    step = DeviceStep(model, optimizer, SMOOTHED, graph=graph)
    schedule = schedules.one_cycle(0.1, count)
    with step.active():
        for i, (x, y) in enumerate(batches(cupy, count)):
            step(x, y, schedule(i))
        results = step.read()
    state = {**model.state_dict(), **optimizer.state_dict()}
    return {name: array.tobytes() for name, array in state.items()}, results


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("precision", ["fp32", "tf32"], indirect=True)
def test_recorded_steps_equal_eager_ones_bit_for_bit(cupy, precision, optimizer):
    """20 replayed steps against 20 eager steps: weights, batch-norm statistics, optimiser, losses and accuracies."""
    recorded, eager = run(cupy, optimizer, graph=True), run(cupy, optimizer, graph=False)
    assert recorded == eager
    assert len({loss for loss, _ in recorded[1]}) == STEPS


def test_the_loop_is_given_this_step(cupy):
    assert kernels.part("Step", "cuda") is DeviceStep


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_equals_that_of_the_loop_for_hosts(cupy, weighted):
    """The same as forward, backward, optimizer.step() written out; a loss that looks at the labels goes unrecorded."""
    weight = cupy.asarray(np.linspace(0.5, 2, 10, dtype=np.float32)) if weighted else None
    criterion = partial(F.cross_entropy, label_smoothing=0.1, weight=weight)
    model, optimizer = parts()
    losses = []
    for x, y in batches(cupy, 4):
        loss = criterion(model(mr.Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.lr = 0.1
        optimizer.step()
        losses.append(loss.item())
    other, other_optimizer = parts()
    step = DeviceStep(other, other_optimizer, criterion, graph=False if weighted else None)
    with step.active():
        for x, y in batches(cupy, 4):
            step(x, y, 0.1)
        assert [loss for loss, _ in step.read()] == losses
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[name])
    assert other_optimizer.steps == 4
    assert other.bn1.num_batches_tracked == 4


def test_replays_are_one_launch_and_nothing_waits(cupy):
    if not hasattr(cupy, "_gpu"):
        pytest.skip("only the simulated GPU counts")
    model, optimizer = parts()
    step = DeviceStep(model, optimizer, F.cross_entropy)
    data = list(batches(cupy, 8))
    with step.active():
        for i, (x, y) in enumerate(data):
            cupy._gpu.reset()
            step(x, y, 0.1)
            assert cupy._gpu.synchronisations == 0
            assert not cupy._gpu.copies
            if i > 3:  # input and labels copied, learning rate set, the graph, its result noted
                assert cupy._gpu.launches == {"assign": 2, "set_schedule": 1, "graph": 1, "record_step": 1}


def test_memory_of_the_graph_is_its_own(cupy):
    """What is allocated between replays must not lie where the graph works."""
    model, optimizer = parts()
    step = DeviceStep(model, optimizer, F.cross_entropy)
    kept = []
    with step.active():
        for x, y in batches(cupy, 10):
            step(x, y, 0.1)
            kept.append((cupy.full((4, 6, 6, 8), len(kept), dtype="float32"), len(kept)))
    for array, value in kept:
        assert (array.get() == value).all()


def test_another_batch_size_is_run_eagerly(cupy):
    model, optimizer = parts()
    step = DeviceStep(model, optimizer, F.cross_entropy)
    with step.active():
        for n in (4, 4, 4, 4, 3, 4):
            (batch,) = batches(cupy, 1, n=n)
            step(*batch, 0.1)
        assert len(step.read()) == 6
    assert model.bn1.num_batches_tracked == optimizer.steps == 6


class WithDropout(Small):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)


def test_dropout_is_not_recorded(cupy):
    model, optimizer = parts(model=WithDropout)
    assert DeviceStep(model, optimizer, F.cross_entropy).graph is False
    assert DeviceStep(*parts(), F.cross_entropy).graph is True
    with pytest.raises(ValueError, match="graph: the step cannot be recorded, dropout draws its mask on the host"):
        DeviceStep(model, optimizer, F.cross_entropy, graph=True)


class Waits(Small):
    def forward(self, x):
        y = super().forward(x)
        return y * (1.0 if float(y.data.sum()) == 0.5 else 2.0)  # looks at the GPU


def test_a_step_that_waits_cannot_be_recorded(cupy):
    model, optimizer = parts(model=Waits)
    step = DeviceStep(model, optimizer, F.cross_entropy, graph=True)
    with step.active():
        first, second, third = batches(cupy, 3)
        step(*first, 0.1)
        step(*second, 0.1)
        with pytest.raises(RecordingError, match="the step cannot be recorded as a CUDA graph"):
            step(*third, 0.1)
        assert model.bn1.num_batches_tracked == 2  # capture only takes notes
        step.graph = False  # the stream is usable
        step(*third, 0.1)


def test_where_no_graph_was_asked_for_such_a_step_is_run_without_one_and_says_so_once(cupy):
    """The attempt leaves no trace: weights, statistics, counts and losses are those of steps never recorded."""
    states = []
    for graph in (None, False):
        model, optimizer = parts(model=Waits)
        step = DeviceStep(model, optimizer, F.cross_entropy, graph)
        with step.active(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for x, y in batches(cupy, 6):
                step(x, y, 0.1)
            losses = step.read()
        said = [str(warning.message) for warning in caught]
        assert len(said) == (graph is None)
        assert all("cannot be recorded as a CUDA graph" in text and "kernel by kernel" in text for text in said)
        assert model.bn1.num_batches_tracked == optimizer.steps == 6
        states.append((losses, {name: array.tobytes() for name, array in model.state_dict().items()}))
    assert states[0] == states[1]


def test_an_error_within_active_waits_for_the_gpu_too(cupy):
    if not hasattr(cupy, "_gpu"):
        pytest.skip("only the simulated GPU counts")
    cupy._gpu.reset()

    def interrupted():
        with DeviceStep(*parts(), F.cross_entropy).active():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert cupy._gpu.synchronisations == 2  # on entering and on leaving


def test_out_of_memory_beside_a_graph_leaves_its_memory_alone():
    """A batch of another size runs out of memory; whoever catches that goes on with the recorded step, unharmed."""
    if simulator.why_not():
        pytest.skip(str(simulator.why_not()))
    results = []
    for fails in (False, True):
        with simulator.gpu() as gpu:
            import cupy

            model, optimizer = parts()
            step = DeviceStep(model, optimizer, F.cross_entropy)
            data = list(batches(cupy, 6))
            (large,) = batches(cupy, 1, n=512)
            with step.active():
                for i, (x, y) in enumerate(data):
                    if fails and i == 4:
                        gpu.memory_bytes = gpu.used_bytes
                        with pytest.raises(mr.device.OutOfMemory, match="512 images of 6x6 does not fit beside"):
                            step(*large, 0.1)
                        optimizer.steps -= 1  # it was not made
                        gpu.memory_bytes = 8 << 30
                        poison = [cupy.full((1 << k,), 7, dtype="float32") for k in range(16)]
                    step(x, y, 0.1)
                losses = step.read()
            results.append((losses, {name: a.tobytes() for name, a in model.state_dict().items()}))
    assert len(poison) == 16
    assert results[0] == results[1]


def test_the_loop_trains_on_the_device(cupy):
    """fit with a device Loader: as many losses as steps, the same batches as on the CPU, and a model that learns."""
    images, labels = shapes(96)
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    runs = {}
    for device in ("cpu", "cuda"):
        mr.manual_seed(0)
        kernels.use("reference" if device == "cpu" else "auto")
        try:
            loaders = [
                data.Loader(images, labels, 16, train=t, seed=1, device=device, **options) for t in (True, False)
            ]
            model = Small().to(device)
            training = train.Training(model, optim.SGD(model.parameters(), 0.05, 0.9))
            schedule = schedules.one_cycle(0.05, 18)
            evaluation = train.fit(training, *loaders, schedule, 3, log=lambda text: None)
            runs[device] = training, evaluation
        finally:
            kernels.use("auto")
    (cpu, _), (cuda, evaluation) = runs["cpu"], runs["cuda"]
    assert cuda.step == cpu.step == 18
    np.testing.assert_allclose(cuda.losses, cpu.losses, rtol=1e-3)
    np.testing.assert_allclose(cuda.accuracies, cpu.accuracies, atol=1 / 16)  # an image may be on the edge
    assert max(cuda.accuracies) > 0
    assert [record["step"] for record in cuda.history] == [6, 12, 18]
    assert cuda.losses[-1] < cuda.losses[0]
    assert evaluation.loss == pytest.approx(runs["cpu"][1].loss, rel=1e-2)


def shapes(n):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    images = rng.integers(0, 120, (n, 8, 8, 3), dtype=np.uint8)
    images[np.arange(n), :, :, labels] += 100
    return images, labels


def test_a_loss_that_is_not_finite_stops_training(cupy):
    images, labels = shapes(64)
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "device": "cuda"}
    loaders = [data.Loader(images, labels, 16, train=t, **options) for t in (True, False)]
    model, optimizer = parts()
    model.fc.weight.data[...] = np.inf
    training = train.Training(model, optimizer)
    said = (
        r"step 1: the loss is (nan|inf); .* the first layer .* not finite is fc \(Linear\), whose weights .*; a lower"
    )
    with pytest.raises(train.TrainingError, match=said):
        train.fit(training, *loaders, schedules.constant(0.1), 1, log=lambda text: None)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_after_such_a_loss_the_weights_stay_and_name_the_layer(cupy, optimizer, graph):
    """Five good steps, then a weight so large that a layer overflows; the losses are read three steps later."""
    model, optimizer = parts(optimizer)
    step = DeviceStep(model, optimizer, F.cross_entropy, graph=graph)
    good = list(batches(cupy, 5))
    with step.active():
        for x, y in good:
            step(x, y, 0.01)
        model.conv3.weight.data[0, 0, 0, 0] = np.inf
        before = optimizer.flat.get()
        for x, y in good[:3]:
            step(x, y, 0.01)
        losses = [loss for loss, _ in step.read()]
        said = step.explain()
    assert np.isfinite(losses[:5]).all()
    assert not np.isfinite(losses[5:]).any()
    np.testing.assert_array_equal(optimizer.flat.get(), before)
    assert "the first layer whose output is not finite is conv3 (Conv2d), whose weights are not finite either" in said

    assert optimizer.steps == 5, "those that have updated something"

    # Mended, it learns again: by the same step, and by the optimiser alone.
    model.conv3.weight.data[0, 0, 0, 0] = 0
    with step.active():
        step(*good[0], 0.01)
        assert np.isfinite(step.read()).all()
        assert "the outputs of all layers are finite" in step.explain()
    after = optimizer.flat.get()
    assert (after != before).mean() > 0.5
    optimizer.zero_grad()
    F.cross_entropy(model(mr.Tensor(good[0][0])), good[0][1]).backward()
    optimizer.step()
    assert (optimizer.flat.get() != after).mean() > 0.5
    assert optimizer.steps == 7


def test_a_stop_that_was_never_read_is_no_stop_for_others(cupy):
    """Not for the optimiser alone, and not for another DeviceStep. The graph of the first one goes on, too."""
    model, optimizer = parts()
    first = DeviceStep(model, optimizer, F.cross_entropy, graph=True)
    good = list(batches(cupy, 5))
    with first.active():
        for x, y in good:
            first(x, y, 0.01)
        first.read()
        first(good[0][0] * np.float32(np.nan), good[0][1], 0.01)
    for _ in range(2):
        before = optimizer.flat.get()
        optimizer.zero_grad()
        F.cross_entropy(model(mr.Tensor(good[0][0])), good[0][1]).backward()
        optimizer.step()
        assert (optimizer.flat.get() != before).mean() > 0.5
    second = DeviceStep(model, optimizer, F.cross_entropy, graph=False)
    for step in (second, first):
        before = optimizer.flat.get()
        with step.active():
            step.read()
            step(*good[1], 0.01)
            assert np.isfinite(step.read()).all()
        assert (optimizer.flat.get() != before).mean() > 0.5


def test_without_memory_to_look_for_the_layer_it_says_so(cupy, monkeypatch):
    model, optimizer = parts()
    step = DeviceStep(model, optimizer, F.cross_entropy)

    def forward(x):
        raise MemoryError

    with step.active():
        step(*next(batches(cupy, 1)), 0.1)
        monkeypatch.setattr(model, "forward", forward)
        assert step.explain() == "the GPU has no memory left to look for the layer"


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("padding", [0, 4])
def test_batches_are_those_of_the_cpu_bit_for_bit(cupy, augment, padding):
    images, labels = shapes(40)
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "train": True, "seed": 5}
    options |= {"augment": augment, "padding": padding}
    cpu = data.Loader(images, labels, 16, **options)
    cuda = data.Loader(images, labels, 16, device="cuda", **options)
    for epoch, start in ((0, 0), (1, 1), (1, len(cpu))):
        for (x, y), (x2, y2) in zip(cpu.epoch(epoch, start), cuda.epoch(epoch, start), strict=True):
            np.testing.assert_array_equal(x2.get(), x)
            np.testing.assert_array_equal(y2.get(), y)
    x, y = cuda.batch(3, 1)
    np.testing.assert_array_equal(x.get(), cpu.batch(3, 1)[0])
    np.testing.assert_array_equal(y.get(), cpu.batch(3, 1)[1])


def test_groups_of_parameters_keep_their_rates(cupy):
    model = nn.Linear(2, 1).to("cuda")
    before = model.state_dict()
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}]
    optimizer = optim.SGD(groups, lr=1.0)
    for p in optimizer.params:
        p.grad = cupy.ones(p.shape, dtype="float32")
    optimizer.step()
    after = model.state_dict()
    np.testing.assert_allclose(before["weight"] - after["weight"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(before["bias"] - after["bias"], 0.01, rtol=1e-4)


def test_an_epoch_copies_to_the_device_once(cupy):
    if not hasattr(cupy, "_gpu"):
        pytest.skip("only the simulated GPU counts")
    images, labels = shapes(64)
    loader = data.Loader(images, labels, 16, mean=(0.5,) * 3, std=(0.2,) * 3, train=True, device="cuda")
    cupy._gpu.reset()
    assert len(list(loader.epoch(0))) == 4
    assert cupy._gpu.copies == {"to device": 1}
    assert cupy._gpu.launches == {"make_batch": 4}


def test_results_are_read_in_time(cupy):
    """As many steps as there is room for between two reads."""
    model, optimizer = parts()
    step = DeviceStep(model, optimizer, F.cross_entropy)
    with step.active():
        for x, y in batches(cupy, READ_EVERY, n=2, size=3):
            step(x, y, 0.01)
        assert step.pending == READ_EVERY == step.read_every
        with pytest.raises(RuntimeError, match="50 results are waiting to be read"):
            step(x, y, 0.01)
        assert len(step.read()) == READ_EVERY
        assert step.pending == 0


def test_out_of_memory_says_how_much_would_fit():
    if simulator.why_not():
        pytest.skip(str(simulator.why_not()))
    with simulator.gpu(memory_bytes=64 << 20):
        import cupy

        model = models.resnet20().to("cuda")
        step = DeviceStep(model, optim.SGD(model.parameters(), 0.1), F.cross_entropy)
        x, y = cupy.zeros((64, 32, 32, 3), dtype="float32"), cupy.zeros(64, dtype="int64")
        with step.active(), pytest.raises(mr.device.OutOfMemory) as caught:
            step(x, y, 0.1)
    text = str(caught.value)
    assert text.startswith("the GPU is out of memory: a step of 64 images of 32x32 needs about ")
    assert "the GPU has 64.0 MiB; the largest batch that fits is about " in text
    assert 0 < int(text.rsplit(" ", 1)[1]) < 64
