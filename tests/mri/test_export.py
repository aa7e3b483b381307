"""The lines of the page that load an exported model, as they are written there."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri_example.data import Simulation, read_reconstruction
from mri_example.model import IRIM2D
from mri_example.reconstruction import reconstruct
from mri_example.training import MaskConfig, TrainingConfig, export, fit, load_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PAGE = Path(__file__).parents[2] / "docs/mri.md"


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
