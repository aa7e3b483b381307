"""The command line, from files to scores, and what it says of bad input."""

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from mri_example.__main__ import main
from tests.mri.signals import magnitudes

ROOT = Path(__file__).parents[2]
MODEL = {"channels": 8, "steps": 2, "hidden": [4, 4], "strides": [1, 2]}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def write_volume(
    path: Path, slices: int = 3, size: int = 16, seed: int = 0, **changes
) -> Path:
    """Write a small file in the layout, with some data sets replaced or left out."""
    random = np.random.default_rng((len(path.name), seed))
    shape = (slices, 2 * size, size)
    kspace = random.standard_normal(shape) + 1j * random.standard_normal(shape)
    kspace = (1e-5 * kspace).astype(np.complex64)
    target = magnitudes(kspace, (size, size))
    if np.shape(changes.get("mask")) == (size,):
        kspace = kspace * changes["mask"]
    contents = {"kspace": kspace, "reconstruction_esc": target} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in contents.items():
            if value is not None:
                file[name] = value
        file.attrs["acquisition"] = "TEST"
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    for split, slices in {"train": 8, "val": 2, "test": 3}.items():
        write_volume(tmp_path / f"data/singlecoil_{split}/file_{split}.h5", slices)
    return tmp_path


def configuration(root: Path, **changes) -> Path:
    """Write a configuration; groups of options are changed option by option."""
    options = {
        "data": {"root": str(root / "data"), "batch_size": 4},
        "output": str(root / "run"),
        "model": MODEL,
        "training": {"fraction": 0.5},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    for name, value in changes.items():
        group = options.get(name)
        merged = isinstance(group, dict) and isinstance(value, dict)
        options[name] = group | value if merged else value
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def run(*arguments) -> int:
    """Run a command; jsonargparse exits by itself where an option is wrong."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code


def refused(capsys, *arguments) -> str:
    """Run a command that must fail with code 2, and return its one sentence."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return re.sub(r"\s+", " ", err)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
def test_from_files_to_scores(device, root, capsys) -> None:
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
    changed = configuration(root, trainer={"accelerator": accelerator})
    assert run("fit", "--config", changed) == 0
    test, out = root / "data/singlecoil_test", root / "out"
    checkpoint = root / "run/best.ckpt"
    arguments = ("--data", test, "--output", out, "--checkpoint", checkpoint)
    assert run("reconstruct", *arguments, "--device", device) == 0
    with h5py.File(out / "file_test.h5") as file:
        assert list(file) == ["reconstruction"]
        assert file["reconstruction"].shape == (3, 16, 16)
        assert file["reconstruction"].dtype == np.float32
    scores = root / "scores.json"
    code = run(
        *("evaluate", "--targets", test, "--reconstructions", out, "--output", scores)
    )
    assert code == 0
    assert "file_test.h5" in capsys.readouterr().out
    assert set(json.loads(scores.read_text())["mean"]) == {"nmse", "psnr", "ssim"}
    assert not list(root.rglob("*.partial"))
    training = (root / "run/report.html").read_text()
    assert "file_val.h5, slice 1" in training
    page = (root / "out.html").read_text()
    assert page.count("<figcaption>worst: file_test.h5, slice ") == 3
    assert page.count('alt="zero-filled"') == 3


def test_validation_reports_the_numbers_of_evaluate(root) -> None:
    write_volume(root / "data/singlecoil_val/other.h5", 3, size=20)
    assert run("fit", "--config", configuration(root)) == 0
    log = (root / "run/log/version_0/metrics.csv").read_text().splitlines()
    rows = [
        dict(zip(log[0].split(","), row.split(","), strict=True)) for row in log[1:]
    ]
    logged = [row for row in rows if row["validation_psnr"]][-1]
    val, out, scores = root / "data/singlecoil_val", root / "out", root / "s.json"
    run(
        "reconstruct",
        "--data",
        val,
        "--output",
        out,
        "--checkpoint",
        root / "run/last.ckpt",
        "--batch_size",
        2,
    )
    run("evaluate", "--targets", val, "--reconstructions", out, "--output", scores)
    mean = json.loads(scores.read_text())["mean"]
    for name, value in mean.items():
        assert float(logged[f"validation_{name}"]) == pytest.approx(value, rel=1e-4)


def test_zero_filled_files_with_and_without_header_and_with_a_mask(tmp_path) -> None:
    folder = tmp_path / "data"
    write_volume(folder / "target.h5")
    write_volume(folder / "bare.h5", reconstruction_esc=None)
    mask = (np.arange(16) % 3 == 0).astype(np.float32)
    write_volume(folder / "masked.h5", reconstruction_esc=None, mask=mask)
    assert run("reconstruct", "--data", folder, "--output", tmp_path / "out") == 0
    for name in ("target", "bare", "masked"):
        with h5py.File(tmp_path / f"out/{name}.h5") as file:
            assert file["reconstruction"].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typo": 1}, "typo"),
        ({"model": {"channelz": 8}}, "channelz"),
        ({"model": {"channels": "many"}}, "many"),
        ({"model": {"read_out": "magic"}}, "magic"),
        ({"model": {"hidden": [4]}}, "hidden has 1 entries and strides 2"),
        ({"model": {"channels": 3}}, "channels is 3"),
        ({"masks": {"accelerations": 4}}, "as a list, such as [4,8] or [4]"),
        ({"data": {"batch_size": 0}}, "batch_size is 0"),
        ({"training": {"fraction": 2}}, "fraction is 2"),
        ({"masks": {"pattern": "spiral"}}, "can only be one of random"),
        (
            {"masks": {"center_fractions": [0.08], "accelerations": [0.5]}},
            "acceleration is 0.5",
        ),
        (
            {"masks": {"center_fractions": [0.08], "accelerations": [64]}},
            "at most 0.0156",
        ),
    ],
)
def test_configurations_that_cannot_be_used(root, capsys, changes, message) -> None:
    assert message in refused(capsys, "fit", "--config", configuration(root, **changes))
    assert not (root / "run").exists()


