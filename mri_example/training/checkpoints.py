"""Checkpoints: loaded without executing code, checked before use, and exported."""

import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mri_example.data.files import whole_file
from mri_example.errors import InputError, check_file, require, reworded
from mri_example.models import Reconstructor, build, describe

CONFIGURATION, DATA = "invtorch_configuration", "invtorch_data"
STOPPED = "invtorch_stopped"  # early, or by a limit of time
SUFFIX, PREFIX = ".safetensors", "model."
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError)
DAMAGED = (zipfile.BadZipFile, zlib.error, LookupError)  # or a text that is no pickle
SHIPPED = Path(__file__).parents[1] / "trained"
OTHER = "train into another folder"
OURS = {  # our names of parts, by those of the authors' implementation
    "layers": "module",
    "update_right": "conditioner",
    "embeddings": "module",
    "weights": "vectors",
    "output_function": "read_out",
    "l1": "gather",
    "l2": "look",
    "l3": "spread",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
    "bias": "bias",
}


def _load_plain(path: Path) -> Any:
    """Load what `torch.save` wrote, executing no code."""
    check_file(path, "checkpoint")
    text = f"{path} cannot be read as a checkpoint: copy it again, or train again"
    with reworded(text, *UNREADABLE, *DAMAGED):
        if zipfile.is_zipfile(path):  # PyTorch does not compare its checksums
            with zipfile.ZipFile(path) as archive:
                require(archive.testzip() is None, "its bytes have changed")
        with warnings.catch_warnings(action="ignore"):  # of pickles that it refuses
            return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint, which must be one of this package."""
    checkpoint: dict[str, Any] = _load_plain(path)
    ours = isinstance(checkpoint, dict) and CONFIGURATION in checkpoint
    text = f"{path} is not a checkpoint of this package: give one that `fit` wrote"
    require(ours, text)
    text = f"{path} holds no configuration: train the model again"
    require(isinstance(checkpoint[CONFIGURATION], dict), text)
    return checkpoint


def check_same(path: Path, notes: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint that a run goes on from, by its configuration and files.

    Raises:
        InputError: If it was written under another configuration or with other data, or
            lacks what a run needs.
    """
    checkpoint = load_checkpoint(path)
    epoch, old = checkpoint.get("epoch"), checkpoint[CONFIGURATION]
    text = f"{path} has the epoch {epoch!r}, so no run can go on from it: {OTHER}"
    require(isinstance(epoch, int), text)
    for key, value in notes[CONFIGURATION].items():
        text = f"{path} was written with {key} = {old.get(key)!r}, but the "
        text += f"configuration says {value!r}: use that, or {OTHER}"
        require(value == old.get(key), text)
    _check_files(path, checkpoint.get(DATA), notes[DATA])
    return checkpoint


def _check_files(path: Path, old: Any, new: dict[str, Any]) -> None:
    text = f"{path} does not say with which files it was trained: {OTHER}"
    require(isinstance(old, dict), text)
    for name in sorted(old.keys() | new):
        what = f"another {name}: its size, shape or attributes differ"
        if name not in new:
            what = f"{name}, which is not there now"
        elif name not in old:
            what = f"other data, without {name}"
        text = f"{path} was trained with {what}: use the data that it began with, or"
        require(old.get(name) == new.get(name), f"{text} {OTHER}")


def load(path: Path, model: type[Reconstructor] | None = None) -> Reconstructor:
    """Load a trained model, ready for inference.

    Args:
        path: A checkpoint such as `best.ckpt`, a file that `export` wrote, or the name
            of one in `mri_example/trained`.
        model: Its class, if that is not one of this package: what is not named here
            is not imported.

    Raises:
        InputError: If the file is neither, or is damaged.
    """
    shipped = SHIPPED / f"{path}{SUFFIX}"
    path = shipped if shipped.is_file() and not path.exists() else path
    read = _read_export if path.suffix == SUFFIX else _read_checkpoint
    configuration, tensors = read(path)
    with reworded(f"{path} describes no model: {{}}", InputError):
        built = build(configuration, model)
    text = f"the weights in {path} are not those of the model that its configuration "
    with reworded(f"{text}describes: train the model again", RuntimeError):
        built.load_state_dict(tensors)
    finite = all(weight.isfinite().all() for weight in built.state_dict().values())
    require(finite, f"{path} holds weights that are not finite: train the model again")
    return built.eval()


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    checkpoint = load_checkpoint(path)
    state: Any = checkpoint.get("state_dict")
    require(isinstance(state, dict), f"{path} holds no weights: train the model again")
    ours = {k: v for k, v in state.items() if str(k).startswith(PREFIX)}
    return checkpoint[CONFIGURATION], {k.removeprefix(PREFIX): ours[k] for k in ours}


