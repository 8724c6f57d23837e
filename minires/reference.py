"""The array work of every layer in plain array expressions: THE DEFINITION.

A backend (cpu/, cuda/) offers the same functions, faster. Tests compare this file and every backend with plain loops,
and gradients with finite differences. The file runs on NumPy and CuPy alike (`xp` is the array's library) and in
float32 and float64 alike (gradients are tested in float64).

Arrays are (N, H, W, C), channels last; M = N*H*W counts positions. No function modifies its arguments,
except the updates (of weights, of running statistics), which work in place by design.

Reading order: after functional/reduction.py. Next: kernels.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from minires.device import Array, module_of

# Sliding windows --------------------------------------------------------------------------------------------

Two = tuple[int, int]  # (vertical, horizontal)
Pair = int | Two


class Geometry(NamedTuple):
    """The (vertical, horizontal) numbers of a convolution."""

    kernel: Two
    stride: Two
    padding: Two
    dilation: Two


def pair(name: str, value: Pair, least: int) -> Two:
    """(vertical, horizontal) from a number or a pair; `ValueError` naming `name` for anything below `least`."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(not hasattr(v, "__index__") or v < least for v in both):
        raise ValueError(f"{name} is {value!r}, expected an integer >= {least}, or a pair of them")
    return int(both[0]), int(both[1])


