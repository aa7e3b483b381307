"""The configurations of the package: what the command line makes of them."""

from pathlib import Path

import pytest
import torch

import benchmarks.reproduce
import mri_example
from mri_example import cli, fit_cli
from mri_example.models import MODELS, describe

FOLDER = Path(mri_example.__file__).parent / "configs"
CONFIGS = {
    path.stem: path
    for folder in (FOLDER, Path(benchmarks.reproduce.__file__).parent)
    for path in sorted(folder.glob("*.yaml"))
}
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
    """Return a function that says with what `fit` would train."""
    called = []

    def fit(task, data, output, **options):
        called.append((task, data, options))
        return output

    monkeypatch.setattr(fit_cli, "fit", fit)

    def run(*options: str):
        paths = [f"--data.root={tmp_path}", f"--output={tmp_path / 'run'}"]
        with torch.device("meta"):
            assert cli.main(["fit", *paths, *options]) == 0
        return called.pop()

    return run


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_that_is_named_has_its_own_defaults(name, fitted) -> None:
    task, *_ = fitted(f"--model={name}")
    assert describe(task.model) == described(name)
    task, *_ = fitted(f"--model={name}", "--model.steps=3")
    assert describe(task.model) == described(name) | {"steps": 3}


def described(name: str) -> dict:
    with torch.device("meta"):
        return describe(MODELS[name]())


def test_options_of_another_model_are_refused(fitted, capsys) -> None:
    config = f"--config={FOLDER / 'small.yaml'}"
    with pytest.raises(SystemExit, match="2"):
        fitted(config, "--model=benchmarks.reproduce.rim.RIM")
    assert "'hidden' is not accepted" in capsys.readouterr().err


@pytest.mark.parametrize("name", CONFIGS)
def test_each_is_of_its_model_and_of_the_published_size(name, fitted) -> None:
    task, data, trainer = fitted(f"--config={CONFIGS[name]}")
    model = task.model
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == SIZES.get(name, count)
    if name in OURS:
        assert model.irim._layers == COUPLINGS + model.options["steps"]
    if name.startswith("small"):
        assert count < 2e6
        assert trainer["accelerator"] == "auto"
    several = (model.coils or 1) > 1
    challenge = "multicoil" if several else "singlecoil"
    assert data.describe()["challenge"] == challenge


def test_there_is_one_for_every_model() -> None:
    assert {*CONFIGS} == {*SIZES, "small", "small_3d"}


def test_a_configuration_is_found_from_any_folder(fitted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = "mri_example/configs/small_3d.yaml"
    task, _, _ = fitted("--config", path)
    assert type(task.model).__name__ == "IRIM3D"
    own = tmp_path / path
    own.parent.mkdir(parents=True)
    own.write_text("model: ChallengeIRIM\n")  # what lies there counts first
    task, _, _ = fitted("--config", path)
    assert type(task.model).__name__ == "ChallengeIRIM"
