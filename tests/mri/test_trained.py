"""Models that are shipped: found by name, small, and as good as their cards say."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reproduce.methods import masks_of
from mri_example.data.files import read_reconstruction
from mri_example.data.simulate import Simulation, simulate_demo
from mri_example.evaluate import evaluate
from mri_example.masks import Masks
from mri_example.models import IRIM2D
from mri_example.reconstruct import reconstruct
from mri_example.training import checkpoints
from mri_example.training.checkpoints import SHIPPED, export, load
from tests.mri.runs import train
from tests.mri.test_command_line import refused, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
ROW = re.compile(r"\| (\d)x \| (\S+) \| (\S+) \| (\S+) dB \| (\S+) \|")


def test_a_name_is_that_of_a_shipped_model_unless_a_file_has_it(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    head = np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    for split in ("train", "val", "test"):
        Simulation(16).write(Path(f"data/singlecoil_{split}/{split}.h5"), head, split)
    model = IRIM2D(8, 1, hidden=(4,), strides=(1,))
    best = train(Path("data"), Path("run"), model, batch_size=2)
    export(best, Path("shipped/small.safetensors"))
    options = ["--data", "data/singlecoil_test", "--output", "out"]
    assert run("reconstruct", *options, "--checkpoint", "small") == 0
    reconstruct(load(best), Path("data/singlecoil_test"), Path("expected"), Masks())
    assert np.array_equal(
        read_reconstruction(Path("out/test.h5")),
        read_reconstruction(Path("expected/test.h5")),
    )
    Path("small").write_text("a file of this name is none of the models")
    said = refused(capsys, "reconstruct", *options, "--checkpoint", "small")
    assert "small cannot be read as a checkpoint" in said
    said = refused(capsys, "reconstruct", *options, "--checkpoint", "smaller")
    assert "the checkpoint smaller does not exist" in said


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_as_good_as_its_card_says(name, tmp_path) -> None:
    """On the head that it has never seen, to the digits of the card."""
    file, card = SHIPPED / f"{name}.safetensors", (SHIPPED / f"{name}.md").read_text()
    assert file.stat().st_size < 5e6
    rows = {int(a): row for a, method, *row in ROW.findall(card) if method == name}
    assert rows.keys() == {4, 8}
    size = int(re.search(r"\*\*simulated\*\* .*?, (\d+) x", card)[1])
    simulate_demo(tmp_path, Simulation(size))
    test = tmp_path / "singlecoil_test"
    for acceleration, (nmse, psnr, ssim) in rows.items():
        made = tmp_path / str(acceleration)
        masks = masks_of(1, size, (acceleration,))
        reconstruct(load(Path(name)), test, made, masks)
        mean = evaluate(test, made).summary.mean
        assert mean.nmse == pytest.approx(float(nmse), abs=2e-4)
        assert mean.psnr == pytest.approx(float(psnr), abs=0.02)
        assert mean.ssim == pytest.approx(float(ssim), abs=1e-3)


def test_models_are_shipped() -> None:
    assert NAMES == ["heads"]
