"""What cannot be run is said in one sentence, before anything is written."""

import re

import h5py
import numpy as np
import pytest
import torch

from tests.mri.test_command_line import (
    MODEL,
    TRAINING,
    configuration,
    refused,
    root,
    run,
    write_volume,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture


def sentence(capsys, *arguments) -> str:
    """Run a command that must fail with code 2 and one line of what is wrong."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = err.replace("\r", "\n").strip().splitlines()
    assert [line for line in lines if "error: " in line] == lines[-1:]
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("minutes", -1, "minutes is -1"),
        ("seed", -1, "seed is -1"),
        ("workers", -1, "workers is -1"),
        ("crop", [0, 4], "crop is .0, 4., but must be at least one row"),
    ],
)
def test_training_options_out_of_range(option, value, message, root, capsys) -> None:
    changed = configuration(root, training=TRAINING | {option: value})
    found = refused(capsys, "fit", "--config", changed)
    assert re.search(message, found), found
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("accelerator", "abacus"), ("precision", "7-true")]
)
def test_trainers_that_cannot_be_had(option, value, root, capsys) -> None:
    changed = configuration(root, training=TRAINING | {option: value})
    message = sentence(capsys, "fit", "--config", changed)
    assert f"{option} " in message
    assert value in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(root, capsys) -> None:
    changed = configuration(root, training=TRAINING | {"accelerator": "gpu"})
    assert "accelerator is 'gpu'" in sentence(capsys, "fit", "--config", changed)


@pytest.mark.parametrize(
    ("option", "value"), [("hidden", [0, 4]), ("steps", 0), ("strides", [1, 0])]
)
def test_models_of_no_size(option, value, root, capsys) -> None:
    changed = configuration(root, model=MODEL | {option: value})
    assert f"{option} is" in sentence(capsys, "fit", "--config", changed)


def test_an_output_that_is_a_file(root, capsys) -> None:
    (root / "run").write_text("kept")
    message = sentence(capsys, "fit", "--config", configuration(root))
    assert "which is a file: choose a folder" in message
    assert (root / "run").read_text() == "kept"


@pytest.mark.parametrize("workers", [0, 1])
def test_nan_in_training_data_names_the_file(workers, root, capsys) -> None:
    path = root / "data/singlecoil_train/file_train.h5"
    with h5py.File(path, "r+") as file:
        file["kspace"][2] = np.nan
    changed = configuration(root, training=TRAINING | {"workers": workers})
    assert run("fit", "--config", changed) == 2
    last = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in " ".join(last)
    assert "file_train.h5: the k-space of slice 2 holds NaN" in " ".join(last)
    assert not (root / "run").exists()


@pytest.mark.parametrize("value", [np.nan, 0.5, -1.0])
def test_masks_that_are_not_of_zeros_and_ones(value, tmp_path, capsys) -> None:
    mask = np.ones(16, np.float32)
    mask[3] = value
    write_volume(tmp_path / "in/own.h5", mask=mask)
    out = tmp_path / "out"
    message = sentence(
        capsys, "reconstruct", "--data", tmp_path / "in", "--output", out
    )
    assert "own.h5: the mask has values other than 0 and 1" in message


@pytest.mark.parametrize("option", ["noise", "phase"])
def test_simulations_of_no_number(option, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    message = refused(
        capsys, "simulate", "--output", out, f"--simulation.{option}", ".nan"
    )
    assert "none negative or not finite" in message
    assert not out.exists()


@pytest.mark.parametrize("damage", ["steps", "weights", "configuration", "code"])
def test_checkpoints_whose_parts_do_not_fit(damage, root, capsys) -> None:
    assert run("fit", "--config", configuration(root)) == 0
    capsys.readouterr()
    path = root / "run/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    if damage == "steps":
        checkpoint["invtorch_configuration"]["steps"] = 3
    elif damage == "weights":
        del checkpoint["state_dict"]
    elif damage == "configuration":
        checkpoint["invtorch_configuration"] = "irim"
    else:
        checkpoint["callbacks"] = Harmful(root / "harm")
    torch.save(checkpoint, path)
    test, out = root / "data/singlecoil_test", root / "out"
    arguments = ("reconstruct", "--data", test, "--output", out, "--checkpoint", path)
    assert "best.ckpt" in sentence(capsys, *arguments)
    assert not (root / "harm").exists()
    assert not out.exists()


@pytest.mark.parametrize("command", ["reconstruct", "fit"])
def test_a_text_file_is_no_checkpoint(command, root, capsys) -> None:
    path, out = root / "run/last.ckpt", root / "out"
    path.parent.mkdir()
    path.write_text("hello\nworld\n")
    test = root / "data/singlecoil_test"
    arguments = {
        "fit": ("--config", configuration(root)),
        "reconstruct": ("--data", test, "--output", out, "--checkpoint", path),
    }[command]
    assert "last.ckpt cannot be read" in sentence(capsys, command, *arguments)
    assert not out.exists()


def test_a_checkpoint_that_no_run_can_go_on_from(root, capsys) -> None:
    assert run("fit", "--config", configuration(root)) == 0
    capsys.readouterr()
    path = root / "run/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["pytorch-lightning_version"]
    torch.save(checkpoint, path)
    message = sentence(capsys, "fit", "--config", configuration(root))
    assert "last.ckpt has no 'pytorch-lightning_version'" in message


class Harmful:
    """An object that writes a file when it is loaded as a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": TRAINING | {"typo": 1}}, "training.typo"),
        ({"model": MODEL | {"channel": 8}}, "channel"),
        ({"typo": 1}, "typo"),
        ({"training": TRAINING | {"epochs": "many"}}, "training.epochs"),
    ],
)
def test_unknown_keys_and_wrong_types(changes, named, root, capsys) -> None:
    message = sentence(capsys, "fit", "--config", configuration(root, **changes))
    assert named in message
    assert "--help` lists what there is" in message
    assert "usage" not in message
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fit", "--data", "x"], "fit.output"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["reconstruct", "--typo", "3"], "--typo"),
        ([], "subcommand"),
    ],
)
def test_wrong_arguments(arguments, named, capsys) -> None:
    assert named in sentence(capsys, *arguments)


