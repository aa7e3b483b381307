"""The demo, whole, on smaller heads: what it writes, says, and keeps."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from mri_example import demo as demonstration
from mri_example.cli import main
from mri_example.data import volumes
from mri_example.data.anatomy import embedded_anatomy
from mri_example.figures import compare
from mri_example.model import IRIM2D
from mri_example.training import TrainingConfig

PICTURES = (
    "reconstruction_4x.png",
    "reconstruction_8x.png",
    "learning_curve.png",
    "memory_against_depth.png",
)


@pytest.fixture
def small(monkeypatch):
    """Let the demo use an eighth of the slices and a model of two layers."""
    heads = {name: head[::8, ::2, ::2] for name, head in embedded_anatomy().items()}
    heads["epi"] = embedded_anatomy()["epi"]
    monkeypatch.setattr(volumes, "embedded_anatomy", lambda: heads)
    monkeypatch.setattr(demonstration, "MODEL", IRIM2D(8, 1, (8, 8), (1, 2)))
    training = TrainingConfig(epochs=1, batch_size=4, fraction=1.0, learning_rate=1e-3)
    monkeypatch.setattr(demonstration, "TRAINING", training)
    monkeypatch.setattr(demonstration, "SHOWN_SLICE", 3)
    monkeypatch.setattr(demonstration, "COUPLINGS", (5, 10))


def test_the_demo_trains_by_inversion_and_measures_both() -> None:
    assert demonstration.MODEL.memory == "invert"
    assert demonstration.MODEL.steps >= 6
    assert len(demonstration.MODEL.hidden) >= 5
    deep = IRIM2D(8, 10, (8, 8), (1, 2), anchors=0)
    inverted, stored = (
        demonstration._peak(replace(deep, memory=memory), size=16, batch=1)
        for memory in ("invert", "store")
    )
    assert 0 < 3 * inverted < stored


def test_all_images_and_all_errors_are_drawn_on_one_scale() -> None:
    random = np.random.default_rng(0)
    target = random.random((8, 8))
    images = {"dark": 0.1 * target, "bright": 3 * target}
    figure = compare(target, images, "a title")
    grays, errors = (
        {i.get_clim() for axis in row for i in axis.images}
        for row in np.reshape(figure.axes[:6], (2, 3))
    )
    assert len(grays) == len(errors) == 1


def test_the_demo_writes_what_it_says_and_goes_on(small, tmp_path, capsys) -> None:
    assert main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "SIMULATED" in said
    assert "i-RIM against zero-filled: " in said
    assert "memory='invert'" in said
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["method"], row["acceleration"]) for row in rows] == [
        ("zero-filled", 4),
        ("i-RIM", 4),
        ("zero-filled", 8),
        ("i-RIM", 8),
    ]
    for row in rows:
        assert f"{row['psnr']:.2f}" in said
    for picture in PICTURES:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in said
    with h5py.File(next((tmp_path / "data/singlecoil_test").glob("*.h5"))) as file:
        assert "simulated" in file.attrs
    weights = (tmp_path / "training/last.ckpt").read_bytes()

    assert main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "data: all files were there" in said
    assert "training: done before" in said
    assert (tmp_path / "training/last.ckpt").read_bytes() == weights
    again = json.loads((tmp_path / "results.json").read_text())
    for first, second in zip(rows, again, strict=True):
        assert np.allclose(first["psnr"], second["psnr"])
