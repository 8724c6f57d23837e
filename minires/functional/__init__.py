"""Every differentiable operation, and the operators of Tensor.

    import minires.functional as F

Reading order: arithmetic.py, shape.py, reduction.py; then, after reference.py and kernels.py: activation.py, linear.py,
loss.py, convolution.py, normalization.py, pooling.py. Any time: operators.py, more.py.
"""

from minires.functional.activation import dropout, log_softmax, relu, softmax
from minires.functional.arithmetic import (
    add,
    divide,
    exp,
    log,
    matmul,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
)
from minires.functional.convolution import conv2d
from minires.functional.linear import linear
from minires.functional.loss import cross_entropy
from minires.functional.more import (
    abs,
    argmax,
    clip,
    interpolate,
    mse_loss,
    sigmoid,
    squeeze,
    stack,
    tanh,
    var,
    where,
)
from minires.functional.normalization import batch_norm
from minires.functional.operators import Operators
from minires.functional.pooling import avg_pool2d, global_avg_pool2d, max_pool2d
from minires.functional.reduction import max, mean, sum
from minires.functional.shape import concatenate, flatten, getitem, pad, reshape, transpose
from minires.tensor import Tensor

__all__ = [
    "abs", "add", "argmax", "avg_pool2d", "batch_norm", "clip", "concatenate", "conv2d", "cross_entropy", "divide",
    "dropout", "exp", "flatten", "getitem", "global_avg_pool2d", "interpolate", "linear", "log", "log_softmax",
    "matmul", "max", "max_pool2d", "mean", "mse_loss", "multiply", "negative", "pad", "power", "relu", "reshape",
    "sigmoid", "softmax", "sqrt", "squeeze", "stack", "subtract", "sum", "tanh", "transpose", "var", "where",
]  # fmt: skip

# tensor.py imports no operations: its operators and methods come to Tensor here.
for _name, _value in vars(Operators).items():
    if callable(_value) or isinstance(_value, property):
        setattr(Tensor, _name, _value)