@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        ("val", {"reconstruction_esc": None}, "has no target"),
        ("train", {"kspace": np.full((8, 32, 16), np.nan, np.complex64)}, "holds NaN"),
        ("val", {"kspace": np.full((8, 32, 16), np.nan, np.complex64)}, "holds NaN"),
    ],
)
def test_faults_of_files_are_found_before_training(
    split, changes, message, root, capsys
) -> None:
    path = root / f"data/singlecoil_{split}/file_{split}.h5"
    write_volume(path, 8, **changes)
    found = sentence(capsys, "fit", "--config", configuration(root))
    assert path.name in found
    assert message in found
    assert not (root / "run").exists()


def test_masks_that_fit_no_file_are_found_before_training(root, capsys) -> None:
    masks = {"center_fractions": [0.05], "accelerations": [17]}
    message = sentence(capsys, "fit", "--config", configuration(root, masks=masks))
    assert "an acceleration is 17" in message
    assert not (root / "run").exists()


def test_a_target_with_nan_is_named(root, capsys) -> None:
    path = root / "data/singlecoil_val/file_val.h5"
    write_volume(path, 2, reconstruction_esc=np.full((2, 16, 16), np.nan, np.float32))
    assert run("fit", "--config", configuration(root)) == 2
    assert "file_val.h5: reconstruction_esc holds NaN" in capsys.readouterr().err


def test_a_complex_reconstruction_is_not_cut_to_its_real_part(root, capsys) -> None:
    test, out = root / "data/singlecoil_test", root / "out"
    out.mkdir()
    with h5py.File(out / "file_test.h5", "w") as file:
        file["reconstruction"] = np.ones((3, 16, 16), np.complex64)
    arguments = ("evaluate", "--targets", test, "--reconstructions", out)
    assert "file_test.h5: reconstruction is complex64" in sentence(capsys, *arguments)
