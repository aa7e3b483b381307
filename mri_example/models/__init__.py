"""Reconstruction models by name, and what describes them in a checkpoint."""

import json
from typing import Any

from mri_example.errors import require, reworded
from mri_example.models.base import Reconstructor, defaults
from mri_example.models.irim import IRIM2D, IRIM3D, ChallengeIRIM

__all__ = [
    "IRIM2D",
    "IRIM3D",
    "MODELS",
    "ChallengeIRIM",
    "Reconstructor",
    "build",
    "describe",
]
MODELS: dict[str, type[Reconstructor]] = {
    model.__name__: model for model in (IRIM2D, IRIM3D, ChallengeIRIM)
}


def describe(model: Reconstructor) -> dict[str, Any]:
    """Return the name of a model and all its arguments, in types that JSON knows.

    Examples:
        >>> description = describe(IRIM2D(16, steps=2))
        >>> description["model"], description["channels"], description["steps"]
        ('IRIM2D', 16, 2)
    """
    plain: dict[str, Any] = json.loads(json.dumps(model.options))
    return {"model": name_of(type(model))} | plain


def name_of(model: type[Reconstructor]) -> str:
    """Return the name of a model of this package, or the path of another class."""
    name = model.__name__
    return name if MODELS.get(name) is model else f"{model.__module__}.{name}"


def build(
    description: dict[str, Any], model: type[Reconstructor] | None = None
) -> Reconstructor:
    """Build the model that `describe` described; further keys may stand.

    A description never imports anything: a class that is not of this package is built
    if it is the one that is handed in.

    Raises:
        InputError: If there is no such model, or its arguments do not fit.
    """
    name = str(description.get("model"))
    classes = MODELS if model is None else MODELS | {name_of(model): model}
    text = f"the model is {name!r}, but can only be one of {', '.join(classes)}: name "
    require(name in classes, f"{text}its class as model_class")
    known = defaults(classes[name])
    options = {key: value for key, value in description.items() if key in known}
    with reworded("the model cannot be built: {}", TypeError, ValueError):
        return classes[name](**options)
