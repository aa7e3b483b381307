"""The table of methods: every row is of a training and a reconstruction of its own."""

import contextlib
import io
import json
from datetime import timedelta
from functools import partial

import pytest

from mri_example import demo as demonstration
from mri_example.cli import main
from mri_example.data import simulate as volumes
from mri_example.data.anatomy import embedded_anatomy
from mri_example.demo import METHODS, TESTED, Contender, contenders
from mri_example.evaluate import evaluate
from mri_example.models import IRIM2D, UNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CHOSEN = '["zero-filled", "U-Net", "i-RIM 2D"]'


@contextlib.contextmanager
def small():
    """Compare tiny models, trained for two steps on an eighth of the slices."""
    heads = {name: head[::8, ::2, ::2] for name, head in embedded_anatomy().items()}
    heads["epi"] = embedded_anatomy()["epi"]

    def tiny(coils, minutes, methods):
        each, per_step = (1, None) if coils == 1 else (None, 1)
        trainer = {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu"}
        trainer["max_time"] = timedelta(minutes=minutes)
        irim = partial(IRIM2D, 8, 1, (4, 4), (1, 2), each)
        return [
            Contender("zero-filled"),
            Contender("U-Net", partial(UNet, 2, 2), {}, 1, trainer),
            Contender("i-RIM 2D", irim, {"coils_per_step": per_step}, 1, trainer),
        ]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(volumes, "embedded_anatomy", lambda: heads)
        patched.setattr(demonstration, "SHOWN_SLICE", 3)
        patched.setattr(demonstration, "contenders", tiny)
        yield


def compare(folder, minutes=1) -> int:
    options = [f"--output={folder}", f"--minutes={minutes}", "--coils=[1, 2]"]
    return main(["compare", *options, f"--methods={CHOSEN}"])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return the folder of a comparison, and what it printed."""
    folder, said = tmp_path_factory.mktemp("comparison"), io.StringIO()
    with small(), contextlib.redirect_stdout(said):
        assert compare(folder) == 0
    return folder, said.getvalue()


def test_every_row_is_that_of_its_reconstruction(compared):
    output, said = compared
    rows = json.loads((output / "results.json").read_text())["rows"]
    methods = ("zero-filled", "U-Net", "i-RIM 2D")
    expected = [(c, m, a) for c in (1, 2) for m in methods for a in TESTED]
    assert [(r["coils"], r["method"], r["acceleration"]) for r in rows] == expected
    for row in rows:
        folder = output / f"{row['coils']}_coils"
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
        for acceleration in TESTED:
            picture = output / f"{count}_coils_{acceleration}x.png"
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_comparison_goes_on_but_never_with_another_time(compared, capsys):
    output, _ = compared
    checkpoints = sorted(output.glob("*/*/last.ckpt"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    rows = (output / "results.json").read_bytes()
    assert checkpoints
    with small():
        assert compare(output) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert (output / "results.json").read_bytes() == rows
    with small():
        assert compare(output, minutes=10) == 2
    said = capsys.readouterr().err
    assert "written with max_time = 60.0, but the configuration says 600.0" in said


@pytest.mark.parametrize("options", ['--methods=["VarNet"]', "--minutes=-1"])
def test_comparisons_of_nothing_are_refused(options, tmp_path, capsys):
    assert main(["compare", f"--output={tmp_path / 'out'}", options]) == 2
    assert "but " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("coils", [1, 8])
def test_all_methods_are_trained_alike(coils, tmp_path):
    assert tuple(c.name for c in contenders(coils, 1)) == METHODS
    for contender in contenders(coils, 1)[1:]:
        task, _ = contender.setting(tmp_path)
        assert task.options["loss"] == "l1"
        assert task.model.coils in (None, coils)
