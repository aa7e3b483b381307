"""Reconstruction models by name, and what describes them in a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from mri_example.errors import InputError
from mri_example.models.base import Reconstructor, defaults
from mri_example.models.irim import IRIM2D, IRIM3D, ChallengeIRIM
from mri_example.models.rim import RIM
from mri_example.models.unet import UNet

__all__ = [
    "IRIM2D",
    "IRIM3D",
    "MODELS",
    "RIM",
    "ChallengeIRIM",
    "Reconstructor",
    "UNet",
    "build",
    "describe",
]
MODELS: dict[str, type[Reconstructor]] = {
    model.__name__: model for model in (IRIM2D, IRIM3D, ChallengeIRIM, RIM, UNet)
}


def describe(model: Reconstructor) -> dict[str, Any]:
    """Return the name of a model and all its arguments, in types that JSON knows.

    Examples:
        >>> describe(UNet(pools=2))
        {'model': 'UNet', 'channels': 32, 'pools': 2}
    """
    plain: dict[str, Any] = json.loads(json.dumps(model.options))
    return {"model": type(model).__name__} | plain


def build(description: dict[str, Any]) -> Reconstructor:
    """Build the model that `describe` described; further keys may stand.

    Raises:
        InputError: If there is no such model, or its arguments do not fit.
    """
    name = description.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(
            f"the model is {name!r}, but can only be one of {', '.join(MODELS)}"
        )
    known = defaults(MODELS[name])
    options = {key: value for key, value in description.items() if key in known}
    try:
        return MODELS[name](**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"the model cannot be built: {error}") from error
