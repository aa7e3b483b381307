"""Checkpoints that no run can go on from: an error, and nothing is unpickled."""

import contextlib
import copy
import io
import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example.errors import InputError
from mri_example.training.checkpoints import load
from tests.mri.test_command_line import configuration, root, run, write_volume
from tests.mri.test_unusable_runs import sentence
from tests.strategies import costly

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture


class Harmful:
    """An object that makes a folder when it is loaded as a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a checkpoint of a short run, as a dictionary."""
    folder = tmp_path_factory.mktemp("trained")
    for split, slices in {"train": 8, "val": 2}.items():
        write_volume(folder / f"data/singlecoil_{split}/file_{split}.h5", slices)
    assert run("fit", "--config", configuration(folder)) == 0
    return torch.load(folder / "run/last.ckpt", weights_only=True)


CONFIGURATION = "invtorch_configuration"
WEIGHT = "model.irim.steps.1.module.0.vectors"
OF_THE_MODEL = {
    "other steps": lambda c: c[CONFIGURATION].update(steps=3),
    "steps in words": lambda c: c[CONFIGURATION].update(steps="many"),
    "too few widths": lambda c: c[CONFIGURATION].update(hidden=[4]),
    "no model": lambda c: c[CONFIGURATION].pop("model"),
    "a model of models": lambda c: c[CONFIGURATION].update(model={"model": 1}),
    "no weights": lambda c: c.pop("state_dict"),
    "a list of weights": lambda c: c.update(state_dict=[1]),
    "weights without names": lambda c: c.update(state_dict={1: torch.ones(1)}),
    "a missing weight": lambda c: c["state_dict"].pop(WEIGHT),
    "a weight of another shape": lambda c: c["state_dict"].update(
        {WEIGHT: torch.ones(3)}
    ),
    "no configuration": lambda c: c.update({CONFIGURATION: "irim"}),
}
OF_THE_RUN = {
    **OF_THE_MODEL,
    "no optimizer": lambda c: c.update(optimizer_states=[{}]),
    "no loops": lambda c: c.update(loops={}),
    "no schedule": lambda c: c.pop("lr_schedulers"),
    "a version in words": lambda c: c.update({"pytorch-lightning_version": "x"}),
    "an epoch in words": lambda c: c.update(epoch="x"),
}


@pytest.mark.parametrize("damage", OF_THE_RUN)
def test_checkpoints_that_no_run_can_go_on_from(damage, trained, root, capsys) -> None:
    checkpoint, path = copy.deepcopy(trained), root / "run/last.ckpt"
    OF_THE_RUN[damage](checkpoint)
    path.parent.mkdir()
    torch.save(checkpoint, path)
    before = path.read_bytes()
    longer = configuration(root, trainer={"max_epochs": 3})
    assert "last.ckpt" in sentence(capsys, "fit", "--config", longer)
    assert [p.name for p in (root / "run").iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [*OF_THE_MODEL, "code"])
def test_checkpoints_whose_parts_do_not_fit(damage, trained, root, capsys) -> None:
    checkpoint, path = copy.deepcopy(trained), root / "best.ckpt"
    if damage == "code":
        checkpoint["callbacks"] = Harmful(root / "harm")
    else:
        OF_THE_MODEL[damage](checkpoint)
    torch.save(checkpoint, path)
    test, out = root / "data/singlecoil_test", root / "out"
    arguments = ("reconstruct", "--data", test, "--output", out, "--checkpoint", path)
    assert "best.ckpt" in sentence(capsys, *arguments)
    assert not (root / "harm").exists()
    assert not out.exists()


NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


def with_a_weight(trained, value, draw):
    """Return a checkpoint in which one value of one weight is another."""
    checkpoint = copy.deepcopy(trained)
    weights = checkpoint["state_dict"]
    name = draw(st.sampled_from(sorted(weights)))
    weights[name].view(-1)[draw(st.integers(0, weights[name].numel() - 1))] = value
    return checkpoint


@given(value=NOT_FINITE, data=st.data())
def test_weights_that_are_not_finite(value, data, trained, tmp_path_factory) -> None:
    """Images of NaN would be written without a word."""
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    torch.save(with_a_weight(trained, value, data.draw), path)
    with pytest.raises(InputError, match="holds weights that are not finite"):
        load(path)


@costly(1)  # `export` takes a second before it reads a file
@given(value=NOT_FINITE, data=st.data())
def test_commands_refuse_weights_that_are_not_finite(
    value, data, trained, tmp_path_factory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    torch.save(with_a_weight(trained, value, data.draw), path := folder / "best.ckpt")
    write_volume(folder / "data/a.h5")
    out = ("--output", folder / "out")
    for arguments in (
        ("reconstruct", "--data", folder / "data", *out, "--checkpoint", path),
        ("export", "--checkpoint", path, "--output", folder / "a.safetensors"),
    ):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            assert run(*arguments) == 2
        assert f"{path} holds weights that are not finite" in said.getvalue()
    assert {p.name for p in folder.iterdir()} == {"best.ckpt", "data"}


@pytest.mark.parametrize("command", ["reconstruct", "fit"])
def test_a_text_file_is_no_checkpoint(command, root, capsys) -> None:
    path, out = root / "run/last.ckpt", root / "out"
    path.parent.mkdir()
    path.write_text("hello\nworld\n")
    test = root / "data/singlecoil_test"
    arguments = {
        "fit": ("--config", configuration(root)),
        "reconstruct": ("--data", test, "--output", out, "--checkpoint", path),
    }[command]
    assert "last.ckpt cannot be read" in sentence(capsys, command, *arguments)
    assert not out.exists()
