"""Checkpoints: written whole, loaded without executing code, checked before use."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from mri_example.data.writing import whole_file
from mri_example.errors import InputError
from mri_example.model import Reconstructor, model_config

CONFIGURATION = "invtorch_configuration"


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
    if not path.is_file():
        raise InputError(f"the checkpoint {path} does not exist: check the path")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(f"{path} cannot be read as a checkpoint") from error
    if not isinstance(checkpoint, dict) or CONFIGURATION not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of this package")
    return checkpoint


def check_same(path: Path, configuration: dict[str, Any]) -> None:
    """Make sure that a run can go on from a checkpoint.

    Raises:
        InputError: If it was written under another configuration.
    """
    old = load_checkpoint(path)[CONFIGURATION]
    changed = [key for key in configuration if configuration[key] != old.get(key)]
    if changed:
        key = changed[0]
        raise InputError(
            f"{path} was written with {key} = {old.get(key)!r}, but the configuration "
            f"says {configuration[key]!r}: use that, or train into another folder"
        )


def load_model(path: Path, device: str = "cpu") -> Reconstructor:
    """Load a trained model from a checkpoint, ready for inference.

    Args:
        path: A checkpoint such as `best.ckpt`.
        device: Where to put the model.

    Raises:
        InputError: If the file is not a checkpoint of this package.
    """
    checkpoint = load_checkpoint(path, device)
    model = model_config(checkpoint[CONFIGURATION]).build()
    prefix = "model."
    model.load_state_dict(
        {
            key.removeprefix(prefix): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(prefix)
        }
    )
    return model.to(device).eval()
