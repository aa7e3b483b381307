"""Checkpoints: written whole, loaded without executing code, checked before use."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mri_example.data.files import whole_file
from mri_example.errors import InputError
from mri_example.models import Reconstructor, build, describe
from mri_example.models.authors import load_authors_weights
from mri_example.paths import check_file

CONFIGURATION, DATA = "invtorch_configuration", "invtorch_data"
SUFFIX, PREFIX = ".safetensors", "model."
PRETRAINED = Path(__file__).parents[1] / "pretrained"
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError)


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


def _load_plain(path: Path, device: str) -> Any:
    """Load what `torch.save` wrote, executing no code."""
    check_file(path, "checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it refuses
            return torch.load(path, map_location=device, weights_only=True)
    except (*UNREADABLE, LookupError) as error:  # of a text taken for a pickle
        raise InputError(
            f"{path} cannot be read as a checkpoint: copy it again, or train again"
        ) from error


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Load a checkpoint, which must be one of this package."""
    checkpoint = _load_plain(path, device)
    if not isinstance(checkpoint, dict) or CONFIGURATION not in checkpoint:
        raise InputError(
            f"{path} is not a checkpoint of this package: give one that `fit` wrote"
        )
    if not isinstance(checkpoint[CONFIGURATION], dict):
        raise InputError(f"{path} holds no configuration: train the model again")
    return checkpoint


def check_same(path: Path, notes: dict[str, Any]) -> tuple[int, float]:
    """Make sure that a run can go on from a checkpoint.

    Args:
        path: The checkpoint.
        notes: The configuration and the files of the run.

    Returns:
        How many epochs it has behind it, and how many seconds if they are limited.

    Raises:
        InputError: If it was written under another configuration or with other data, or
            lacks what a run needs.
    """
    checkpoint = load_checkpoint(path)
    epoch = checkpoint.get("epoch")
    if not isinstance(epoch, int):
        raise InputError(
            f"{path} has the epoch {epoch!r}, so no run can go on from it: train into "
            f"another folder"
        )
    old = checkpoint[CONFIGURATION]
    for key, value in notes[CONFIGURATION].items():
        if value != old.get(key):
            raise InputError(
                f"{path} was written with {key} = {old.get(key)!r}, but the "
                f"configuration says {value!r}: use that, or train into another folder"
            )
    _check_files(path, checkpoint.get(DATA), notes[DATA])
    try:
        seconds = float(checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"])
    except (KeyError, TypeError, ValueError):  # without a limit of time
        seconds = 0.0
    return epoch + 1, seconds


def _check_files(path: Path, old: Any, new: dict[str, Any]) -> None:
    """Make sure that a run goes on with the files that it began with."""
    if not isinstance(old, dict):
        raise InputError(
            f"{path} does not say with which files it was trained, so no run can go on "
            f"from it: train into another folder"
        )
    for name in sorted(old.keys() | new):
        if old.get(name) == new.get(name):
            continue
        what = f"another {name}: its size, shape or attributes differ"
        if name not in new:
            what = f"{name}, which is not there now"
        elif name not in old:
            what = f"other data, without {name}"
        raise InputError(
            f"{path} was trained with {what}: use the data that it began with, or "
            f"train into another folder"
        )


def load(
    path: Path, device: str = "cpu", model: type[Reconstructor] | None = None
) -> Reconstructor:
    """Load a trained model, ready for inference.

    Args:
        path: A checkpoint such as `best.ckpt`, a file that `export` wrote, or the name
            of a model in `mri_example/pretrained`.
        device: Where to put the model.
        model: Its class, if that is not one of this package: what is not named here
            is not imported.

    Raises:
        InputError: If the file is neither, or is damaged.
    """
    path = _named(path)
    read = _read_export if path.suffix == SUFFIX else _read_checkpoint
    configuration, tensors = read(path, device)
    try:
        built = build(configuration, model)
    except InputError as error:
        raise InputError(f"{path} describes no model: {error}") from error
    try:
        built.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} are not those of the model that its configuration "
            f"describes: it was changed since it was written, train the model again"
        ) from error
    return built.eval().to(device)


def _named(path: Path) -> Path:
    """Return the file of a model of the package, if its name is given."""
    if path.suffix or len(path.parts) != 1 or path.exists():
        return path
    known = {file.stem: file for file in sorted(PRETRAINED.glob(f"*{SUFFIX}"))}
    if str(path) not in known:
        raise InputError(
            f"the checkpoint {path} does not exist, and the models that come with the "
            f"package are {', '.join(known)}: name one of them, or check the path"
        )
    return known[str(path)]


def _read_checkpoint(
    path: Path, device: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = load_checkpoint(path, device)
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no weights: train the model again")
    named = {str(key): value for key, value in state.items()}
    ours = [key for key in named if key.startswith(PREFIX)]
    return checkpoint[CONFIGURATION], {k.removeprefix(PREFIX): named[k] for k in ours}


def _read_export(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    check_file(path, "model")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            text = (file.metadata() or {}).get(CONFIGURATION, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): copy it again"
        ) from error
    try:
        configuration = json.loads(text)
    except json.JSONDecodeError:
        configuration = None
    if not isinstance(configuration, dict):
        raise InputError(
            f"{path} is not a model that this package exported: give one that `export` "
            f"wrote"
        )
    return configuration, tensors


def export(
    checkpoint: Path, output: Path, model: type[Reconstructor] | None = None
) -> None:
    """Write the model of a checkpoint as one safetensors file.

    The metadata hold the configuration of model, masks and training as JSON. `model` is
    that of `load`.
    """
    _check_ending(output)
    _save(
        load(checkpoint, model=model),
        load_checkpoint(checkpoint)[CONFIGURATION],
        output,
    )


def export_authors(weights: Path, model: Reconstructor, output: Path) -> None:
    """Write a model with a state dict of the authors' public implementation."""
    _check_ending(output)
    tensors = _load_plain(weights, "cpu")
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()
    ):
        raise InputError(
            f"{weights} holds no state dict: save that of the authors' network with "
            f"`torch.save(network.state_dict(), ...)`"
        )
    load_authors_weights(model, tensors)
    _save(model, describe(model), output)


def _check_ending(output: Path) -> None:
    if output.suffix != SUFFIX:
        raise InputError(f"output is {output}, but must end in {SUFFIX}: rename it")


def _save(model: Reconstructor, configuration: dict[str, Any], output: Path) -> None:
    tensors = {n: tensor.contiguous() for n, tensor in model.state_dict().items()}
    with whole_file(output) as partial:
        try:
            save_file(tensors, partial, {CONFIGURATION: json.dumps(configuration)})
        except SafetensorError as error:
            raise OSError(error) from error