def _read_export(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    check_file(path, "model")
    text = f"{path} cannot be read as safetensors ({{}}): copy it again"
    with (
        reworded(text, SafetensorError, OSError),
        safe_open(path, framework="pt") as file,
    ):
        text = (file.metadata() or {}).get(CONFIGURATION, "")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    try:
        configuration = json.loads(text)
    except json.JSONDecodeError:
        configuration = None
    text = f"{path} is no model of this package: give one that `export` wrote"
    require(isinstance(configuration, dict), text)
    return configuration, tensors


def export(
    checkpoint: Path,
    output: Path,
    model: type[Reconstructor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the model of a checkpoint as one safetensors file.

    The metadata hold the configuration of model, masks and training as JSON. `model` is
    that of `load`; weights of another `dtype` become float32 when they are loaded.
    """
    _check_ending(output)
    configuration = load_checkpoint(checkpoint)[CONFIGURATION]
    _save(load(checkpoint, model=model).to(dtype), configuration, output)


def export_authors(weights: Path, model: Reconstructor, output: Path) -> None:
    """Write a model with a state dict of the authors' public implementation."""
    _check_ending(output)
    tensors = _load_plain(weights)
    named = isinstance(tensors, dict) and all(
        isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()
    )
    text = f"{weights} holds no state dict: save that of the authors' network with "
    require(named, f"{text}`torch.save(network.state_dict(), ...)`")
    load_authors_weights(model, tensors)
    _save(model, describe(model), output)


def load_authors_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights under the names of the authors' implementation.

    Args:
        model: An i-RIM of the same sizes, built with `final_update=True` if it has the
            parametric read-out: what theirs reads was updated once more.
        weights: Their state dict: `rnn.{step}.layers.{i}.update_right.l{1,2,3}...`,
            `rnn.{step}.embeddings.{i}.weights` and `output_function.l{1,2,3}...`.

    Raises:
        InputError: If a name is not one of theirs, or names or shapes do not fit the
            model.

    References:
        Putzky et al., *i-RIM applied to the fastMRI challenge*, 2019. arXiv:1910.08952
    """
    own = model.state_dict()
    renamed = {own_name(name): tensor for name, tensor in weights.items()}
    missing, unknown = sorted(own.keys() - renamed), sorted(renamed.keys() - own)
    text = f"the weights do not fit the model: {len(missing)} are missing "
    text += f"({', '.join(missing[:1])}) and {len(unknown)} have no place "
    text += f"({', '.join(unknown[:1])}): build it with the sizes of theirs"
    require(not (missing or unknown), text)
    for name, tensor in renamed.items():
        text = f"{name} has shape {tuple(own[name].shape)} in the model, but "
        text += f"{tuple(tensor.shape)} in the weights: build it with their sizes"
        require(tensor.squeeze().shape == own[name].squeeze().shape, text)
    model.load_state_dict({n: t.reshape(own[n].shape) for n, t in renamed.items()})


def own_name(name: str) -> str:
    """Return our name of one of the authors' parameters.

    Examples:
        >>> own_name("rnn.0.embeddings.3.weights")
        'irim.steps.1.module.3.vectors'
    """
    step = re.match(r"rnn\.(\d+)\.", name)
    where = f"irim.steps.{2 * int(step[1]) + 1}." if step else ""
    parts = name.removeprefix(step[0] if step else "").split(".")
    unknown = [part for part in parts if part not in OURS and not part.isdigit()]
    text = f"{name!r} is no name of a weight in the authors' implementation, by its "
    text += f"part {', '.join(unknown)}: give its state dict, without a prefix"
    require(not unknown, text)
    return where + ".".join(OURS.get(part, part) for part in parts)


def _check_ending(output: Path) -> None:
    text = f"output is {output}, but must end in {SUFFIX}: rename it"
    require(output.suffix == SUFFIX, text)


def _save(model: Reconstructor, configuration: dict[str, Any], output: Path) -> None:
    tensors = {n: tensor.contiguous() for n, tensor in model.state_dict().items()}
    with whole_file(output) as partial:
        try:
            save_file(tensors, partial, {CONFIGURATION: json.dumps(configuration)})
        except SafetensorError as error:
            raise OSError(error) from error
