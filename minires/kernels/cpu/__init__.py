"""The kernels of reference.py again, fast on a CPU with NumPy alone: cache-blocked and threaded.

Reading order: workers.py (why threads, why chunks), matmul.py, plan.py (which algorithm where), convolution.py,
winograd.py, elementwise.py, batch_norm.py, branch.py, pooling.py, optimizers.py. docs/fast-cpu.md tells the story.

What costs nothing in a training step (the loss, the stand-alone ReLU, images) is the reference's own function.
"""

from minires.kernels.cpu.batch_norm import batch_norm_apply, batch_norm_backward, batch_norm_statistics, column_sum
from minires.kernels.cpu.branch import Layer, branch, branch_backward, evaluate_branch
from minires.kernels.cpu.convolution import conv2d, conv2d_backward
from minires.kernels.cpu.optimizers import adam_update, sgd_update
from minires.kernels.cpu.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from minires.kernels.reference import (
    crop_and_flip,
    cross_entropy,
    cross_entropy_backward,
    normalize,
    relu,
    relu_backward,
)

__all__ = [
    "Layer", "adam_update", "avg_pool2d", "avg_pool2d_backward", "batch_norm_apply", "batch_norm_backward",
    "batch_norm_statistics", "branch", "branch_backward", "column_sum", "conv2d", "conv2d_backward", "crop_and_flip",
    "cross_entropy", "cross_entropy_backward", "evaluate_branch", "max_pool2d", "max_pool2d_backward", "normalize",
    "relu", "relu_backward", "sgd_update",
]  # fmt: skip
