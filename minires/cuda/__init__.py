"""The CUDA backend: the functions of reference.py again, as CUDA C launched through CuPy, and cuBLAS for products.

What is not imported here from a file of this folder is the reference's own function, which runs on CuPy's arrays.

A file NAME.py launches the kernels of NAME.cu, where there is one (convolution.py those of columns.cu and
weight_gradient.cu too). Read the .cu file first: it opens with the formula.

Reading order: launch.py (how a kernel is compiled, checked and launched), common.cuh, sums, batch_norm, blas.py (matrix
products), columns.cu, precision.py, tensor_core.cuh with convolution and weight_gradient.cu, elementwise, pooling,
linear.py, loss, images, optimizers, branch.py, graph.py (a whole step as one launch), step.py, memory.py, check.py.
docs/fast-cuda.md tells the story.

Arrays are CuPy's, float32 or, with precision "bf16", bfloat16 where they are activations. Nothing here waits for the
GPU.
"""

import sys

from minires.reference import *

# isort: split
from minires import device, kernels
from minires.cuda import precision
from minires.cuda.batch_norm import batch_norm_apply, batch_norm_backward, batch_norm_statistics
from minires.cuda.branch import branch, evaluate_branch
from minires.cuda.check import check
from minires.cuda.convolution import conv2d, conv2d_backward
from minires.cuda.elementwise import relu, relu_backward
from minires.cuda.graph import pools_bytes
from minires.cuda.images import crop_and_flip, make_batch, normalize
from minires.cuda.linear import linear, linear_backward
from minires.cuda.loss import cross_entropy, cross_entropy_backward
from minires.cuda.memory import step_bytes
from minires.cuda.optimizers import adam_update, prepare_lr, sgd_update
from minires.cuda.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from minires.cuda.step import DeviceStep as Step
from minires.cuda.sums import column_sum

# `minires.cuda` is this package and, where the package is missing, the class of the same name: both can say this.
is_available, why_not, capability = device.cuda.is_available, device.cuda.why_not, device.cuda.capability

kernels.register("cuda", sys.modules[__name__], ("float32", "uint8", "bfloat16"))