def output_size(shape: tuple[int, ...], kernel: Two, stride: Two, padding: Two, dilation: Two = (1, 1)) -> Two:
    """(Ho, Wo): how many windows fit into an (N, H, W, C) image; 0 where none does.

    Ho = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1
    """
    free = (n + 2 * p - d * (k - 1) - 1 for n, k, p, d in zip(shape[1:3], kernel, padding, dilation))
    ho, wo = (max(f // s + 1, 0) for f, s in zip(free, stride))
    return ho, wo


# Convolution ------------------------------------------------------------------------------------------------
#
# Each output position is the dot product of a weight with one window of the input. im2col lays every window
# out as a row, and then all dot products are ONE matrix product:
#     columns (N*Ho*Wo, kh*kw*C)  @  weight (kh*kw*C, O)  =  output (N*Ho*Wo, O)
# Source: Chellapilla et al. 2006.


def window_slices(size: Two, kernel: Two, stride: Two, dilation: Two) -> Iterator[tuple[int, int, slice, slice]]:
    """For each kernel position (u, v) the slices that select its pixel of every window: padded[:, rows, columns]."""
    (ho, wo), (sh, sw), (dh, dw) = size, stride, dilation
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            rows = slice(u * dh, u * dh + (ho - 1) * sh + 1, sh)
            columns = slice(v * dw, v * dw + (wo - 1) * sw + 1, sw)
            yield u, v, rows, columns


def _pad(x: Array, padding: Two, value: float = 0.0) -> Array:
    """(N, H, W, C) -> (N, H+2ph, W+2pw, C)."""
    ph, pw = padding
    if (ph, pw) == (0, 0):
        return x
    return module_of(x).pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=value)


def im2col(x: Array, kernel: Two, stride: Two, padding: Two, dilation: Two) -> Array:
    """(N, H, W, C) -> (N, Ho, Wo, kh, kw, C): every window of the zero-padded image."""
    size = output_size(x.shape, kernel, stride, padding, dilation)
    padded = _pad(x, padding)
    columns = module_of(x).empty((x.shape[0], *size, *kernel, x.shape[3]), dtype=x.dtype)
    for u, v, rows, cols in window_slices(size, kernel, stride, dilation):
        columns[:, :, :, u, v] = padded[:, rows, cols]
    return columns


def col2im(columns: Array, shape: tuple[int, int, int, int], stride: Two, padding: Two, dilation: Two) -> Array:
    """The transpose of im2col: (N, Ho, Wo, kh, kw, C) -> (N, H, W, C), adding up what windows share."""
    n, h, w, c = shape
    ph, pw = padding
    padded = module_of(columns).zeros((n, h + 2 * ph, w + 2 * pw, c), dtype=columns.dtype)
    for u, v, rows, cols in window_slices(columns.shape[1:3], columns.shape[3:5], stride, dilation):
        padded[:, rows, cols] += columns[:, :, :, u, v]
    return padded[:, ph : ph + h, pw : pw + w]


def conv2d(x: Array, weight: Array, bias: Array | None, stride: Two, padding: Two, dilation: Two, groups: int) -> Array:
    """x (N,H,W,C), weight (kh,kw,C/groups,O), bias (O,) or None -> (N,Ho,Wo,O)."""
    kernel, outputs = weight.shape[:2], weight.shape[3]
    size = output_size(x.shape, kernel, stride, padding, dilation)
    windows = _windows(x, kernel, stride, padding, dilation)
    y = module_of(x).empty((x.shape[0] * size[0] * size[1], outputs), dtype=x.dtype)
    for ins, outs in group_slices(groups, x.shape[3], outputs):
        y[:, outs] = _as_matrix(windows[..., ins]) @ _as_weight_matrix(weight[..., outs])
    if bias is not None:
        y += bias
    return y.reshape(x.shape[0], *size, outputs)  # (M, O) -> (N, Ho, Wo, O)


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[Array | None, Array | None]:
    """dx (N,H,W,C) and dweight (kh,kw,C/groups,O), None where not needed.

    With columns @ weight = y:  dweight = columnsᵀ @ dy  and  dcolumns = dy @ weightᵀ.
    The columns, kh*kw times the size of the input, are computed anew instead of being kept since forward.
    """
    xp = module_of(x)
    kernel, outputs = weight.shape[:2], weight.shape[3]
    dy_matrix = dy.reshape(-1, outputs)  # (M, O)
    dx = dweight = None
    if need_dweight:
        windows = _windows(x, kernel, stride, padding, dilation)
        dweight = xp.empty(weight.shape, dtype=weight.dtype)
        for ins, outs in group_slices(groups, x.shape[3], outputs):
            product = _as_matrix(windows[..., ins]).T @ dy_matrix[:, outs]  # (kh*kw*C/groups, O/groups)
            dweight[..., outs] = product.reshape(*weight.shape[:3], -1)
    if need_dx:
        dcolumns = xp.empty((*dy.shape[:3], *kernel, x.shape[3]), dtype=x.dtype)
        for ins, outs in group_slices(groups, x.shape[3], outputs):
            product = dy_matrix[:, outs] @ _as_weight_matrix(weight[..., outs]).T  # (M, kh*kw*C/groups)
            dcolumns[..., ins] = product.reshape(*dy.shape[:3], *kernel, weight.shape[2])
        if kernel == stride == (1, 1) and padding == (0, 0):
            dx = dcolumns.reshape(x.shape)  # (N, H, W, 1, 1, C) -> (N, H, W, C)
        else:
            dx = col2im(dcolumns, x.shape, stride, padding, dilation)
    return dx, dweight


def _windows(x: Array, kernel: Two, stride: Two, padding: Two, dilation: Two) -> Array:
    """im2col; without any copying where the window is one pixel."""
    if kernel == (1, 1) and padding == (0, 0):
        return x[:, :: stride[0], :: stride[1], None, None]  # (N, Ho, Wo, 1, 1, C)
    return im2col(x, kernel, stride, padding, dilation)


def _as_matrix(windows: Array) -> Array:
    """(N, Ho, Wo, kh, kw, C) -> (M, kh*kw*C)."""
    n, ho, wo, kh, kw, c = windows.shape
    return windows.reshape(n * ho * wo, kh * kw * c)


def _as_weight_matrix(weight: Array) -> Array:
    """(kh, kw, C, O) -> (kh*kw*C, O)."""
    kh, kw, c, o = weight.shape
    return weight.reshape(kh * kw * c, o)


def group_slices(groups: int, channels: int, outputs: int) -> Iterator[tuple[slice, slice]]:
    """For each group: its slice of the input channels and of the output channels."""
    c, o = channels // groups, outputs // groups
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)


