"""The description of this machine that `minires.info` and `minires info` give.

Reading order: any time.
"""

from __future__ import annotations

import importlib
import os
import platform
from typing import Any

import numpy as np

from minires import kernels
from minires.device import cuda
from minires.nn.summary import format_bytes


def info() -> dict[str, Any]:
    """What minires runs on and with: versions, processor, devices, kernels and threads."""
    from threadpoolctl import threadpool_info

    versions = {
        "python": platform.python_version(),
        "minires": importlib.import_module("minires").__version__,
        "numpy": np.__version__,
    }
    if cuda.is_available():
        versions["cupy"] = importlib.import_module("cupy").__version__
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    backend_threads = kernels.part("threads", "cpu")
    threads = backend_threads() if backend_threads else max((pool["num_threads"] for pool in blas), default=1)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cuda": "available" if cuda.is_available() else cuda.why_not(),
        "gpu": _gpu() if cuda.is_available() else None,
        "kernels": {
            "cpu": kernels.in_use("cpu"),
            "cuda": kernels.in_use("cuda") if cuda.is_available() else "not usable",
        },
        "blas": [f"{pool['internal_api']} {pool['version']}" for pool in blas],
        "threads": threads,
    }


def _gpu() -> dict[str, Any]:
    """The GPU's name, compute capability and memory, and the precision of the kernels."""
    cupy = importlib.import_module("cupy")
    major, minor = cuda.capability() or (0, 0)  # never None where there is a GPU
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "capability": f"{major}.{minor}",
        "memory": format_bytes(cupy.cuda.runtime.memGetInfo()[1]),
        "precision": kernels.precision_in_use(),
    }


def _processor() -> str:
    """The processor's name, from Linux; elsewhere from Python."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(text.split(":")[1].strip() for text in file if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
