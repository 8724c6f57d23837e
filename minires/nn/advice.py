"""What a Module says when something is wrong: the layer at fault, layers in a list, and what is no layer.

Reading order: when a message is of interest; module.py and layers.py ask here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minires.nn.module import Module

MOST_LEVELS = 3  # of containers in containers, in which layers are looked for


class Place:
    """Kept at an error: the layer that it arises in, its own text, and the text with the layer's path before it."""

    def __init__(self, layer: Module | None, text: str):
        self.layer, self.text, self.written = layer, text, text

    def __reduce__(self) -> tuple:
        return Place, (None, self.written)  # a pickled error takes no layer along


def arises_in(layer: Module, error: Exception) -> None:
    """Note that `error` arises in `layer`."""
    if type(error) in (TypeError, ValueError) and len(error.args) == 1 and isinstance(error.args[0], str):
        error.place = Place(layer, error.args[0])  # pyright: ignore[reportAttributeAccessIssue] # a note of ours


def name_layer(module: Module, error: Exception) -> None:
    """Put the path of the layer at fault before the text of `error`: "layer3.1.conv2 (Conv2d): ...".

    Each module that `error` passes on its way out calls this function, with a longer path. A text that somebody has
    changed on the way is left alone, and so is an error with other arguments than one text, or of another class.
    """
    place = getattr(error, "place", None)
    names = {layer: name for name, layer in module.named_modules()}
    if place is None:
        arises_in(module, error)
    elif place.layer not in names:  # raised a second time, elsewhere
        if error.args == (place.written,):
            error.place = Place(module, place.text)  # pyright: ignore[reportAttributeAccessIssue]
            error.args = (place.text,)
    elif error.args == (place.written,) and names[place.layer]:
        place.written = f"{names[place.layer]} ({type(place.layer).__name__}): {place.text}"
        error.args = (place.written,)


def warn_of_lists(module: Module, kinds: tuple[type, type]) -> None:
    """Warn of a Module or Parameter (`kinds`) in a list, tuple or dict of Python, which is no part of the network."""
    known = {id(part) for layer in module.modules() for part in (layer, *vars(layer).values())}
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            lost = next((part for part in _parts(value) if isinstance(part, kinds) and id(part) not in known), None)
            if lost is not None:
                where, kind = f"{path or type(module).__name__}.{name}", type(value).__name__
                advice = "make it an attribute of its own" if isinstance(lost, kinds[1]) else "use nn.ModuleList"
                text = f"{where} is a {kind}: the {type(lost).__name__} in it will not be trained; {advice}"
                warnings.warn(text, stacklevel=_frames_of_the_package())


def _parts(value: Any, level: int = 1) -> Iterator[Any]:
    if isinstance(value, (list, tuple, dict)) and level <= MOST_LEVELS:
        for part in value.values() if isinstance(value, dict) else value:
            yield part
            yield from _parts(part, level + 1)


def _frames_of_the_package() -> int:
    """The `stacklevel` with which `warn_of_lists` points to the line that called into minires."""
    frame, level = sys._getframe(1), 1
    while frame and frame.f_globals.get("__name__", "").startswith("minires."):
        frame, level = frame.f_back, level + 1
    return level


def no_module(value: Any) -> str:
    """In words, what `value` is instead of a Module, and what to write."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__}; pass its modules: nn.Sequential(*layers), or nn.ModuleList(layers)"
    if isinstance(value, dict):
        return "a dict; pass its modules: nn.Sequential(*layers.values())"
    if isinstance(value, type):
        return f"the class {value.__name__}; make a layer of it: {value.__name__}(...)"
    if callable(value):
        return f"the function {getattr(value, '__name__', '')}; write a layer around it, or take one, such as nn.ReLU()"
    return f"of type {type(value).__name__}"
