"""Plain networks: every ResNet without its shortcuts, for the paper's degradation experiment.

They compute F(x) where the ResNet computes F(x) + x: a plain network has the same layers in the same order, without
the 1x1 projections in the shortcuts of ResNet-18 ... 152 (ResNet-20 ... 1202 have none). Made deeper, it trains worse
(He et al. 2015, figure 1); that is what the shortcut mends.

Reading order: after resnet_cifar.py. Next: optim/optimizer.py.
"""

from __future__ import annotations

from functools import partial

from minires.models import resnet, resnet_cifar

plain20 = partial(resnet_cifar.resnet20, shortcut=False)
plain32 = partial(resnet_cifar.resnet32, shortcut=False)
plain44 = partial(resnet_cifar.resnet44, shortcut=False)
plain56 = partial(resnet_cifar.resnet56, shortcut=False)
plain110 = partial(resnet_cifar.resnet110, shortcut=False)
plain1202 = partial(resnet_cifar.resnet1202, shortcut=False)
plain18 = partial(resnet.resnet18, shortcut=False)
plain34 = partial(resnet.resnet34, shortcut=False)
plain50 = partial(resnet.resnet50, shortcut=False)
plain101 = partial(resnet.resnet101, shortcut=False)
plain152 = partial(resnet.resnet152, shortcut=False)
