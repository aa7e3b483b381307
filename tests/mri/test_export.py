"""The lines of the page that load an exported model, as they are written there."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_example.data.files import read_reconstruction
from mri_example.data.simulate import Simulation
from mri_example.masks import Masks
from mri_example.models import IRIM2D
from mri_example.reconstruct import reconstruct
from mri_example.training.checkpoints import export, load
from tests.mri.runs import train
from tests.mri.test_command_line import run
from tests.mri.test_unusable_runs import sentence

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PAGE = Path(__file__).parents[2] / "docs/mri.md"
REFERENCE = Path(__file__).parents[1] / "data/reference_irim_small.npz"


def test_six_lines_use_an_exported_model(tmp_path, monkeypatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (lines,) = [block for block in blocks if "load(" in block]
    assert len([line for line in lines.splitlines() if line]) == 6
    monkeypatch.chdir(tmp_path)
    head = np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    for split in ("train", "val", "test"):
        Simulation(16).write(Path(f"data/singlecoil_{split}/{split}.h5"), head, split)
    model = IRIM2D(8, 1, hidden=(4,), strides=(1,))
    best = train(Path("data"), Path("run"), model, batch_size=2)
    export(best, Path("model.safetensors"))
    exec(compile(lines, PAGE.name, "exec"), {})
    original, masks = load(best), Masks()
    data = Path("data/singlecoil_test")
    reconstruct(original, data, Path("expected"), masks)
    found, expected = (
        read_reconstruction(Path(folder) / "test.h5") for folder in ("out", "expected")
    )
    assert np.array_equal(found, expected)
    with h5py.File("out/test.h5") as file:
        assert list(file) == ["reconstruction"]
        assert file.attrs["acceleration"] in (4, 8)


@pytest.fixture
def theirs(tmp_path) -> tuple[Path, list[str]]:
    """Return a file with weights of the authors, and options of their model."""
    reference = np.load(REFERENCE)
    names = [name for name in reference.files if name.startswith("a/p/")]
    weights = {name[4:]: torch.tensor(reference[name]).float() for name in names}
    torch.save(weights, tmp_path / "theirs.pt")
    channels, steps, *_ = reference["a/cfg"].tolist()
    return tmp_path / "theirs.pt", [
        "--model=IRIM2D",
        f"--model.channels={channels}",
        f"--model.steps={steps}",
        f"--model.hidden={reference['a/ks'].tolist()}",
        f"--model.strides={reference['a/st'].tolist()}",
        "--model.final_update=true",
    ]


def test_the_command_exports_the_weights_of_the_authors(theirs, tmp_path) -> None:
    weights, options = theirs
    path = tmp_path / "model.safetensors"
    assert run("export", f"--authors={weights}", f"--output={path}", *options) == 0
    model, reference = load(path), np.load(REFERENCE)
    state, zero_filled, mask, out = (
        torch.tensor(reference[f"a/{key}"]) for key in ("x", "y", "m", "o")
    )
    with torch.no_grad():
        found = model.double().irim(state, zero_filled, mask)
    assert (found - out).abs().max() < 1e-5  # the weights are rounded to float32


def test_weights_of_authors_that_cannot_be_exported(theirs, tmp_path, capsys) -> None:
    weights, options = theirs
    arguments = ["export", f"--output={tmp_path / 'a.safetensors'}"]
    named = f"--authors={weights}"
    assert "give one of them" in sentence(capsys, *arguments)
    assert "give one of them" in sentence(capsys, *arguments, named, "--checkpoint=a")
    others = [*options, "--model.steps=9"]
    assert "build it with the sizes of theirs" in sentence(
        capsys, *arguments, named, *others
    )
    torch.save([1, 2], weights)
    assert "holds no state dict" in sentence(capsys, *arguments, named, *options)
    torch.save({"a": Path()}, weights)
    assert "cannot be read" in sentence(capsys, *arguments, named, *options)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.pt"]
