"""The tests are tested: every backward is broken on purpose, and the property tests must notice.

A check that never fails proves nothing, and one that looks only at sums fails for almost nothing (see gradcheck's
docstring). So each fault below is planted in the running code, and the tests of tests/functional (tests/backends,
test_tensor.py) that guard the place are run on it. Each must fail, for a reason that is the fault's.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings

import minires.functional as F
from minires import Tensor

HERE = Path(__file__).parent
# As "ci", but stopping at the first failure, and not looking for a smaller one.
settings.register_profile(
    "mutation",
    max_examples=30,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)

# How a planted fault may show: a failed assertion, an expected error that does not come, a warning about a division by
# zero, or the engine, NumPy or an operation refusing a shape. A NameError, say, would be a mistake in the fault itself.
CAUGHT = (AssertionError, pytest.fail.Exception, RuntimeWarning, RuntimeError, ValueError, IndexError)

Guard = tuple[str, str, dict[str, Any]]  # (test file, test function, its arguments beside xp)


@functools.cache
def load(file: str) -> ModuleType:
    """The test module, loaded anew, so that its property tests run with the profile "mutation"."""
    spec = importlib.util.spec_from_file_location(f"mutated_{Path(file).stem}", HERE / file)
    module = importlib.util.module_from_spec(spec)
    settings.load_profile("mutation")
    try:
        spec.loader.exec_module(module)
    finally:
        settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))  # as tests/conftest.py
    return module


def run(guard: Guard) -> None:
    file, name, arguments = guard
    test = getattr(load(file), name)
    if "backend" in inspect.signature(test).parameters:
        arguments = {"backend": load("backends/conftest.py").Backend("reference", "numpy", "float64"), **arguments}
    elif "xp" in inspect.signature(test).parameters:
        arguments = {"xp": np, **arguments}
    test(**arguments)


def assert_caught(guards: list[Guard]) -> None:
    """At least one of the guards fails."""
    for guard in guards:
        try:
            run(guard)
        except CAUGHT:
            return
    pytest.fail(f"not noticed by {', '.join(f'{file}::{name}' for file, name, _ in guards)}")


# 1. The gradient of each input of each operation, made wrong in the ways that fit any operation


def arithmetic(test: str, **arguments: Any) -> Guard:
    return "functional/test_arithmetic.py", test, arguments


def shape(test: str) -> Guard:
    return "functional/test_shape.py", test, {}


def reduction(name: str) -> Guard:
    return "functional/test_reduction.py", "test_reductions", {"name": name}


def activation(test: str, **arguments: Any) -> Guard:
    return "functional/test_activation.py", test, arguments


def normalization(test: str, **arguments: Any) -> Guard:
    return "functional/test_normalization.py", test, arguments


def norm(training: bool) -> Guard:
    return normalization("test_gradients", training=training)


def pooling(name: str) -> Guard:
    return "functional/test_pooling.py", "test_gradients", {"name": name}


CONV = ("functional/test_convolution.py", "test_gradients", {})
LINEAR = ("functional/test_linear.py", "test_linear", {})
LOSS = ("functional/test_loss.py", "test_cross_entropy", {})
BRANCH = ("nn/test_layers.py", "test_a_branch_is_the_equation_of_the_paper", {})
GLOBAL = ("functional/test_pooling.py", "test_global_average", {})


def more(test: str, **arguments: Any) -> Guard:
    return "functional/test_more.py", test, arguments


CLIP = more("test_clip", low=-0.4, high=0.6)
OPERATIONS: dict[str, tuple[int, Guard]] = {  # the name of its node: (inputs, guard)
    "add": (2, arithmetic("test_binary", name="add")),
    "subtract": (2, arithmetic("test_binary", name="subtract")),
    "multiply": (2, arithmetic("test_binary", name="multiply")),
    "divide": (2, arithmetic("test_binary", name="divide")),
    "negative": (1, arithmetic("test_unary", name="negative")),
    "exp": (1, arithmetic("test_unary", name="exp")),
    "log": (1, arithmetic("test_unary", name="log")),
    "sqrt": (1, arithmetic("test_unary", name="sqrt")),
    "power": (1, arithmetic("test_power", exponent=3)),
    "matmul": (2, arithmetic("test_matmul")),
    "reshape": (1, shape("test_reshape")),
    "transpose": (1, shape("test_transpose")),
    "getitem": (1, shape("test_getitem_with_basic_indices")),
    "pad": (1, shape("test_pad")),
    "concatenate": (1, shape("test_concatenate")),
    "sum": (1, reduction("sum")),
    "max": (1, reduction("max")),
    "relu": (1, activation("test_relu")),
    "softmax": (1, activation("test_softmax", name="softmax")),
    "log_softmax": (1, activation("test_softmax", name="log_softmax")),
    "dropout": (1, activation("test_dropout")),
    "linear": (3, LINEAR),
    "cross_entropy": (1, LOSS),
    "conv2d": (3, CONV),
    "batch_norm": (3, norm(training=True)),
    "max_pool2d": (1, pooling("max_pool2d")),
    "avg_pool2d": (1, pooling("avg_pool2d")),
    "global_avg_pool2d": (1, GLOBAL),
    "abs": (1, more("test_elementwise", name="abs")),
    "tanh": (1, more("test_elementwise", name="tanh")),
    "sigmoid": (1, more("test_elementwise", name="sigmoid")),
    "clip": (1, CLIP),
    "where": (2, more("test_where")),
    "interpolate": (1, more("test_interpolate")),
}
# No backward of their own; see FAULTS.
MADE_OF_OTHERS = {"argmax", "flatten", "mean", "mse_loss", "squeeze", "stack", "var"}

WAYS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "times 2": lambda gradient: 2 * gradient,
    "times 0": lambda gradient: 0 * gradient,
    "times -1": lambda gradient: -gradient,
    "0.1 % too large": lambda gradient: 1.001 * gradient,
    "missing": lambda gradient: None,
    "elements mixed up": lambda gradient: np.roll(gradient, 1),
    "one element missing": lambda gradient: gradient * (np.arange(gradient.size).reshape(gradient.shape) != 0),
    "float32": lambda gradient: gradient.astype(np.float32),
}


def test_every_operation_is_mutated():
    assert set(OPERATIONS) | MADE_OF_OTHERS >= set(F.__all__)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("operation", "i"), [(operation, i) for operation, (inputs, _) in OPERATIONS.items() for i in range(inputs)]
)
def test_a_wrong_gradient_is_noticed(monkeypatch, operation, i, way):
    original = Tensor.from_op

    def from_op(data, parents, backward):
        @functools.wraps(backward)
        def broken(dy):
            gradients = list(backward(dy))
            if backward.__qualname__.startswith(f"{operation}.") and len(gradients) > i and gradients[i] is not None:
                gradients[i] = WAYS[way](gradients[i])
            return gradients

        return original(data, parents, broken)

    monkeypatch.setattr(Tensor, "from_op", staticmethod(from_op))
    assert_caught([OPERATIONS[operation][1]])


# 2. Faults that people make, planted in the source: (function, {right: wrong}, guards)


def tensor(test: str, **arguments: Any) -> Guard:
    return "test_tensor.py", test, arguments


def backends(test: str, **arguments: Any) -> Guard:
    return "backends/test_backends.py", test, arguments


ADD, MULTIPLY, DIVIDE = (arithmetic("test_binary", name=name) for name in ("add", "multiply", "divide"))
MAX_POOL, AVG_POOL = pooling("max_pool2d"), pooling("avg_pool2d")
POOL_TIES = ("functional/test_pooling.py", "test_the_first_of_equal_maxima_gets_the_gradient", {})
POOL_PADDING = ("functional/test_pooling.py", "test_padding_never_wins_a_maximum", {"dtype": np.float64})

Fault = tuple[str, dict[str, str], list[Guard]]
FAULTS: dict[str, Fault] = {
    # the engine
    "a second gradient replaces the first": (
        "tensor.Tensor.backward",
        {"pending[source] = pending[source] + dparent": "pending[source] = dparent"},
        [tensor("test_residual_block_whose_input_is_used_three_times")],
    ),
    "a third gradient replaces the others": (
        "tensor.Tensor.backward",
        {"pending[source] += dparent": "pending[source] = dparent"},
        [tensor("test_residual_block_whose_input_is_used_three_times")],
    ),
    "a shared gradient is added to in place": (
        "tensor.Tensor.backward",
        {"pending[source] = pending[source] + dparent": "pending[source] += dparent"},
        [tensor("test_shared_gradients_are_not_written_to")],
    ),
    "nodes run oldest first": (
        "tensor.Tensor.backward",
        {"(-source.order, source)": "(source.order, source)"},
        [tensor("test_a_value_with_uses_of_different_depth")],
    ),
    "nodes are not freed": (
        "tensor.Tensor.backward",
        {"node.free()": "pass"},
        [tensor("test_second_backward_through_a_freed_graph_is_an_error")],
    ),
    "a leaf keeps the array it was given": (
        "tensor.Tensor.accumulate_grad",
        {"module_of(gradient).array(gradient)": "gradient"},
        [tensor("test_gradients_do_not_share_memory_with_each_other_or_with_the_callers"), ADD],
    ),
    "a leaf forgets its earlier gradient": (
        "tensor.Tensor.accumulate_grad",
        {"self.grad += gradient": "self.grad = gradient.copy()"},
        [tensor("test_backward_twice_accumulates", xp=np)],
    ),
    # arithmetic
    "missing un-broadcast sum": (
        "functional.arithmetic.unbroadcast",
        {"return gradient.sum(axis=tuple(axes), keepdims=True).reshape(shape)": "return gradient"},
        [ADD],
    ),
    "un-broadcasting averages": ("functional.arithmetic.unbroadcast", {"gradient.sum(": "gradient.mean("}, [ADD]),
    "un-broadcasting takes one of many": (
        "functional.arithmetic.unbroadcast",
        {"gradient.sum(": "gradient.max("},
        [MULTIPLY],
    ),
    "x - y with the gradient of +": (
        "functional.arithmetic.subtract",
        {"-dy": "dy"},
        [arithmetic("test_binary", name="subtract")],
    ),
    "each factor times itself": (
        "functional.arithmetic.multiply",
        {"dy * b.data": "dy * a.data", "dy * a.data, b": "dy * b.data, b"},
        [MULTIPLY],
    ),
    "quotient without its quotient": ("functional.arithmetic.divide", {"-da * y": "-da"}, [DIVIDE]),
    "power without its exponent": (
        "functional.arithmetic.power",
        {"dy * exponent * a": "dy * a"},
        [arithmetic("test_power", exponent=2)],
    ),
    "power not lowered": (
        "functional.arithmetic.power",
        {"(exponent - 1)": "exponent"},
        [arithmetic("test_power", exponent=2)],
    ),
    "power 0 at 0": (
        "functional.arithmetic.power",
        {"if exponent == 0:": "if False:"},
        [arithmetic("test_power_0_and_1_have_finite_gradients_at_0")],
    ),
    "exp with the gradient of x": (
        "functional.arithmetic.exp",
        {"dy * y": "dy"},
        [arithmetic("test_unary", name="exp")],
    ),
    "log with the gradient upside down": (
        "functional.arithmetic.log",
        {"dy / a.data": "dy * a.data"},
        [arithmetic("test_unary", name="log")],
    ),
    "sqrt without the 2": ("functional.arithmetic.sqrt", {"(2 * y)": "y"}, [arithmetic("test_unary", name="sqrt")]),
    "product without transposing": (
        "functional.arithmetic.matmul",
        {"dy @ b2.swapaxes(-1, -2)": "dy @ b2"},
        [arithmetic("test_matmul")],
    ),
    # shape and reduction
    "reshape reads columns first": (
        "functional.shape.reshape",
        {"dy.reshape(x.shape)": "dy.reshape(x.shape, order='F')"},
        [shape("test_reshape")],
    ),
    "transposed the same way back": (
        "functional.shape.transpose",
        {"dy.transpose(inverse)": "dy.transpose(order)"},
        [shape("test_transpose")],
    ),
    "elements selected twice count once": (
        "functional.shape.getitem",
        {"xp.add.at(dx, index, dy)": "dx[index] = dy"},
        [shape("test_getitem_with_integer_arrays")],
    ),
    "a slice's gradient everywhere": (
        "functional.shape.getitem",
        {"xp.zeros(": "xp.ones("},
        [shape("test_getitem_with_basic_indices")],
    ),
    "padding not cut off at the right place": (
        "functional.shape.pad",
        {"slice(before, before + n)": "slice(0, n)"},
        [shape("test_pad")],
    ),
    "parts in the wrong order": (
        "functional.shape.concatenate",
        {"axis=axis)\n\n    return": "axis=axis)[::-1]\n\n    return"},
        [shape("test_concatenate")],
    ),
    "flatten drops the batch": (
        "functional.shape.flatten",
        {"x.shape[:start_axis]": "()"},
        [shape("test_flatten")],
    ),
    "sum divides like a mean": (
        "functional.reduction.sum",
        {"(dy, x, axes), x.shape),)": "(dy, x, axes), x.shape) / x.size,)"},
        [reduction("sum")],
    ),
    "mean divides by one too many": (
        "functional.reduction.mean",
        {"1.0 / count": "1.0 / (count + 1)"},
        [reduction("mean")],
    ),
    "max gives to all": (
        "functional.reduction.max",
        {"(is_max * share,)": "(share + 0 * x.data,)"},
        [reduction("max")],
    ),
    "equal maxima each get everything": (
        "functional.reduction.max",
        {" / is_max.sum(axis=axes, keepdims=True).astype(dy.dtype)": ""},
        [("functional/test_reduction.py", "test_equal_maxima_share_the_gradient", {})],
    ),
    # beside the networks
    "abs passes the gradient": (
        "functional.more.abs",
        {"dy * xp.sign(x.data)": "dy"},
        [more("test_elementwise", name="abs")],
    ),
    "tanh without its square": (
        "functional.more.tanh",
        {"(1 - y * y)": "(1 - y)"},
        [more("test_elementwise", name="tanh")],
    ),
    "sigmoid without 1 - s": (
        "functional.more.sigmoid",
        {"dy * y * (1 - y)": "dy * y"},
        [more("test_elementwise", name="sigmoid")],
    ),
    "sigmoid that overflows": (
        "functional.more.sigmoid",
        {"-xp.abs(x.data)": "-x.data"},
        [more("test_elementwise", name="sigmoid")],
    ),
    "clip lets all gradients through": ("functional.more.clip", {"dy * inside": "dy"}, [CLIP]),
    "clip forgets its upper limit": ("functional.more.clip", {"x.data <= high": "x.data >= x.data"}, [CLIP]),
    "clip stops at its limits": (
        "functional.more.clip",
        {"x.data >= low": "x.data > low"},
        [more("test_clip_at_its_limits_as_pytorch_does")],
    ),
    "where gives to both": (
        "functional.more.where",
        {"xp.where(condition, zero, dy)": "dy"},
        [more("test_where")],
    ),
    "where multiplies by 0": (
        "functional.more.where",
        {"xp.where(condition, dy, zero)": "dy * condition"},
        [more("test_what_is_not_chosen_gets_no_gradient")],
    ),
    "squeeze takes all axes": (
        "functional.more.squeeze",
        {"for i, n in enumerate(x.shape) if i not in axes": "for n in x.shape if n != 1"},
        [more("test_squeeze")],
    ),
    "stack at the front": (
        "functional.more.stack",
        {"for tensor in tensors], axis)": "for tensor in tensors], 0)"},
        [more("test_stack")],
    ),
    "var around 0": (
        "functional.more.var",
        {"subtract(x, mean(x, axis, keepdims=True))": "x"},
        [more("test_var", ddof=0)],
    ),
    "var counts one too many": ("functional.more.var", {"(count - ddof)": "(count + 1)"}, [more("test_var", ddof=0)]),
    "argmin": ("functional.more.argmax", {"x.data.argmax": "x.data.argmin"}, [more("test_argmax")]),
    "the mean of the difference": (
        "functional.more.mse_loss",
        {"multiply(deviation, deviation)": "deviation"},
        [more("test_mse_loss")],
    ),
    "a pixel gets one of its copies' gradients": (
        "functional.more.interpolate",
        {".sum(axis=(2, 4))": "[:, :, 0, :, 0]"},
        [more("test_interpolate")],
    ),
    "height taken for width": (
        "functional.more.interpolate",
        {"(n, h, sh, w, sw, c)": "(n, h, sw, w, sh, c)", "n, h * sh, w * sw, c": "n, h * sw, w * sh, c"},
        [more("test_interpolate")],
    ),
    "ignored labels count": (
        "functional.loss.cross_entropy",
        {"not counted.all()": "False"},
        [("functional/test_loss.py", "test_weights_and_ignored_labels", {})],
    ),
    "weights divided by the batch": (
        "functional.more.weighted_cross_entropy",
        {"weight[labels].sum()": "n"},
        [("functional/test_loss.py", "test_weights_and_ignored_labels", {})],
    ),
    "smoothing without weights": (
        "functional.more.weighted_cross_entropy",
        {"(log_p * (weight / total))": "(log_p / total)"},
        [("functional/test_loss.py", "test_weights_and_ignored_labels", {})],
    ),
    # activation and loss
    "forgotten relu mask": ("reference.relu_backward", {"dy * (y > 0)": "dy"}, [activation("test_relu")]),
    "relu passes the gradient at 0": (
        "reference.relu_backward",
        {"y > 0": "y >= 0"},
        [activation("test_relu_at_0_has_gradient_0")],
    ),
    "softmax without its mean term": (
        "functional.activation.softmax",
        {"(dy - (dy * y).sum(axis=axis, keepdims=True))": "dy"},
        [activation("test_softmax", name="softmax")],
    ),
    "softmax along another axis": (
        "functional.activation.softmax",
        {"(dy * y).sum(axis=axis": "(dy * y).sum(axis=0"},
        [activation("test_softmax", name="softmax")],
    ),
    "log-softmax without the softmax": (
        "functional.activation.log_softmax",
        {"xp.exp(y) * dy.sum(": "y * dy.sum("},
        [activation("test_softmax", name="log_softmax")],
    ),
    "dropout's gradient not scaled": (
        "functional.activation.dropout",
        {"(dy * mask,)": "(dy * (mask > 0),)"},
        [activation("test_dropout")],
    ),
    "dropout's gradient not dropped": (
        "functional.activation.dropout",
        {"(dy * mask,)": "(dy * scale,)"},
        [activation("test_dropout")],
    ),
    "dropout in evaluation": (
        "functional.activation.dropout",
        {"not training or p == 0": "p == 0"},
        [activation("test_dropout_of_all_or_nothing")],
    ),
    "linear's bias averages": ("reference.linear_backward", {"dy.sum(axis=0)": "dy.mean(axis=0)"}, [LINEAR]),
    "linear's weight gradient without the input": (
        "reference.linear_backward",
        {"x.reshape(-1, features).T": "(0 * x + 1).reshape(-1, features).T"},
        [LINEAR],
    ),
    "smoothing forgotten for the wrong classes": (
        "reference.cross_entropy_backward",
        {"probabilities - label_smoothing / classes": "probabilities.copy()"},
        [LOSS],
    ),
    "smoothing forgotten for the true class": (
        "reference.cross_entropy_backward",
        {"-= 1 - label_smoothing": "-= 1"},
        [LOSS],
    ),
    "smoothing spread over the other classes only": (
        "reference.cross_entropy_backward",
        {"label_smoothing / classes": "label_smoothing / max(classes - 1, 1)"},
        [LOSS],
    ),
    "the loss is a mean, its gradient a sum": (
        "reference.cross_entropy_backward",
        {"dloss / n": "dloss"},
        [LOSS],
    ),
    "cross-entropy ignores the incoming gradient": (
        "reference.cross_entropy_backward",
        {"dloss / n": "1 / n"},
        [LOSS],
    ),
    "exp of raw logits": (
        "reference.cross_entropy",
        {"logits - logits.max(axis=1, keepdims=True)": "logits"},
        [("functional/test_loss.py", "test_logits_of_10_000", {"dtype": np.float64, "smoothing": 0.0})],
    ),
    # convolution
    "stride and padding swapped": (
        "reference.conv2d_backward",
        {"col2im(dcolumns, x.shape, stride, padding": "col2im(dcolumns, x.shape, padding, stride"},
        [CONV],
    ),
    "vertical and horizontal stride swapped": (
        "reference.conv2d_backward",
        {"col2im(dcolumns, x.shape, stride": "col2im(dcolumns, x.shape, stride[::-1]"},
        [CONV],
    ),
    "vertical and horizontal padding swapped": (
        "reference.conv2d_backward",
        {"col2im(dcolumns, x.shape, stride, padding": "col2im(dcolumns, x.shape, stride, padding[::-1]"},
        [CONV],
    ),
    "dilation forgotten for the input": (
        "reference.conv2d_backward",
        {"stride, padding, dilation)\n    return": "stride, padding, (1, 1))\n    return"},
        [CONV],
    ),
    "windows that overlap overwrite each other": (
        "reference.col2im",
        {"padded[:, rows, cols] += columns": "padded[:, rows, cols] = columns"},
        [CONV],
    ),
    "padding not cut off": ("reference.col2im", {"ph : ph + h, pw : pw + w": ":h, :w"}, [CONV]),
    "missing group offset in the weight's gradient": (
        "reference.conv2d_backward",
        {"windows[..., ins]": "windows[..., : ins.stop - ins.start]"},
        [CONV],
    ),
    "missing group offset in the input's gradient": (
        "reference.conv2d_backward",
        {"weight[..., outs]).T": "weight[..., : outs.stop - outs.start]).T"},
        [CONV],
    ),
    "no reshape of a strided 1x1": (
        "reference.conv2d_backward",
        {"kernel == stride == (1, 1) and padding == (0, 0)": "kernel == (1, 1) and padding == (0, 0)"},
        [CONV],
    ),
    "kernel not turned": (
        "reference.conv2d_backward",
        {"_as_weight_matrix(weight[..., outs])": "_as_weight_matrix(weight[::-1, ::-1, :, outs])"},
        [CONV],
    ),
    "the bias's gradient divided by the batch": (
        "functional.convolution.conv2d",
        {"backend.column_sum(dy)": "backend.column_sum(dy) / dy.shape[0]"},
        [CONV],
    ),
    # batch normalisation
    "forgotten mean term": (
        "reference.batch_norm_backward",
        {"dy - dbias / count - x_hat": "dy - x_hat"},
        [norm(training=True)],
    ),
    "forgotten variance term": (
        "reference.batch_norm_backward",
        {" - x_hat * (dweight / count)": ""},
        [norm(training=True)],
    ),
    "forgotten scale": (
        "reference.batch_norm_backward",
        {"dx = weight * inverse_std * (dy": "dx = inverse_std * (dy"},
        [norm(training=True)],
    ),
    "forgotten scale in evaluation": (
        "reference.batch_norm_backward",
        {"dx = weight * inverse_std * dy": "dx = inverse_std * dy"},
        [norm(training=False)],
    ),
    "evaluation treated as training": (
        "reference.batch_norm_backward",
        {"if training:": "if True:"},
        [norm(training=False)],
    ),
    "training treated as evaluation": (
        "reference.batch_norm_backward",
        {"if training:": "if False:"},
        [norm(training=True)],
    ),
    "unbiased count": (
        "reference.batch_norm_backward",
        {"x.size // x.shape[-1]": "x.size // x.shape[-1] - 1"},
        [norm(training=True)],
    ),
    "input not normalised in the scale's gradient": (
        "reference.batch_norm_backward",
        {"column_sum(dy * x_hat)": "column_sum(dy * x)"},
        [norm(training=False)],
    ),
    "forgotten eps": (
        "reference.batch_norm_backward",
        {"var + eps": "var"},
        [norm(training=True)],
    ),
    "running statistics that are not counted": (
        "reference.update_running_statistics",
        {"batches[...] += 1": "pass"},
        [normalization("test_the_counter_counts_the_batches_of_training")],
    ),
    # the residual branch
    "no shortcut": ("nn.branch.branch", {"y + shortcut": "y"}, [BRANCH]),
    "no relu between the layers": (
        "nn.branch.branch",
        {"F.relu(inner_norm(inner_conv(x)))": "inner_norm(inner_conv(x))"},
        [BRANCH],
    ),
    "no relu behind the shortcut": (
        "nn.branch.branch",
        {"return F.relu(y + shortcut) if relu else": "return"},
        [BRANCH],
    ),
    "running variance biased": (
        "reference.update_running_statistics",
        {"var * (count / (count - 1))": "var"},
        [normalization("test_running_statistics_move_towards_the_batch")],
    ),
    "momentum the other way round": (
        "reference.update_running_statistics",
        {"momentum * (mean": "(1 - momentum) * (mean"},
        [normalization("test_running_statistics_move_towards_the_batch")],
    ),
    "evaluation shares the running statistics": (
        "functional.normalization.batch_norm",
        {"running_mean.astype(dtype), running_var.astype(dtype)": "running_mean, running_var"},
        [normalization("test_eval_leaves_running_statistics_alone_and_keeps_its_own_copy")],
    ),
    # pooling
    "every equal maximum gets the gradient": (
        "reference.max_pool2d_backward",
        {"not_yet &= ~is_max": "pass"},
        [POOL_TIES],
    ),
    "the last of equal maxima gets the gradient": (
        "reference.max_pool2d_backward",
        {
            "in window_slices(": "in [*window_slices(",
            "stride, (1, 1)):": "stride, (1, 1))][::-1]:",
        },
        [POOL_TIES],
    ),
    "overlapping maxima overwrite each other": (
        "reference.max_pool2d_backward",
        {"+= dy * is_max": "= dy * is_max"},
        [MAX_POOL],
    ),
    "max pooling does not cut off its padding": (
        "reference.max_pool2d_backward",
        {"ph : ph + x.shape[1], pw : pw + x.shape[2]": ": x.shape[1], : x.shape[2]"},
        [MAX_POOL],
    ),
    "padding counts as 0 in a maximum": (
        "reference.max_pool2d",
        {"value=-xp.inf": "value=0.0"},
        [POOL_PADDING],
    ),
    "the window's height squared": (
        "reference.avg_pool2d_backward",
        {"kernel[0] * kernel[1]": "kernel[0] * kernel[0]"},
        [AVG_POOL],
    ),
    "average pooling's strides swapped": (
        "reference.avg_pool2d_backward",
        {"kernel, stride,": "kernel, stride[::-1],"},
        [AVG_POOL],
    ),
    "average pooling's padding swapped": (
        "reference.avg_pool2d_backward",
        {"(ph, pw) = shape, padding": "(pw, ph) = shape, padding"},
        [AVG_POOL],
    ),
    "overlapping averages overwrite each other": (
        "reference.avg_pool2d_backward",
        {"+= share": "= share"},
        [AVG_POOL],
    ),
    "global average over height only": (
        "reference.global_avg_pool2d_backward",
        {"(x.shape[1] * x.shape[2])": "x.shape[1]"},
        [GLOBAL],
    ),
    # optimiser updates
    "Nesterov without the gradient": (
        "reference.sgd_update",
        {"g + momentum * velocity if nesterov": "momentum * velocity if nesterov"},
        [backends("test_sgd_update")],
    ),
    "Adam without bias correction": (
        "reference.adam_update",
        {"lr / (1 - beta1**step)": "lr"},
        [backends("test_adam_update"), backends("test_the_first_adam_step_has_the_size_of_the_learning_rate")],
    ),
    "AdamW's decay in the gradient": (
        "reference.adam_update",
        {"and not decoupled": "", "if decoupled:": "if False:"},
        [backends("test_adam_update")],
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, target: str, changes: dict[str, str]) -> None:
    """Replace text in the source of minires.`target`, wherever the function is known by a name."""
    module_name, _, name = target.rpartition(".")
    holder: Any
    if module_name.endswith(".Tensor"):
        module, holder = importlib.import_module("minires.tensor"), Tensor
    else:
        module = holder = importlib.import_module(f"minires.{module_name}")
    original = getattr(holder, name)
    source = textwrap.dedent(inspect.getsource(original))
    for right, wrong in changes.items():
        assert right in source, f"{target} no longer contains {right!r}: bring the fault up to date"
        source = source.replace(right, wrong)
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<{target}, mutated>", "exec"), vars(module), namespace)  # inherits `annotations` from here
    for place in [Tensor, *(m for n, m in list(sys.modules.items()) if n.startswith("minires"))]:
        for attribute, value in list(vars(place).items()):
            if value is original:
                monkeypatch.setattr(place, attribute, namespace[name])


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(monkeypatch, name):
    target, changes, guards = FAULTS[name]
    plant(monkeypatch, target, changes)
    assert_caught(guards)


def all_guards() -> Iterator[Guard]:
    yield from (guard for _, guard in OPERATIONS.values())
    yield from (guard for _, _, guards in FAULTS.values() for guard in guards)


@pytest.mark.nightly("8 s; the guards are tests of other files, which run in any case")
@pytest.mark.parametrize(
    "guard", {str(guard): guard for guard in all_guards()}.values(), ids=lambda guard: f"{guard[1]}-{guard[2]}"
)
def test_without_a_fault_the_guards_pass(guard):
    run(guard)
