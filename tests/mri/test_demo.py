"""The demo, whole, on smaller heads: what it writes, says, and keeps."""

import json
import signal
from datetime import timedelta
from functools import partial

import h5py
import numpy as np
import pytest

from mri_example import demo as demonstration
from mri_example.cli import main
from mri_example.data import simulate as volumes
from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.simulate import Simulation, simulate_volumes
from mri_example.demo import step_memory
from mri_example.models import IRIM2D
from mri_example.report import Slice, compare
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask

PICTURES = (
    *("reconstruction_4x.png", "reconstruction_8x.png"),
    *("learning_curve.png", "memory_against_depth.png"),
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def small(monkeypatch):
    """Let the demo use an eighth of the slices and a model of two layers."""
    heads = {name: head[::8, ::2, ::2] for name, head in embedded_anatomy().items()}
    heads["epi"] = embedded_anatomy()["epi"]
    monkeypatch.setattr(volumes, "embedded_anatomy", lambda: heads)
    trainer = {"max_epochs": 2, "limit_train_batches": 5, "accelerator": "cpu"}
    trainer["max_time"] = timedelta(hours=1)
    model = partial(IRIM2D, 8, 1, (8, 8), (1, 2))
    monkeypatch.setattr(demonstration, "MODEL", model)
    monkeypatch.setattr(demonstration, "TRAINER", trainer)
    monkeypatch.setattr(demonstration, "SHOWN_SLICE", 3)
    monkeypatch.setattr(demonstration, "COUPLINGS", (5, 10))


def test_the_demo_trains_by_inversion() -> None:
    model = demonstration.MODEL()
    assert model.options["memory"] == "invert"
    assert model.options["steps"] >= 6
    assert len(model.options["hidden"]) >= 5


def test_a_step_by_inversion_takes_less_than_one_that_stores(tmp_path) -> None:
    heads = {"head": embedded_anatomy()["epi"][:4]}
    simulate_volumes(
        heads.items(), tmp_path / "singlecoil_train", Simulation(size=32, coils=1)
    )
    data = SliceData(tmp_path, batch_size=2, crop=(16, 16))
    inverted, stored = (
        step_memory(
            ReconstructionTask(
                IRIM2D(8, 10, (8, 8), (1, 2), anchors=0, memory=memory), fraction=1.0
            ),
            data,
        )
        for memory in ("invert", "store")
    )
    assert 0 < 3 * inverted < stored


def row(method: str, acceleration: int, psnr: float, ssim: float = 0.5) -> dict:
    scores = {"nmse": 10 ** (-psnr / 10), "psnr": psnr, "ssim": ssim}
    return {"method": method, "acceleration": acceleration, **scores}


def test_the_verdict_counts_all_scores_at_all_accelerations() -> None:
    rows = [
        *(row("zero-filled", 4, 25), row("zero-filled", 8, 22)),
        *(row("i-RIM", 4, 28.5, 0.6), row("i-RIM", 8, 23, 0.6)),
    ]
    assert demonstration.verdict(rows) == (
        "i-RIM is better than zero-filled in all of them: +3.50 dB at 4x, +1.00 dB at "
        "8x"
    )
    rows[3] = row("i-RIM", 8, 21, 0.6)
    found = demonstration.verdict(rows)
    assert "NOT better than zero-filled in NMSE at 8x, PSNR at 8x (" in found
    rows[2] = row("i-RIM", 4, 28.5, 0.5)
    assert "in SSIM at 4x, NMSE at 8x" in demonstration.verdict(rows)


def test_a_training_that_the_clock_ended_is_told(monkeypatch) -> None:
    planned = {"max_epochs": 3, "limit_train_batches": 5}
    monkeypatch.setattr(demonstration, "TRAINER", planned)
    assert "had 7 of 15 steps" in demonstration.length(7)
    assert "had all of its 15 steps" in demonstration.length(15)


def test_all_images_and_all_errors_are_drawn_on_one_scale() -> None:
    random = np.random.default_rng(0)
    target = random.random((8, 8))
    images = {"dark": 0.1 * target, "bright": 3 * target}
    figure = compare(Slice("a title", images, target))
    grays, errors = (
        {i.get_clim() for axis in row for i in axis.images}
        for row in np.reshape(figure.axes[:6], (2, 3))
    )
    assert len(grays) == len(errors) == 1


def test_the_demo_writes_what_it_says_and_goes_on(small, tmp_path, capsys) -> None:
    assert main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "SIMULATED" in said
    assert "better than zero-filled in " in said
    assert "training had all of its 10 steps" in said
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["method"], row["acceleration"]) for row in rows] == [
        ("zero-filled", 4),
        ("zero-filled", 8),
        ("i-RIM", 4),
        ("i-RIM", 8),
    ]
    for row in rows:
        assert f"{row['psnr']:.2f}" in said
    for picture in PICTURES:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in said
    with h5py.File(next((tmp_path / "data/singlecoil_test").glob("*.h5"))) as file:
        assert "simulated" in file.attrs
    files = ("i-RIM/last.ckpt", "results.json", *PICTURES)
    before = {name: (tmp_path / name).read_bytes() for name in files}

    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert before == {name: (tmp_path / name).read_bytes() for name in files}


def test_an_interrupted_demo_goes_on(small, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning ignores SIGINT
    step, steps = ReconstructionTask.training_step, []

    def interrupted(self, batch):
        steps.append(self.global_step)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(ReconstructionTask, "training_step", interrupted)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert steps == [*range(8), *range(5, 10)]
    assert (tmp_path / "results.json").exists()
