"""The models that come with the package: they load by name, and are of use."""

from pathlib import Path

import pytest
import torch

from mri_example.cli import main
from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.simulate import Simulation
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.training.checkpoints import PRETRAINED, load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))
EVERY = 8  # slices of the test head


def test_there_is_one() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_and_less_than_5_MB(name) -> None:
    assert (PRETRAINED / f"{name}.safetensors").stat().st_size < 5e6
    card = (PRETRAINED / f"{name}.md").read_text()
    for heading in ("## Data", "## Training", "## Scores"):
        assert heading in card


@pytest.mark.parametrize("acceleration", [4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_each_is_better_than_zero_filled_on_a_head_it_was_not_trained_on(
    name, acceleration, tmp_path
) -> None:
    data = tmp_path / "data"
    head = embedded_anatomy()["coronal"][::EVERY]
    Simulation().write(data / "coronal_axis0.h5", head, "coronal")
    share = {4: 0.08, 8: 0.04}[acceleration]
    masks = [
        f"--masks.center_fractions=[{share}]",
        f"--masks.accelerations=[{acceleration}]",
    ]
    found = {}
    for options in ([], [f"--checkpoint={name}"]):
        out = tmp_path / f"out{len(options)}"
        paths = [f"--data={data}", f"--output={out}", "--device=cpu"]
        assert main(["reconstruct", *paths, *options, *masks]) == 0
        found[len(options)] = evaluate(data, out).summary.mean
    before, after = found[0], found[1]
    assert after.psnr > before.psnr + 1
    assert after.nmse < before.nmse
    assert after.ssim > before.ssim


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_with_finite_weights(name, tmp_path) -> None:
    model = load(PRETRAINED / f"{name}.safetensors")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_another_name_is_refused_with_the_list_of_them() -> None:
    with pytest.raises(InputError, match="irim does not exist, and the models") as said:
        load(Path("irim"))
    assert all(name in str(said.value) for name in NAMES)
