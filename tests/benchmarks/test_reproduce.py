"""The comparison: every row is of a training and a reconstruction of its own."""

import contextlib
import io
import json

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import record
from benchmarks.reproduce import wavelet
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.data import prepare
from benchmarks.reproduce.methods import (
    ACCELERATIONS,
    CLASSICAL,
    NETWORKS,
    Network,
    Protocol,
    masks_of,
    methods_of,
)
from benchmarks.reproduce.table import aligned, markdown, table
from mri_example.data import simulate as volumes
from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.simulate import Simulation
from mri_example.errors import InputError
from mri_example.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CHOSEN = ("zero-filled", "U-Net", "i-RIM 2D", "i-RIM 3D")


@contextlib.contextmanager
def small(results):
    """Compare on a few of the slices, and record elsewhere."""
    heads = {name: head[::16, ::4, ::4] for name, head in embedded_anatomy().items()}
    heads["epi"] = embedded_anatomy()["epi"][:20, ::3, ::3]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(volumes, "embedded_anatomy", lambda: heads)
        patched.setattr(record, "RESULTS", results)
        yield


def run(output, *options: str, methods=CHOSEN, steps: int = 2, seeds: int = 2) -> int:
    """Compare at a small size."""
    chosen = [f"--methods={json.dumps(methods)}", f"--steps={steps}"]
    sizes = ["--size=64", "--slices=2", f"--seeds={seeds}", *options]
    return main([f"--output={output}", "--coils=[1,2]", *chosen, *sizes])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return the folder of a comparison, that of its record, and what it printed."""
    folder, said = tmp_path_factory.mktemp("comparison"), io.StringIO()
    results = tmp_path_factory.mktemp("results")
    with small(results), contextlib.redirect_stdout(said):
        assert run(folder) == 0
    return folder, results, said.getvalue()


def test_every_row_is_that_of_its_reconstruction(compared) -> None:
    output, results, said = compared
    rows = json.loads((output / "rows.json").read_text())["rows"]
    expected = [
        (coils, acceleration, method, seed)
        for coils in (1, 2)
        for acceleration in ACCELERATIONS
        for method in CHOSEN
        for seed in ((0,) if method == "zero-filled" else (0, 1))
    ]
    names = ("coils", "acceleration", "method", "seed")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    for row in rows:
        coils, acceleration, method, seed = (row[name] for name in names)
        folder = output / f"{coils}_coils"
        part = "singlecoil_test" if coils == 1 else "multicoil_test"
        made = folder / f"reconstructions/{method}_{seed}_{acceleration}x"
        scores = evaluate(folder / "data" / part, made).summary.mean
        assert (scores.nmse, scores.psnr, scores.ssim) == (
            row["nmse"],
            row["psnr"],
            row["ssim"],
        )
        trained = method != "zero-filled"
        assert row["steps"] == (2 if trained else 0)
        assert (row["parameters"] > 0) == (row["peak"] > 0) == trained
    for line in aligned(table(rows)).splitlines():
        assert line in said
    recorded = json.loads((results / next(results.glob("reproduce*.json"))).read_text())
    assert recorded["rows"] == rows
    assert recorded["settings"]["steps"] == 2
    assert len((output / "table.md").read_text().splitlines()) == 2 + 2 * 2 * 4


def test_seeds_are_trainings_of_their_own(compared) -> None:
    output, _, _ = compared
    rows = json.loads((output / "rows.json").read_text())["rows"]
    first, second = (
        [row["nmse"] for row in rows if row["method"] == "U-Net" and row["seed"] == s]
        for s in (0, 1)
    )
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_it_draws_and_writes_a_page(compared) -> None:
    output, _, _ = compared
    page = (output / "report.html").read_text()
    for count in (1, 2):
        for acceleration in ACCELERATIONS:
            picture = output / f"{count}_coils_{acceleration}x.png"
            assert picture.read_bytes().startswith(b"\x89PNG")
    for method in CHOSEN:
        assert method in page


def test_what_is_there_is_kept_and_other_settings_are_refused(compared, capsys) -> None:
    output, results, _ = compared
    paths = [*output.glob("*/*/last.ckpt"), *output.glob("*/reconstructions/*/*.h5")]
    before = [path.stat().st_mtime_ns for path in paths]
    rows = (output / "rows.json").read_bytes()
    with small(results):
        assert run(output) == 0
        assert [path.stat().st_mtime_ns for path in paths] == before
        assert (output / "rows.json").read_bytes() == rows
        capsys.readouterr()
        assert run(output, steps=4) == 2
    assert "was written with steps = 2, not 4: " in capsys.readouterr().err


def test_a_row_is_written_before_the_next_method_begins(tmp_path, monkeypatch) -> None:
    """What was interrupted goes on with the method that has no row."""

    def interrupted(*_):
        raise KeyboardInterrupt

    chosen = {"methods": ("zero-filled", "U-Net"), "seeds": 1}
    with small(tmp_path):
        with monkeypatch.context() as patched:
            patched.setattr(Network, "training", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "out", **chosen)
        rows = json.loads((tmp_path / "out/rows.json").read_text())["rows"]
        assert [(row["coils"], row["method"]) for row in rows] == [
            (1, "zero-filled"),
            (1, "zero-filled"),
        ]
        assert run(tmp_path / "out", **chosen) == 0
    rows = json.loads((tmp_path / "out/rows.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2


@pytest.mark.parametrize(
    "options",
    [
        ["--methods=[VarNet]"],
        ["--steps=0"],
        ["--minutes=-1"],
        ["--seeds=0"],
        ["--size=63"],
    ],
)
def test_comparisons_of_nothing_are_refused(options, tmp_path, capsys) -> None:
    assert main([f"--output={tmp_path / 'out'}", *options]) == 2
    assert "but " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@given(steps=st.integers(1, 5000), batches=st.integers(1, 400))
def test_all_trainings_make_the_steps_they_are_given(steps, batches) -> None:
    options = Protocol(steps).trainer(batches)
    assert options["max_epochs"] * options["limit_train_batches"] == steps
    assert 1 <= options["limit_train_batches"] <= min(batches, 200)


def test_a_time_takes_the_place_of_the_steps() -> None:
    assert Protocol(minutes=10).trainer(300)["max_time"].total_seconds() == 600


@pytest.mark.parametrize("coils", [1, 8])
def test_all_networks_are_trained_alike(coils) -> None:
    protocol = Protocol(steps=10, slices=2)
    names = [name for name in methods_of(coils) if name not in CLASSICAL]
    assert len(names) == (4 if coils == 1 else 5)
    tasks, data, trainers = set(), set(), []
    for name in names:
        training = NETWORKS[name].training(coils, protocol, seed=3)
        tasks.add(training.task["loss"])
        slab = getattr(training.model(), "slab", None) or 1
        data.add((training.data["batch_size"] * slab, str(training.data["masks"])))
        trainers.append(training.trainer)
    assert len(tasks) == len(data) == 1
    assert all(trainer == trainers[0] for trainer in trainers)


@pytest.mark.parametrize("all_steps", [True, False])
@pytest.mark.parametrize("coils", [1, 8])
def test_irims_learn_from_all_steps_or_from_the_last(coils, all_steps) -> None:
    protocol = Protocol(all_steps=all_steps)
    for name in methods_of(coils):
        if name.startswith("i-RIM"):
            model = NETWORKS[name].training(coils, protocol, seed=0).model()
            assert model.all_steps is all_steps


@pytest.mark.parametrize("size", [64, 96, 320])
def test_maps_of_several_coils_have_columns_to_be_calibrated_on(size) -> None:
    for acceleration in ACCELERATIONS:
        _, low = masks_of(8, size, (acceleration,))((8, 1, size, size), seed=0)
        assert low >= wavelet.CENTER


def test_without_sigpy_its_methods_are_left_out_and_said_so(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(wavelet, "INSTALLED", False)
    with small(tmp_path):
        assert run(tmp_path / "out", methods=CLASSICAL) == 0
    said = capsys.readouterr().out
    assert "ESPIRiT + l1-wavelet is left out: sigpy is not installed" in said
    rows = json.loads((tmp_path / "out/rows.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"zero-filled"}


@pytest.mark.skipif(not wavelet.INSTALLED, reason="needs sigpy")
@pytest.mark.parametrize(("coils", "maps"), [(1, False), (3, False)])
def test_without_regularization_measured_data_come_back(coils, maps) -> None:
    image = torch.randn(2, coils, 16, 16, dtype=torch.complex64)
    mask = torch.ones(1, 1, 1, 16)
    found = wavelet.Wavelet(0.0, maps)(image, mask)
    assert found.shape == image.shape
    assert torch.allclose(found, image, atol=1e-3)


@pytest.mark.skipif(not wavelet.INSTALLED, reason="needs sigpy")
def test_the_weight_is_chosen_on_the_validation_head(tmp_path) -> None:
    simulation = Simulation(size=32)
    head = embedded_anatomy()["epi"][16:19]
    volumes.simulate_volumes([("a", head)], tmp_path / "val", simulation)
    masks = masks_of(1, 32, (8,))
    best = wavelet.chosen(False, tmp_path / "val", masks, tmp_path / "tried")
    errors = {
        weight: evaluate(tmp_path / "val", tmp_path / f"tried/{weight:g}")
        for weight in wavelet.WEIGHTS
    }
    assert best.weight == min(errors, key=lambda w: errors[w].summary.mean.nmse)


def test_nifti_files_are_split_by_subject(tmp_path) -> None:
    head = embedded_anatomy()["epi"][:4]
    for name in "abcd":
        image = nibabel.Nifti1Image(head.transpose(2, 1, 0), np.eye(4))
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    prepare(tmp_path / "data", Simulation(size=32), tmp_path)
    found = {
        part: sorted(p.stem for p in (tmp_path / f"data/singlecoil_{part}").iterdir())
        for part in ("train", "val", "test")
    }
    assert found == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    for name in "cd":
        (tmp_path / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match="with 2 volumes, but"):
        prepare(tmp_path / "other", Simulation(size=32), tmp_path)


def test_the_spread_is_that_of_the_seeds() -> None:
    row = {"coils": 1, "acceleration": 4, "method": "RIM", "parameters": 5}
    row |= {"steps": 7, "peak": 2e6, "nmse": 0.1, "psnr": 30.0, "ssim": 0.5}
    head, line = table([row | {"psnr": psnr} for psnr in (29.0, 30.0, 31.0)])
    cells = dict(zip(head, line, strict=True))
    assert cells["PSNR"] == "30.00 ± 1.00"
    assert cells["seeds"] == "3"
    assert dict(zip(head, table([row])[1], strict=True))["NMSE"] == "0.1000"
    assert markdown([head, line]).splitlines()[1].count("---") == len(head)
