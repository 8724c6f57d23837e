"""The kernels of reference.py again, as CUDA C launched through CuPy, and cuBLAS for matrix products.

A file NAME.py launches the kernels of NAME.cu, where there is one (convolution.py those of columns.cu and
weight_gradient.cu too); read the .cu file first: it opens with the formula. Reading order:
launch.py (how a kernel is compiled, checked and launched), batch_norm, blas.py (matrix products), columns.cu,
convolution and weight_gradient.cu with tensor_core.cuh, precision.py, elementwise, pooling, loss, images, optimizers,
branch.py, graph.py (a whole step as one launch), check.py. docs/fast-cuda.md tells the story.

Arrays are CuPy's, float32 or, with precision "bf16", bfloat16 where they are activations. Nothing here waits for the
GPU.
"""

from minires.kernels.cuda.batch_norm import (
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_statistics,
    column_sum,
    update_running_statistics,
)
from minires.kernels.cuda.branch import Layer, branch, branch_backward, evaluate_branch
from minires.kernels.cuda.convolution import conv2d, conv2d_backward
from minires.kernels.cuda.elementwise import relu, relu_backward
from minires.kernels.cuda.images import crop_and_flip, make_batch, normalize
from minires.kernels.cuda.loss import cross_entropy, cross_entropy_backward, linear, linear_backward, record_step
from minires.kernels.cuda.optimizers import adam_update, make_schedule, sgd_update
from minires.kernels.cuda.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)

__all__ = [
    "Layer", "adam_update", "avg_pool2d", "avg_pool2d_backward", "batch_norm_apply", "batch_norm_backward",
    "batch_norm_statistics", "branch", "branch_backward", "column_sum", "conv2d", "conv2d_backward", "crop_and_flip",
    "cross_entropy", "cross_entropy_backward", "evaluate_branch", "global_avg_pool2d", "global_avg_pool2d_backward",
    "linear", "linear_backward", "make_batch", "make_schedule", "max_pool2d", "max_pool2d_backward", "normalize",
    "record_step", "relu", "relu_backward", "sgd_update", "update_running_statistics",
]  # fmt: skip
