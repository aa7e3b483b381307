"""The networks that the i-RIM is compared with."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduce.rim import RIM
from benchmarks.reproduce.unet import UNet
from mri_example.cli import main
from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.simulate import Simulation, simulate_volumes
from mri_example.errors import InputError
from mri_example.masks import undersample
from mri_example.models import build
from mri_example.transforms import fftc, ifftc
from tests.tolerances import assert_equal


def problem(rows: int = 12, cols: int = 11):
    image = torch.randn(2, 1, rows, cols, dtype=torch.complex128)
    mask = (torch.rand(2, 1, 1, cols) < 0.5).double()
    return ifftc(undersample(fftc(image), mask)), mask


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_they_have_their_published_sizes():
    assert size(RIM()) == 94_464
    assert size(UNet()) == 7_756_097


def test_the_hidden_state_of_the_rim_is_fed_back():
    model = RIM(8, 2).double()
    seen = []
    model.remember.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    out = model(*problem())
    assert not seen[0].any()
    assert seen[1].any()
    (gradient,) = torch.autograd.grad(out.abs().sum(), seen[1])
    assert gradient.any()


def test_coils_of_the_rim_are_reconstructed_each_by_itself():
    model = RIM(8, 2).double()
    zero_filled = torch.randn(2, 3, 8, 9, dtype=torch.complex128)
    mask = (torch.rand(2, 1, 1, 9) < 0.5).double()
    coils = model(zero_filled, mask)
    assert coils.shape == zero_filled.shape
    assert_equal(model(zero_filled.flip(1), mask).flip(1), coils)


@given(st.integers(8, 21), st.integers(8, 21))
def test_the_unet_takes_every_size(rows, cols):
    model = UNet(2, 2)
    image = torch.randn(1, 1, rows, cols, dtype=torch.complex64)
    assert model(image, torch.ones(1)).shape == image.shape


def test_an_image_too_small_for_the_unet_is_named():
    with pytest.raises(ValueError, match="needs at least 32 by 32"):
        UNet(2, 4)(torch.ones(1, 1, 40, 30) * 1j, torch.ones(1))


def test_the_unet_sees_normalized_and_bounded_magnitudes():
    """What is beyond six deviations is cut off; mean and deviation come back."""
    torch.manual_seed(0)
    model = UNet(2, 1).double()
    seen = []
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randn(1, 1, 16, 16, dtype=torch.complex128)
    image[..., 3, 4] = 1e3
    mask = torch.ones(1, 1, 1, 16)
    model(image, mask)
    magnitude = image.abs()
    normalized = (magnitude - magnitude.mean()) / (magnitude.std() + 1e-11)
    assert normalized.max() > 6
    assert_equal(seen[0], normalized.clamp(-6, 6))


@pytest.fixture
def root(tmp_path):
    """Return a folder with a data root of three small slices."""
    head = embedded_anatomy()["epi"][:3]
    for part in ("train", "val", "test"):
        folder = tmp_path / f"data/singlecoil_{part}"
        simulate_volumes([(part, head)], folder, Simulation(size=32))
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_of_another_package_is_trained_loaded_and_exported(
    root, capsys
) -> None:
    """By the path of its class, which the user gives; a checkpoint imports nothing."""
    name = "benchmarks.reproduce.unet.UNet"
    fit = [f"--model={name}", "--model.channels=2", "--model.pools=2"]
    ended = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    folders = [f"--data.root={root / 'data'}", f"--output={root / 'run'}"]
    assert main(["fit", *fit, *ended, *folders]) == 0
    last, exported = root / "run/last.ckpt", root / "model.safetensors"
    assert main(["export", f"--checkpoint={last}", f"--output={exported}"]) == 2
    assert f"the model is '{name}', but " in capsys.readouterr().err
    known = f"--model_class={name}"
    assert main(["export", f"--checkpoint={last}", f"--output={exported}", known]) == 0
    data = f"--data={root / 'data/singlecoil_test'}"
    for path in (last, exported):
        out = f"--output={root / path.suffix}"
        arguments = ["reconstruct", data, out, f"--checkpoint={path}"]
        assert main(arguments) == 2
        assert main([*arguments, known]) == 0
    found = [(root / e / "test.h5").stat().st_size for e in (".ckpt", ".safetensors")]
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("wrong", ["pathlib.Path", "benchmarks.reproduce.unet.VNet"])
def test_what_is_no_model_is_refused_as_its_class(wrong, root) -> None:
    data = ["--data", str(root / "data/singlecoil_test"), "--output", str(root / "o")]
    with pytest.raises(SystemExit, match="2"):
        main(["reconstruct", *data, "--model_class", wrong])


def test_a_description_imports_nothing(tmp_path, monkeypatch) -> None:
    (tmp_path / "of_a_stranger.py").write_text("raise SystemExit('this code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for model in (None, UNet):
        with pytest.raises(InputError, match=r"can only be one of IRIM2D, .*class"):
            build({"model": "of_a_stranger.Model"}, model)
    assert "of_a_stranger" not in sys.modules
