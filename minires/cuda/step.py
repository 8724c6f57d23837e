"""A training step on a GPU: the step of train/loop.py, without waiting for the device.

Reading a loss stops the host until the GPU has computed the loss. Losses therefore stay on the device, and `read`
copies many at a time. After the first steps the whole step is recorded as a CUDA graph (graph.py) and replayed.

Reading order: after graph.py. Next: memory.py.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minires import nn
from minires.cuda.graph import Recorder, RecordingError, free_memory
from minires.cuda.loss import record_step
from minires.cuda.memory import explain
from minires.cuda.optimizers import stop_unless_finite
from minires.device import Array, OutOfMemory, module_of
from minires.nn import Module
from minires.optim import Optimizer
from minires.tensor import Tensor

READ_EVERY = 50  # steps between two reads of the losses
WARM_UP = 2  # steps that run before a step is recorded


def unsafe(model: Module) -> str | None:
    """The reason not to record a step of `model`, in words; None if recording is safe."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return "dropout draws its mask on the host, and a graph would use the same one again and again"
    return None


class DeviceStep:
    """A step of training by the CUDA kernels. Call the step inside `with step.active():`.

    loss   from logits (N,K) and labels (N,) to a scalar. One that waits for the GPU, as cross-entropy with weights does
           to check them, cannot be recorded
    graph  whether to record and replay the step: True, False, or None for wherever recording works. With None, a step
           that waits for the GPU or copies is run without a graph, after a warning

    Raises `ValueError` for graph=True if `unsafe` gives a reason.
    """

    read_every = READ_EVERY

    def __init__(
        self, model: Module, optimizer: Optimizer, loss: Callable[[Tensor, Array], Tensor], graph: bool | None = None
    ):
        reason = unsafe(model)
        if graph and reason:
            raise ValueError(f"graph: the step cannot be recorded, {reason}")
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.graph = not reason if graph is None else graph
        self._must_record = bool(graph)
        self.pending = 0  # steps whose results have not been read
        self._recorder = Recorder()
        self._x: Array | None = None  # the last batch
        self._results = module_of(optimizer.flat).empty((READ_EVERY, 2), dtype="float32")
        self._stopped = module_of(optimizer.flat).zeros(1, dtype="float32")  # whether a loss was not finite
        self._done = 0
        self._inputs: tuple[Array, Array] | None = None  # the graph's own: images and labels
        self._loss: Array | None = None
        self._logits: Array | None = None
        self._outputs: tuple[Array | None, Array | None] = None, None  # the loss and logits that the graph writes

    @contextmanager
    def active(self) -> Iterator[None]:
        """Runs the body on this step's own stream. Entering waits for earlier work; leaving waits for this stream."""
        import cupy

        cupy.cuda.get_current_stream().synchronize()
        free_memory()  # the graph's pool may need the memory that an evaluation leaves free
        with self._recorder.stream:
            try:
                yield
            finally:
                self._recorder.stream.synchronize()

    def __call__(self, x: Array, y: Array, lr: float) -> None:
        """One step on the batch x (N,H,W,C), y (N,), at learning rate `lr`. At most READ_EVERY steps may lie between
        two calls of `read`.

        Raises `OutOfMemory`, with the memory that the step needs and the largest batch that fits; `RuntimeError` for
        one step too many; `RecordingError` for graph=True if the step cannot be recorded.
        """
        if self.pending == READ_EVERY:
            raise RuntimeError(f"{READ_EVERY} results are waiting to be read, and there is room for no more")
        self.optimizer.lr = lr
        self.optimizer.advance()
        self._x = x
        try:
            if not self.graph or (self._inputs is not None and self._inputs[0].shape != x.shape):
                self._run(x, y)
            else:
                self._run_recorded(x, y)
        except MemoryError:
            failed = True  # and nothing else here: the traceback keeps the step's arrays alive
        else:
            failed = False
        if failed:
            self._recorder.free_unused()
            raise OutOfMemory(explain(self.model, x.shape, len(self.optimizer.slots)))
        record_step(self._loss, self._logits, y, self._results, self.pending)
        self.pending += 1
        self._done += 1

    def _run(self, x: Array, y: Array) -> None:
        """The step itself, without `optimizer.advance`."""
        logits = self.model(Tensor(x))
        loss = self.loss(logits, y)
        self.optimizer.zero_grad()
        loss.backward()
        for schedule in self.optimizer.prepared_lr.values():
            stop_unless_finite(loss.data, self._stopped, schedule)
        self.optimizer.apply()
        self._loss, self._logits = loss.data, logits.data

    def _run_recorded(self, x: Array, y: Array) -> None:
        if self._inputs is None:
            self._inputs = module_of(x).empty(x.shape, dtype=x.dtype), module_of(y).empty(y.shape, dtype=y.dtype)
        own_x, own_y = self._inputs
        own_x[...], own_y[...] = x, y
        if self._done < WARM_UP:
            with self._recorder.memory():
                self._run(own_x, own_y)
            return
        if not self._recorder.recorded and not self._record(own_x, own_y):
            self._recorder.free_unused()
            self._run(x, y)
            return
        self._recorder.replay()
        self._loss, self._logits = self._outputs

    def _record(self, x: Array, y: Array) -> bool:
        """Record the step on x and y. Without graph=True a failure returns False and turns the graph off.

        Recording runs nothing: a failed one leaves weights, statistics and counts on the device unchanged.
        """
        self._loss = self._logits = None  # the recording needs their memory
        try:
            self._recorder.record(lambda: self._run(x, y))
        except RecordingError as error:
            if self._must_record:
                raise
            warnings.warn(f"{error}; it is run kernel by kernel instead", stacklevel=4)
            self.graph = False
            return False
        self._outputs = self._loss, self._logits
        return True

    def read(self) -> list[tuple[float, float]]:
        """(loss, accuracy) of every step since the last `read`, in order. Waits for the GPU.

        After a loss that is not finite no step has updated anything; the steps after this `read` will.
        """
        results = self._results.get()[: self.pending].tolist()
        self.pending = 0
        bad = next((i for i, (loss, _) in enumerate(results) if not math.isfinite(loss)), len(results))
        if bad < len(results):
            self.optimizer.steps -= len(results) - bad
            self._stopped[...] = 0
        return [(loss, accuracy) for loss, accuracy in results]

    def explain(self) -> str:
        """The first layer whose output is not finite, found by a forward pass over the last batch.

        A loss is read up to READ_EVERY steps late. The weights are still those that gave the loss, because
        `stop_unless_finite` has stopped the updates. The batch may be a later one.
        """
        from minires.train.nonfinite import first_nonfinite_layer  # `import minires` needs no train/

        try:
            found = first_nonfinite_layer(self.model, self._x)
        except MemoryError:  # beside the graph
            return "the GPU has no memory left to look for the layer"
        found = (
            found or "the outputs of all layers are finite: look at that step's batch, its labels and the loss itself"
        )
        return f"with the weights of that step and the last batch, {found}"
