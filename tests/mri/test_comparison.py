"""The table of methods: every row is of a training and a reconstruction of its own."""

import json
from dataclasses import replace

import pytest

from mri_example import comparison
from mri_example.cli import main
from mri_example.comparison import MASKS, METHODS, Contender, contenders
from mri_example.data import simulate as volumes
from mri_example.data.anatomy import embedded_anatomy
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.models import IRIM2D, UNet
from mri_example.training import MaskConfig, TrainingConfig, fit_once

CHOSEN = '["zero-filled", "U-Net", "i-RIM 2D"]'


@pytest.fixture
def small(monkeypatch):
    """Compare tiny models, trained for two steps on an eighth of the slices."""
    heads = {name: head[::8, ::2, ::2] for name, head in embedded_anatomy().items()}
    heads["epi"] = embedded_anatomy()["epi"]
    monkeypatch.setattr(volumes, "embedded_anatomy", lambda: heads)
    monkeypatch.setattr(comparison, "SHOWN_SLICE", 3)
    training = TrainingConfig(epochs=1, epoch_steps=2, batch_size=1, accelerator="cpu")

    def tiny(coils):
        each, per_step = (1, None) if coils == 1 else (None, 1)
        own = replace(training, coils_per_step=per_step)
        return [
            Contender("zero-filled"),
            Contender("U-Net", UNet(2, 2), training),
            Contender("i-RIM 2D", IRIM2D(8, 1, (4, 4), (1, 2), each), own),
        ]

    monkeypatch.setattr(comparison, "contenders", tiny)


def compare(folder, minutes=1) -> int:
    options = [f"--output={folder}", f"--minutes={minutes}", "--coils=[1, 2]"]
    return main(["compare", *options, f"--methods={CHOSEN}"])


def test_every_row_is_that_of_its_reconstruction(small, tmp_path, capsys):
    assert compare(tmp_path) == 0
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    methods = ("zero-filled", "U-Net", "i-RIM 2D")
    expected = [(c, m, a) for c in (1, 2) for m in methods for a in MASKS]
    assert [(r["coils"], r["method"], r["acceleration"]) for r in rows] == expected
    for row in rows:
        folder = tmp_path / f"{row['coils']}_coils"
        kind = "singlecoil_test" if row["coils"] == 1 else "multicoil_test"
        out = folder / f"reconstructions/{row['method']}_{row['acceleration']}x"
        scores = evaluate(folder / "data" / kind, out).summary.mean
        assert (scores.nmse, scores.psnr, scores.ssim) == (
            row["nmse"],
            row["psnr"],
            row["ssim"],
        )
        trained = row["method"] != "zero-filled"
        assert (row["steps"], row["minutes"]) == ((2, 1.0) if trained else (0, 0.0))
        assert (row["parameters"] > 0) == (row["peak"] > 0) == trained
        assert f"{row['nmse']:.4f}  {row['psnr']:5.2f}  {row['ssim']:.4f}" in said
    for count in (1, 2):
        for acceleration in MASKS:
            picture = tmp_path / f"{count}_coils_{acceleration}x.png"
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_comparison_goes_on_but_never_with_another_time(small, tmp_path, capsys):
    assert compare(tmp_path) == 0
    checkpoints = sorted(tmp_path.glob("*/*/last.ckpt"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    rows = (tmp_path / "results.json").read_bytes()
    assert compare(tmp_path) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert (tmp_path / "results.json").read_bytes() == rows
    assert compare(tmp_path, minutes=10) == 2
    said = capsys.readouterr().err
    assert "minutes is 10.0, but the training in" in said
    assert "its limit was 1.0: train into another folder" in said


def test_what_was_trained_for_another_time_is_refused(small, tmp_path):
    comparison.simulate_demo(tmp_path, comparison.Simulation())
    (contender,) = [c for c in comparison.contenders(1) if c.name == "U-Net"]
    masks, timed = MaskConfig(), replace(contender.training, minutes=1.0)
    last = fit_once(tmp_path, tmp_path / "run", contender.model, masks, timed)
    assert fit_once(tmp_path, tmp_path / "run", contender.model, masks, timed) == last
    for minutes in (0, 2):
        other = replace(timed, minutes=minutes)
        with pytest.raises(InputError, match=rf"minutes is {minutes}, but .* was 1\.0"):
            fit_once(tmp_path, tmp_path / "run", contender.model, masks, other)


@pytest.mark.parametrize("coils", [1, 8])
def test_all_methods_are_trained_alike(coils):
    assert tuple(c.name for c in contenders(coils)) == METHODS
    trained = [c for c in contenders(coils) if c.model is not None]
    for contender in trained:
        assert contender.training.loss == "l1"
        assert contender.model.coils in (None, coils)
        contender.model.build()
