"""minires: deep learning from scratch on NumPy and CuPy, small enough to read, that trains ResNet-101.

Reading order, following one image from disk to the weight update:
data/ -> device.py -> tensor.py -> functional/ -> kernels/reference.py -> nn/ -> models/ -> optim/ -> train/.
Each file names the next. Next: data/__init__.py.
"""

from __future__ import annotations

import importlib
import os
import platform
from typing import Any

import numpy as np

from minires import data, device, functional, kernels, models, nn, optim
from minires.device import cuda, default_generator, manual_seed
from minires.fold import fold
from minires.gradcheck import GradcheckError, gradcheck
from minires.kernels.cpu import workers
from minires.summary import format_bytes, summary
from minires.tensor import Tensor, is_grad_enabled, no_grad
from minires.weights import WeightsError, load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "GradcheckError", "Tensor", "WeightsError", "cuda", "data", "default_generator", "device", "fold", "functional",
    "gradcheck", "info", "is_grad_enabled", "kernels", "load_weights", "manual_seed", "models", "nn", "no_grad",
    "optim", "save_weights", "summary",
]  # fmt: skip


def info() -> dict[str, Any]:
    """What this machine runs minires with: versions, processor, devices, kernels and threads."""
    from threadpoolctl import threadpool_info

    versions = {"python": platform.python_version(), "minires": __version__, "numpy": np.__version__}
    if cuda.is_available():
        versions["cupy"] = importlib.import_module("cupy").__version__
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    threads = max((pool["num_threads"] for pool in blas), default=1)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cuda": "available" if cuda.is_available() else cuda.why_not(),
        "gpu": _gpu() if cuda.is_available() else None,
        "kernels": {"cpu": kernels.in_use("cpu"), "cuda": kernels.in_use("cuda")},
        "blas": [f"{pool['internal_api']} {pool['version']}" for pool in blas],
        "threads": workers.count if kernels.in_use("cpu") == "cpu" else threads,
    }


def _gpu() -> dict[str, Any]:
    """Its name, compute capability and memory, and the precision in which the kernels compute on it."""
    cupy = importlib.import_module("cupy")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "capability": "{}.{}".format(*cuda.capability()),
        "memory": format_bytes(cupy.cuda.runtime.memGetInfo()[1]),
        "precision": kernels.cuda.precision.current,
    }


def _processor() -> str:
    """Its name, where Linux tells; elsewhere what Python knows."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(text.split(":")[1].strip() for text in file if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
