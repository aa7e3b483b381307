"""A trained model as one file, with all that is needed to use it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mri_example.data.writing import whole_file
from mri_example.errors import InputError
from mri_example.model import Reconstructor
from mri_example.paths import check_file
from mri_example.training.checkpoints import (
    CONFIGURATION,
    load_checkpoint,
    load_model,
    model_of,
)

SUFFIX = ".safetensors"


def export(checkpoint: Path, output: Path) -> None:
    """Write the model of a checkpoint as one safetensors file.

    Args:
        checkpoint: A checkpoint such as `best.ckpt`.
        output: The file, ending in `.safetensors`; its metadata hold the configuration
            of model, masks and training as JSON.

    Raises:
        InputError: If the checkpoint cannot be used, or `output` ends otherwise.
    """
    if output.suffix != SUFFIX:
        raise InputError(f"output is {output}, but must end in {SUFFIX}: rename it")
    configuration = load_checkpoint(checkpoint)[CONFIGURATION]
    tensors = {
        name: tensor.contiguous()
        for name, tensor in load_model(checkpoint).state_dict().items()
    }
    with whole_file(output) as partial:
        save_file(tensors, partial, {CONFIGURATION: json.dumps(configuration)})


def load(path: Path, device: str = "cpu") -> Reconstructor:
    """Load a trained model, ready for inference.

    Args:
        path: A checkpoint such as `best.ckpt`, or a file that `export` wrote.
        device: Where to put the model.

    Raises:
        InputError: If the file is neither, or is damaged.
    """
    if path.suffix != SUFFIX:
        return load_model(path, device)
    check_file(path, "model")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): copy it again"
        ) from error
    return model_of(_configuration(metadata, path), tensors, path).to(device)


def _configuration(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        configuration = json.loads(metadata[CONFIGURATION])
    except (KeyError, json.JSONDecodeError):
        configuration = None
    if not isinstance(configuration, dict):
        raise InputError(
            f"{path} is not a model that this package exported: give one that `export` "
            f"wrote"
        )
    return configuration
