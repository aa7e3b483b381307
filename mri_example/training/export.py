"""A trained model as one file, with all that is needed to use it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mri_example.data.files import whole_file
from mri_example.errors import InputError
from mri_example.model import ModelConfig, Reconstructor
from mri_example.paths import check_file
from mri_example.training.checkpoints import (
    CONFIGURATION,
    load_checkpoint,
    load_model,
    model_of,
)
from mri_example.training.configuration import plain

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
    _check_ending(output)
    configuration = load_checkpoint(checkpoint)[CONFIGURATION]
    _save(load_model(checkpoint), configuration, output)


def export_model(model: Reconstructor, config: ModelConfig, output: Path) -> None:
    """Write a model that was not trained here, such as one with the authors' weights.

    Args:
        model: The model.
        config: What built it.
        output: The file, ending in `.safetensors`, for `load` and the command line.

    Raises:
        InputError: If `output` ends otherwise, or the model is not of that
            configuration.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mri_example.model import RIM
        >>> config = RIM(channels=4, steps=2)
        >>> with TemporaryDirectory() as folder:
        ...     export_model(config.build(), config, Path(folder) / "rim.safetensors")
        ...     again = load(Path(folder) / "rim.safetensors")
        >>> type(again).__name__, again.steps
        ('RIMReconstructor', 2)
    """
    _check_ending(output)
    with torch.device("meta"):
        expected = {n: t.shape for n, t in config.build().state_dict().items()}
    if {n: t.shape for n, t in model.state_dict().items()} != expected:
        raise InputError(
            f"the model has other parameters than {config} builds: give the "
            f"configuration that built it"
        )
    _save(model, plain(config), output)


def _check_ending(output: Path) -> None:
    if output.suffix != SUFFIX:
        raise InputError(f"output is {output}, but must end in {SUFFIX}: rename it")


def _save(model: Reconstructor, configuration: dict[str, Any], output: Path) -> None:
    tensors = {n: tensor.contiguous() for n, tensor in model.state_dict().items()}
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
