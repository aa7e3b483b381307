"""The lines of the page that load an exported model, as they are written there."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri_example.data import Simulation, read_reconstruction
from mri_example.errors import InputError
from mri_example.models import IRIM2D, load_authors_weights
from mri_example.reconstruct import reconstruct
from mri_example.training import (
    MaskConfig,
    TrainingConfig,
    export,
    export_model,
    fit,
    load,
    load_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PAGE = Path(__file__).parents[2] / "docs/mri.md"
REFERENCE = Path(__file__).parents[1] / "data/reference_irim_small.npz"


def test_five_lines_use_an_exported_model(tmp_path, monkeypatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (lines,) = [block for block in blocks if "load(" in block]
    assert len([line for line in lines.splitlines() if line]) == 5
    monkeypatch.chdir(tmp_path)
    head = np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    for split in ("train", "val", "test"):
        Simulation(16).write(Path(f"data/singlecoil_{split}/{split}.h5"), head, split)
    model = IRIM2D(8, 1, hidden=(4,), strides=(1,))
    training = TrainingConfig(epochs=1, batch_size=2, accelerator="cpu")
    best = fit(Path("data"), Path("run"), model, training=training)
    export(best, Path("model.safetensors"))
    exec(compile(lines, PAGE.name, "exec"), {})
    original, masks = load_model(best), MaskConfig().build()
    data = Path("data/singlecoil_test")
    reconstruct(original, data, Path("expected"), masks, progress=False)
    found, expected = (
        read_reconstruction(Path(folder) / "test.h5") for folder in ("out", "expected")
    )
    assert np.array_equal(found, expected)
    with h5py.File("out/test.h5") as file:
        assert list(file) == ["reconstruction"]
        assert file.attrs["acceleration"] in (4, 8)


def test_a_model_with_the_weights_of_the_authors_is_a_file_like_any_other(tmp_path):
    reference = np.load(REFERENCE)
    names = [name for name in reference.files if name.startswith("a/p/")]
    weights = {name[4:]: torch.tensor(reference[name]).float() for name in names}
    channels, steps, *_ = reference["a/cfg"].tolist()
    fan = (tuple(reference["a/ks"].tolist()), tuple(reference["a/st"].tolist()))
    config = IRIM2D(channels, steps, *fan, final_update=True)
    model = config.build()
    load_authors_weights(model, weights)
    path = tmp_path / "model.safetensors"
    export_model(model, config, path)
    again = load(path)
    assert all(
        torch.equal(tensor, again.state_dict()[name])
        for name, tensor in model.state_dict().items()
    )
    image = torch.randn(1, 1, 12, 12, dtype=torch.complex64)
    mask = (torch.rand(1, 1, 1, 12) < 0.5).float()
    with torch.no_grad():
        assert torch.equal(again(image, mask), model(image, mask))
    with pytest.raises(InputError, match="the model has other parameters than IRIM2D"):
        export_model(model, IRIM2D(8, 1, (4,), (1,)), path)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        export_model(model, config, tmp_path / "model.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
