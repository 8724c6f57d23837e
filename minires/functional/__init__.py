"""Every differentiable operation, and the operators of Tensor.

    import minires.functional as F

Reading order: arithmetic.py, shape.py, reduction.py; then, after reference.py and kernels.py: activation.py, linear.py,
loss.py, convolution.py, normalization.py, pooling.py.
"""

from minires.functional.activation import dropout, log_softmax, relu, softmax
from minires.functional.arithmetic import (
    add,
    as_tensor,
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
from minires.functional.normalization import batch_norm
from minires.functional.pooling import avg_pool2d, global_avg_pool2d, max_pool2d
from minires.functional.reduction import max, mean, sum
from minires.functional.shape import concatenate, flatten, getitem, pad, reshape, transpose
from minires.tensor import Tensor

__all__ = [
    "add", "avg_pool2d", "batch_norm", "concatenate", "conv2d", "cross_entropy", "divide", "dropout", "exp",
    "flatten", "getitem", "global_avg_pool2d", "linear", "log", "log_softmax", "matmul", "max", "max_pool2d", "mean",
    "multiply", "negative", "pad", "power", "relu", "reshape", "softmax", "sqrt", "subtract", "sum", "transpose",
]  # fmt: skip

# Tensor's operators and methods, attached here because tensor.py imports no operations.
Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda self, other: subtract(as_tensor(other, self), self)
Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda self, other: divide(as_tensor(other, self), self)
Tensor.__neg__ = negative
Tensor.__pow__ = power
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda self, other: matmul(as_tensor(other, self), self)
Tensor.__getitem__ = getitem
Tensor.sum, Tensor.mean, Tensor.max = sum, mean, max
Tensor.reshape, Tensor.transpose, Tensor.flatten = reshape, transpose, flatten
Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.relu = exp, log, sqrt, relu
Tensor.T = property(transpose, doc="All axes reversed.")
