"""Checkpoints: written whole, loaded without executing code, checked before use."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from mri_example.data import whole_file
from mri_example.errors import InputError
from mri_example.model import Reconstructor, model_config
from mri_example.paths import check_file

CONFIGURATION = "invtorch_configuration"
RESUMED = (
    "epoch",
    "state_dict",
    "optimizer_states",
    "loops",
    "pytorch-lightning_version",
)


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints to a temporary name, and load them as plain data."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: Any,
        storage_options: Any = None,  # noqa: ARG002 (the signature is Lightning's)
    ) -> None:
        """Write a checkpoint and rename it into place."""
        with whole_file(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Load a checkpoint; objects that would execute code are refused."""
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Load a checkpoint.

    Raises:
        InputError: If the file is missing, damaged, or not a checkpoint of this
            package.
    """
    check_file(path, "checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it refuses
            checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,  # of a text that is taken for a pickle
        pickle.UnpicklingError,
    ) as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint: copy it again, or train again"
        ) from error
    if not isinstance(checkpoint, dict) or CONFIGURATION not in checkpoint:
        raise InputError(
            f"{path} is not a checkpoint of this package: give one that `fit` wrote"
        )
    if not isinstance(checkpoint[CONFIGURATION], dict):
        raise InputError(f"{path} holds no configuration: train the model again")
    return checkpoint


def check_same(path: Path, configuration: dict[str, Any]) -> int:
    """Make sure that a run can go on from a checkpoint.

    Returns:
        How many epochs it has behind it.

    Raises:
        InputError: If it was written under another configuration, or lacks what a run
            needs.
    """
    checkpoint = load_checkpoint(path)
    missing = [key for key in RESUMED if key not in checkpoint]
    if missing:
        raise InputError(
            f"{path} has no {missing[0]!r}, so no run can go on from it: train into "
            f"another folder"
        )
    if not isinstance(checkpoint["epoch"], int):
        raise InputError(
            f"{path} has the epoch {checkpoint['epoch']!r}, so no run can go on from "
            f"it: train into another folder"
        )
    old = checkpoint[CONFIGURATION]
    changed = [key for key in configuration if configuration[key] != old.get(key)]
    if changed:
        key = changed[0]
        raise InputError(
            f"{path} was written with {key} = {old.get(key)!r}, but the configuration "
            f"says {configuration[key]!r}: use that, or train into another folder"
        )
    epoch: int = checkpoint["epoch"]
    return epoch + 1


def load_model(path: Path, device: str = "cpu") -> Reconstructor:
    """Load a trained model from a checkpoint, ready for inference.

    Args:
        path: A checkpoint such as `best.ckpt`.
        device: Where to put the model.

    Raises:
        InputError: If the file is not a checkpoint of this package.
    """
    checkpoint = load_checkpoint(path, device)
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no weights: train the model again")
    prefix = "model."
    tensors = {
        str(key).removeprefix(prefix): value
        for key, value in state.items()
        if str(key).startswith(prefix)
    }
    return model_of(checkpoint[CONFIGURATION], tensors, path).to(device)


def model_of(
    configuration: dict[str, Any], tensors: dict[str, Tensor], path: Path
) -> Reconstructor:
    """Build a model and give it its weights, ready for inference.

    Args:
        configuration: What `plain` returned.
        tensors: The state dict of the model.
        path: Where both come from.

    Raises:
        InputError: If they do not belong together.
    """
    try:
        model = model_config(configuration).build()
    except InputError as error:
        raise InputError(f"{path} describes no model: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} are not those of the model that its configuration "
            f"describes: it was changed since it was written, train the model again"
        ) from error
    return model.eval()
