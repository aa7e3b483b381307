"""Weights of the authors' public implementation of the i-RIM."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mri_example.errors import require

OURS = {
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
