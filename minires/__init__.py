"""minires: deep learning from scratch on NumPy and CuPy, small enough to read, that trains ResNet-101.

Reading order, from the array to the weight update: device.py and tensor.py (the engine), functional/ and reference.py
(the operations), nn/, models/, optim/, data/, train/. Each file names the next. Next: device.py.
"""

import importlib.util

from minires import data, device, functional, kernels, models, nn, optim
from minires.cli.info import info
from minires.device import cuda, default_generator, manual_seed
from minires.gradcheck import GradcheckError, gradcheck
from minires.nn.fold import fold
from minires.nn.summary import summary
from minires.tensor import Tensor, is_grad_enabled, no_grad
from minires.weights import WeightsError, load_weights, save_weights

__version__ = "0.2.0"

__all__ = [
    "GradcheckError", "Tensor", "WeightsError", "cuda", "data", "default_generator", "device", "fold",
    "functional", "gradcheck", "info", "is_grad_enabled", "kernels", "load_weights", "manual_seed", "models", "nn",
    "no_grad", "optim", "save_weights", "summary",
]  # fmt: skip

# Each backend registers itself; without them everything works, slower. mr.cuda is then the package minires.cuda:
# it has the three functions of the class too.
for _backend in ("minires.cpu", "minires.cuda"):
    _spec = importlib.util.find_spec(_backend)
    if _spec and _spec.origin:  # a folder of which only the cache is left has no origin
        importlib.import_module(_backend)
