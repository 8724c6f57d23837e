"""The networks: resnet.py (18 ... 152) and resnet_cifar.py (20 ... 1202). Weights for them come from pretrained.py, and
recognise.py finds the network that weights belong to.

Reading order: resnet.py, resnet_cifar.py; stages.py any time; pretrained.py and recognise.py after weights/.
"""

from __future__ import annotations

from typing import Any

from minires.models import resnet, resnet_cifar
from minires.models.pretrained import imagenet_classes
from minires.models.recognise import from_state_dict, from_weights
from minires.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from minires.models.resnet_cifar import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110, resnet1202
from minires.models.stages import stages

__all__ = [
    "DEPTHS", "CifarResNet", "ResNet", "build", "from_state_dict", "from_weights", "imagenet_classes", "resnet18",
    "resnet20", "resnet32", "resnet34", "resnet44", "resnet50", "resnet56", "resnet101", "resnet110", "resnet152",
    "resnet1202", "stages",
]  # fmt: skip

DEPTHS = (*resnet_cifar.DEPTHS, *resnet.CONFIGURATIONS)


def build(
    depth: int, num_classes: int | None = None, stem: str | None = None, shortcut: bool = True, **options: Any
) -> ResNet | CifarResNet:
    """The network of `depth` layers: resnet18(...), resnet20(...) and so on, whose defaults hold for None.

    num_classes  default: 1000 for depths 18 ... 152, 10 for 20 ... 1202
    stem         default: "imagenet" for depths 18 ... 152; 20 ... 1202 have one of their own, called "cifar"
    shortcut     False for the plain network: the same layers, of which each block computes relu(F(x))

    Raises `ValueError` for a depth or stem that does not exist.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth: {depth} is unknown, expected one of {', '.join(map(str, DEPTHS))}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    if depth in resnet.CONFIGURATIONS:
        return getattr(resnet, f"resnet{depth}")(stem=stem or "imagenet", shortcut=shortcut, **options)
    if stem not in (None, "cifar"):
        raise ValueError(f"stem: ResNet-{depth} has a stem of its own for 32x32 images; {stem!r} exists for 18 ... 152")
    return getattr(resnet_cifar, f"resnet{depth}")(shortcut=shortcut, **options)