# Batch normalisation ----------------------------------------------------------------------------------------


def column_sum(x: Array) -> Array:
    """(..., C) -> (C,): the sum over all positions.

    A row of ones times the (M, C) matrix: x.sum(axis=0) adds rows of only C numbers at a time, which is 20 times
    slower in NumPy at C = 16, and adds M numbers in a row, where a matrix product rounds less.
    """
    matrix = x.reshape(-1, x.shape[-1])  # (M, C)
    return module_of(x).ones(matrix.shape[0], dtype=x.dtype) @ matrix


class Running(NamedTuple):
    """The running statistics of a batch norm, which each batch of training moves in place."""

    mean: Array  # (C,)
    var: Array  # (C,), unbiased
    batches: Array | None  # (), int64: how many batches there were
    momentum: float


def batch_norm_statistics(x: Array, running: Running | None = None) -> tuple[Array, Array]:
    """Mean and biased variance of x (..., C) per channel, each (C,). The running statistics move towards them."""
    count = x.size // x.shape[-1]  # M
    mean = column_sum(x) / count
    var = column_sum((x - mean) ** 2) / count  # mean(x²) - mean² would cancel when the mean is large
    if running:
        update_running_statistics(running, mean, var, count)
    return mean, var


def batch_norm_apply(x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias, like x."""
    return (x - mean) * (weight / module_of(x).sqrt(var + eps)) + bias


def batch_norm_backward(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    """dx, dweight and dbias, for y = batch_norm_apply(x, ...).

    With x̂ = (x - mean) / std:  dbias = Σ dy,  dweight = Σ dy x̂  and, since mean and std depend on every x,
        dx = weight / std * (dy - mean(dy) - x̂ mean(dy x̂)).
    In evaluation mean and std are constants, and dx = weight / std * dy. Source: Ioffe and Szegedy 2015, section 3.
    """
    inverse_std = 1 / module_of(x).sqrt(var + eps)
    x_hat = (x - mean) * inverse_std
    dbias = column_sum(dy)
    dweight = column_sum(dy * x_hat)
    if training:
        count = x.size // x.shape[-1]  # M
        dx = weight * inverse_std * (dy - dbias / count - x_hat * (dweight / count))
    else:
        dx = weight * inverse_std * dy
    return dx, dweight, dbias


def update_running_statistics(running: Running, mean: Array, var: Array, count: int) -> None:
    """Move the running statistics in place towards those of a batch of `count` values per channel.

    `var` is biased (divided by `count`), the running variance is not.
    """
    running_mean, running_var, batches, momentum = running
    if batches is not None:
        batches[...] += 1
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * (count / (count - 1)) - running_var)


# Activation, pooling, linear, loss ----------------------------------------------------------------------------------


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return module_of(x).maximum(x, 0)


def relu_backward(dy: Array, y: Array) -> Array:
    """dy where the output y was positive, else 0."""
    return dy * (y > 0)


def max_pool2d(x: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    """(N,H,W,C) -> (N,Ho,Wo,C): the maximum of each window, padding counting as minus infinity."""
    xp = module_of(x)
    size = output_size(x.shape, kernel, stride, padding)
    padded = _pad(x, padding, value=-xp.inf)
    y = None
    for _, _, rows, columns in window_slices(size, kernel, stride, (1, 1)):
        element = padded[:, rows, columns]
        y = element.copy() if y is None else xp.maximum(y, element)
    return y


def max_pool2d_backward(dy: Array, x: Array, y: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    """dx (N,H,W,C): dy goes to the first element of each window, row by row, that equals the maximum y."""
    xp = module_of(x)
    ph, pw = padding
    padded = _pad(x, padding, value=-xp.inf)
    dpadded = xp.zeros(padded.shape, dtype=dy.dtype)
    not_yet = xp.ones(y.shape, dtype=bool)  # windows whose maximum has not been met
    for _, _, rows, columns in window_slices(y.shape[1:3], kernel, stride, (1, 1)):
        is_max = (padded[:, rows, columns] == y) & not_yet
        dpadded[:, rows, columns] += dy * is_max
        not_yet &= ~is_max
    return dpadded[:, ph : ph + x.shape[1], pw : pw + x.shape[2]]


def avg_pool2d(x: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    """(N,H,W,C) -> (N,Ho,Wo,C): the mean of each window, padding counting as zeros."""
    size = output_size(x.shape, kernel, stride, padding)
    padded = _pad(x, padding)
    y = module_of(x).zeros((x.shape[0], *size, x.shape[3]), dtype=x.dtype)
    for _, _, rows, columns in window_slices(size, kernel, stride, (1, 1)):
        y += padded[:, rows, columns]
    return y / (kernel[0] * kernel[1])


def avg_pool2d_backward(dy: Array, shape: tuple[int, int, int, int], kernel: Two, stride: Two, padding: Two) -> Array:
    """dx of `shape` (N,H,W,C): each window hands dy / (kh*kw) to all its elements."""
    (n, h, w, c), (ph, pw) = shape, padding
    dpadded = module_of(dy).zeros((n, h + 2 * ph, w + 2 * pw, c), dtype=dy.dtype)
    share = dy / (kernel[0] * kernel[1])
    for _, _, rows, columns in window_slices(dy.shape[1:3], kernel, stride, (1, 1)):
        dpadded[:, rows, columns] += share
    return dpadded[:, ph : ph + h, pw : pw + w]


def global_avg_pool2d(x: Array) -> Array:
    """(N,H,W,C) -> (N,C): the mean over all positions."""
    return x.sum(axis=(1, 2)) * (1.0 / (x.shape[1] * x.shape[2]))


def global_avg_pool2d_backward(dy: Array, x: Array) -> Array:
    """dx, like x: every position receives dy (N,C) / (H*W)."""
    share = dy * (1.0 / (x.shape[1] * x.shape[2]))
    return module_of(dy).broadcast_to(share[:, None, None], x.shape)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x (..., C) @ weight (C, O) + bias (O,)."""
    y = x @ weight
    if bias is not None:
        y += bias
    return y


def linear_backward(
    dy: Array, x: Array, weight: Array, need_dx: bool, need_dweight: bool
) -> tuple[Array | None, Array | None, Array]:
    """dx and dweight, None where not needed, and dbias."""
    features, outputs = weight.shape
    dx = dy @ weight.T if need_dx else None
    dy = dy.reshape(-1, outputs)  # (M, O)
    dweight = x.reshape(-1, features).T @ dy if need_dweight else None  # (C, M) @ (M, O)
    return dx, dweight, dy.sum(axis=0)


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    """The mean loss, a scalar, and softmax(logits) (N, K), for logits (N, K) and labels (N,).

    A label outside 0..K-1 makes the loss NaN: functional/loss.py checks labels on the CPU only, and CuPy's indices wrap
    around.
    """
    xp = module_of(logits)
    n, classes = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    mean_log_p = xp.where((labels >= 0) & (labels < classes), log_p[xp.arange(n), labels], xp.nan).mean()
    if label_smoothing == 0:  # also keeps 0 * -inf out of the sum
        return -mean_log_p, xp.exp(log_p)
    return -((1 - label_smoothing) * mean_log_p + label_smoothing * log_p.mean()), xp.exp(log_p)


def cross_entropy_backward(dloss: Array, probabilities: Array, labels: Array, label_smoothing: float) -> Array:
    """dlogits (N, K) = (softmax - target) / N * dloss."""
    xp = module_of(probabilities)
    n, classes = probabilities.shape
    dlogits = probabilities - label_smoothing / classes
    dlogits[xp.arange(n), labels] -= 1 - label_smoothing
    return dlogits * (dloss / n)


# Optimiser updates, in place on flat arrays -----------------------------------------------------------------


def sgd_update(
    parameter: Array, gradient: Array, velocity: Array, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    """One step of stochastic gradient descent, as PyTorch defines it (torch.optim.SGD, dampening 0).

    g = gradient + weight_decay * parameter
    velocity = momentum * velocity + g
    parameter -= lr * velocity          (Nesterov: lr * (g + momentum * velocity))
    """
    g = gradient + weight_decay * parameter if weight_decay else gradient
    if momentum:
        velocity[...] = momentum * velocity + g
        g = g + momentum * velocity if nesterov else velocity
    parameter -= lr * g


def prepare_lr(previous: Array | None, like: Array, lr: float, step: int, betas: tuple[float, float]) -> float:
    """The learning rate of step `step` in the form that the updates take: here the number itself.

    A backend may write the rate, and Adam's corrections 1 - beta**step, into an array on the device of `like`, because
    a recorded step is repeated with the same arguments. `previous` is the array of the last step, to be overwritten.
    """
    return lr


def adam_update(
    parameter: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One step of Adam, or of AdamW when `decoupled`; `step` counts from 1.

    mean = β1 mean + (1-β1) g,  square = β2 square + (1-β2) g²
    parameter -= lr * (mean / (1-β1^step)) / (sqrt(square / (1-β2^step)) + eps)

    Adam adds weight_decay * parameter to g; AdamW multiplies the parameter by 1 - lr * weight_decay instead.
    Sources: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
    """
    if decoupled:
        parameter *= 1 - lr * weight_decay
    g = gradient + weight_decay * parameter if weight_decay and not decoupled else gradient
    mean += (1 - beta1) * (g - mean)
    square *= beta2
    square += (1 - beta2) * g * g
    denominator = module_of(square).sqrt(square) / (1 - beta2**step) ** 0.5 + eps
    parameter -= lr / (1 - beta1**step) * mean / denominator


# Images -----------------------------------------------------------------------------------------------------


def crop_and_flip(images: Array, top: Array, left: Array, flip: Array, padding: int) -> Array:
    """uint8 (N,H,W,C) -> uint8 (N,H,W,C): pad with zeros, cut an (H, W) window at (top, left), mirror where `flip`.

    top and left (N,) are in 0..2*padding, flip (N,) is boolean. All images are cut by one indexing operation.
    """
    xp = module_of(images)
    n, h, w, _ = images.shape
    padded = _pad(images, (padding, padding), value=0)
    rows = top[:, None] + xp.arange(h)  # (N, H)
    columns = left[:, None] + xp.where(flip[:, None], xp.arange(w)[::-1], xp.arange(w))  # (N, W)
    return padded[xp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalize(images: Array, mean: Array, std: Array) -> Array:
    """uint8 (N,H,W,C) -> float32 (N,H,W,C): (pixel / 255 - mean) / std, with mean and std (C,) in float32."""
    return (images.astype("float32") / 255 - mean) / std


def make_batch(
    images: Array, labels: Array, choices: Array, begin: int, n: int, padding: int, mean: Array, std: Array
) -> tuple[Array, Array]:
    """A batch of `n` images: x float32 (n,H,W,C), cropped, flipped and normalised, and its labels (n,).

    choices  integers (total, 4): image, top, left and flip of every image of an epoch; this batch begins at `begin`
    """
    chosen, top, left, flip = choices[begin : begin + n].T
    x = images[chosen]
    if padding or flip.any():
        x = crop_and_flip(x, top, left, flip != 0, padding)
    return normalize(x, mean, std), labels[chosen]


# What only a backend may offer: residual branches as one operation, see nn/fused.py --------------------------

branch = evaluate_branch = None