def test_missing_data(root, capsys) -> None:
    message = refused(
        capsys, "fit", "--config", configuration(root, data={"root": "nowhere"})
    )
    assert "nowhere/singlecoil_train does not exist" in message
    (root / "empty/singlecoil_train").mkdir(parents=True)
    empty = configuration(root, data={"root": str(root / "empty")})
    assert "holds no .h5, .hdf5 files" in refused(capsys, "fit", "--config", empty)


def test_training_images_of_several_sizes(root, capsys) -> None:
    write_volume(root / "data/singlecoil_train/other.h5", 3, size=20)
    message = refused(capsys, "fit", "--config", configuration(root))
    assert "2 sizes, among them (16, 16) and (20, 20): set `crop`" in message
    cropped = configuration(root, data={"crop": [12, 12]})
    assert run("fit", "--config", cropped) == 0


ROWS = np.ones((8, 32, 16), np.complex64)
BROKEN = {
    "truncated.h5": None,
    "foreign.h5": {"kspace": None, "reconstruction_esc": None, "spectra": np.ones(3)},
    "without_kspace.h5": {"kspace": None},
    "real.h5": {"kspace": np.ones((8, 32, 16), np.float32)},
    "flat.h5": {"kspace": np.ones((32, 16), np.complex64)},
    "nan.h5": {"kspace": ROWS * np.nan, "reconstruction_esc": None},
    "no_slices.h5": {"kspace": ROWS[:0], "reconstruction_esc": None},
    "no_pixels.h5": {"reconstruction_esc": np.ones((8, 0, 0), np.float32)},
    "other_mask.h5": {"mask": np.ones(5, np.float32)},
    "empty_mask.h5": {"mask": np.ones(0, np.float32)},
    "unmeasured.h5": {"mask": np.zeros(16, np.float32)},
    "header.h5": {"ismrmrd_header": b"<broken"},
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", ["reconstruct", "fit"])
def test_a_file_that_cannot_be_used_names_itself(command, name, root, capsys) -> None:
    folder = root / "data/singlecoil_train"
    path = write_volume(folder / name, 8, **(BROKEN[name] or {}))
    if BROKEN[name] is None:
        path.write_bytes(path.read_bytes()[:300])
    arguments = {
        "reconstruct": ("--data", folder, "--output", root / "run"),
        "fit": ("--config", configuration(root)),
    }[command]
    message = refused(capsys, command, *arguments)
    assert name in message, message
    written = {p.name for p in (root / "run").rglob("*")}
    before = {"file_train.h5", "log", "version_0"}  # of what came before it
    assert written <= before


def test_control_c_before_everything_is_imported(capsys, monkeypatch) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name, *_):
            if name == "mri_example.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "mri_example.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    assert run("check", "--data", "data") == 130
    assert capsys.readouterr().err == "interrupted: run the same command again\n"


def test_an_output_folder_that_is_a_file(root, capsys) -> None:
    (root / "out").write_text("kept")
    test = root / "data/singlecoil_test"
    message = refused(capsys, "reconstruct", "--data", test, "--output", root / "out")
    assert "out" in message
    assert (root / "out").read_text() == "kept"


def test_scores_need_all_reconstructions_and_targets(root, capsys) -> None:
    test, out = root / "data/singlecoil_test", root / "out"
    arguments = ("evaluate", "--targets", test, "--reconstructions", out)
    assert "lacks file_test.h5 (1 missing of 1)" in refused(capsys, *arguments)
    run("reconstruct", "--data", test, "--output", out)
    capsys.readouterr()
    write_volume(test / "file_test.h5", reconstruction_esc=None)
    assert "has no target" in refused(capsys, *arguments)


def test_the_output_must_not_be_the_input(root, capsys) -> None:
    test = root / "data/singlecoil_test"
    message = refused(capsys, "reconstruct", "--data", test, "--output", test)
    assert "choose another folder" in message


def test_simulating_from_what_is_no_magnitude(tmp_path, capsys) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    out = tmp_path / "out"
    message = refused(capsys, "simulate", "--output", out, "--source", bad)
    assert "bad.nii.gz" in message
    missing = tmp_path / "missing.nii"
    refused(capsys, "simulate", "--output", out, "--source", missing)
    assert not out.exists()


OPTIONS = {
    "": "reconstruct",
    "demo": "--output",
    "simulate": "--simulation.coils",
    "convert": "--source",
    "check": "--quick",
    "fit": "--trainer.strategy",
    "reconstruct": "--checkpoint",
    "evaluate": "--skip_failures",
    "export": "--checkpoint",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_can_be_worked_from(command, capsys) -> None:
    assert run(*command.split(), "--help") == 0
    out = capsys.readouterr().out
    assert "usage: python -m mri_example" in out
    assert OPTIONS[command] in out
