"""The configurations of the package: what the command line makes of them."""

from pathlib import Path

import pytest
import torch

import mri_example
from mri_example import cli
from mri_example.models import MODELS

FOLDER = Path(mri_example.__file__).parent / "configs"
PUBLISHED = {  # or counted by running the authors' code
    "challenge": 275_206_144 + 41_408,
    "challenge_multicoil": 329_577_472 + 92_832,
    "rim": 94_464,
    "unet": 7_756_097,
}
OURS = {"irim_2d": 23_462_912, "irim_3d": 54_133_760}  # as docs/mri.md says
SIZES = PUBLISHED | OURS
COUPLINGS = 8 * 10  # in the steps of the paper


@pytest.fixture
def fitted(monkeypatch, tmp_path):
    """Return a function that says with which model and options `fit` would train."""
    called = []
    monkeypatch.setattr(cli, "fit", lambda *options: called.append(options))

    def run(*options: str):
        paths = [f"--data={tmp_path}", f"--output={tmp_path / 'run'}"]
        assert cli.main(["fit", *paths, *options]) == 0
        _, _, model, masks, training = called.pop()
        assert not called
        return model, masks, training

    return run


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_that_is_named_has_its_own_defaults(name, fitted) -> None:
    model, _, _ = fitted(f"--model={name}")
    assert model == MODELS[name]()
    option = "pools" if name == "UNet" else "steps"
    model, _, _ = fitted(f"--model={name}", f"--model.{option}=3")
    assert model == MODELS[name](**{option: 3})


def test_options_of_another_model_are_refused(fitted, capsys) -> None:
    config = f"--config={FOLDER / 'small.yaml'}"
    with pytest.raises(SystemExit, match="2"):
        fitted(config, "--model=RIM")
    assert "'hidden' is not accepted" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_each_is_of_its_model_and_of_the_published_size(name, fitted) -> None:
    config, masks, training = fitted(f"--config={FOLDER / name}.yaml")
    with torch.device("meta"):
        model = config.build()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == SIZES.get(name, count)
    if name in OURS:
        assert model.irim._layers == COUPLINGS + config.steps
    if name.startswith("small"):
        assert count < 2e6
        assert training.accelerator == "auto"
    masks.build()
    several = (config.coils or 1) > 1
    assert training.challenge == ("multicoil" if several else "singlecoil")


def test_there_is_one_for_every_model() -> None:
    named = {path.stem for path in FOLDER.glob("*.yaml")}
    assert named == {*SIZES, "small", "small_3d", "small_rim", "small_unet"}
