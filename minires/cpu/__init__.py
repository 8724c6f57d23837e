"""The CPU backend: the functions of reference.py again, cache-blocked and threaded, with NumPy alone.

What is not imported here from a file of this folder is the reference's own function.

Reading order: workers.py (why threads, why chunks), matmul.py, plan.py (which algorithm where), convolution.py,
winograd.py, elementwise.py, batch_norm.py, branch.py, pooling.py, optimizers.py. docs/fast-cpu.md tells the story.
"""

import sys

from minires.reference import *

# isort: split
from minires import kernels
from minires.cpu.batch_norm import batch_norm_apply, batch_norm_backward, batch_norm_statistics, column_sum
from minires.cpu.branch import branch, evaluate_branch
from minires.cpu.convolution import conv2d, conv2d_backward
from minires.cpu.elementwise import relu, relu_backward
from minires.cpu.optimizers import adam_update, sgd_update
from minires.cpu.plan import workspace_bytes
from minires.cpu.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from minires.cpu.workers import threads

kernels.register("cpu", sys.modules[__name__], ("float32", "uint8"))
