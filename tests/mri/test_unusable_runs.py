"""What cannot be run is said in one sentence, before anything is written."""

import contextlib
import errno
import math
import os
import re
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.training.module import ReconstructionTask
from tests.mri.test_command_line import (
    ROOT,
    configuration,
    refused,
    root,
    run,
    write_volume,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture
STOPPING = {
    "class_path": "EarlyStopping",
    "init_args": {"monitor": "validation_x"},
}


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
        ("trainer.max_time", "soon", "max_time is 'soon'"),
        ("trainer.max_epochs", -3, "max_epochs"),
        ("trainer.max_epochs", 0, "max_epochs is 0, but must be positive"),
        ("trainer.limit_val_batches", 0.5, "limit_val_batches is 0.5"),
        ("trainer.callbacks", [STOPPING], "monitor of EarlyStopping is 'validation_x'"),
        ("trainer.callbacks", ["EarlyStopping"], "arguments are required: monitor"),
        ("trainer.accumulate_grad_batches", 0, "accumulate_grad_batches is 0"),
        ("trainer.val_check_interval", 50, "trainer cannot begin .*val_check_interval"),
        ("trainer.val_check_interval", 0, "val_check_interval is 0, but must be pos"),
        ("trainer.overfit_batches", 1, "overfit_batches is 1, but volumes"),
        ("trainer.strategy", "ddp_spawn", "strategy is 'ddp_spawn', whose processes"),
        ("trainer.strategy", "ddp_notebook", "strategy is 'ddp_notebook', whose proc"),
        ("trainer.profiler", "none", "trainer: this cannot be had here .*`profiler`"),
        ("trainer.enable_checkpointing", False, "trainer: .*enable_checkpointing=Fal"),
        ("trainer.callbacks", ["BackboneFinetuning"], "cannot begin .AttributeError"),
        ("trainer.gradient_clip_val", math.nan, "gradient_clip_val is nan, but must"),
        ("trainer.gradient_clip_val", -1, "gradient_clip_val is -1"),
        ("trainer.check_val_every_n_epoch", 0, "check_val_every_n_epoch is 0"),
        ("data.workers", -1, "workers is -1"),
        ("data.crop", [0, 4], "crop is .0, 4., but must be at least one row"),
        ("training.learning_rate", math.inf, "learning_rate is inf"),
        ("seed_everything", -1, "seed_everything is -1"),
        ("seed_everything", 2**70, "is 1180591620717411303424, but must be from 0"),
    ],
)
def test_training_options_out_of_range(option, value, message, root, capsys) -> None:
    group, _, name = option.rpartition(".")
    changed = configuration(
        root, **({group: {name: value}} if group else {name: value})
    )
    found = refused(capsys, "fit", "--config", changed)
    assert re.search(message, found), found
    assert not (root / "run").exists()


def test_early_stopping_without_validation(root, capsys) -> None:
    stopping = STOPPING | {"init_args": {"monitor": "validation_ssim"}}
    trainer = {"limit_val_batches": 0, "callbacks": [stopping]}
    found = sentence(capsys, "fit", "--config", configuration(root, trainer=trainer))
    assert "monitor of EarlyStopping is 'validation_ssim', but can only be" in found
    assert found.endswith("one of loss")
    assert not (root / "run").exists()


def test_torchrun_with_other_numbers_of_processes(root, capsys, monkeypatch) -> None:
    """Each would train by itself."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = sentence(capsys, "fit", "--config", configuration(root))
    assert "torchrun started 2 processes, but devices and num_nodes make 1" in found
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("accelerator", "abacus"), ("precision", "7-true")]
)
def test_trainers_that_cannot_be_had(option, value, root, capsys) -> None:
    changed = configuration(root, trainer={option: value})
    message = sentence(capsys, "fit", "--config", changed)
    assert option in message
    assert value in message


@pytest.mark.parametrize(
    ("option", "value"),
    [("limit_train_batches", 0), ("max_steps", 0), ("max_time", {"hours": -1})],
)
def test_runs_of_no_step(option, value, root, capsys) -> None:
    changed = configuration(root, trainer={option: value})
    assert "no step was trained" in sentence(capsys, "fit", "--config", changed)
    assert not (root / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(root, capsys) -> None:
    changed = configuration(root, trainer={"accelerator": "gpu"})
    assert "accelerator is 'gpu'" in sentence(capsys, "fit", "--config", changed)


@pytest.mark.parametrize(
    ("option", "value"),
    [("hidden", [0, 4]), ("hidden", []), ("steps", 0), ("strides", [1, 0])],
)
def test_models_of_no_size(option, value, root, capsys) -> None:
    changed = configuration(root, model={option: value})
    assert f"{option} is" in sentence(capsys, "fit", "--config", changed)


def test_an_output_that_is_a_file_or_lies_below_one(root, capsys) -> None:
    (root / "run").write_text("kept")
    message = sentence(capsys, "fit", "--config", configuration(root))
    assert "which is a file: choose a folder" in message
    below = configuration(root, output=str(root / "run/deeper"))
    message = sentence(capsys, "fit", "--config", below)
    assert "run/deeper, which cannot be made" in message
    assert (root / "run").read_text() == "kept"


def test_a_training_that_diverges(root, capsys) -> None:
    changed = configuration(root, training={"learning_rate": 1e6})
    message = sentence(capsys, "fit", "--config", changed)
    assert "training stopped at step 1: layer " in message
    assert "lower the learning rate" in message
    assert not (root / "run").exists()


def test_a_validation_that_is_not_finite(root, capsys, monkeypatch) -> None:
    gathered = ReconstructionTask._gathered

    def broken(self):
        return {key: slab * math.nan for key, slab in gathered(self).items()}

    monkeypatch.setattr(ReconstructionTask, "_gathered", broken)
    message = sentence(capsys, "fit", "--config", configuration(root))
    assert "training diverged: file_val.h5 is reconstructed to values that" in message
    assert "lower learning_rate, which is 0.001, or choose another prec" in message


def test_memory_that_is_full(root, capsys, monkeypatch) -> None:
    def full(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(ReconstructionTask, "training_step", full)
    message = sentence(capsys, "fit", "--config", configuration(root))
    assert "training stopped at step 0: CUDA out of memory" in message
    assert "lower batch_size, crop or workers" in message


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_logs_of_other_runs_are_kept(root, capsys, monkeypatch) -> None:
    """A logger may have one folder for all of them."""
    where = {"save_dir": str(root), "name": "all", "version": "one"}
    logger = {"class_path": "CSVLogger", "init_args": where}
    earlier = root / "all/one/hparams.yaml"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("kept")
    changed = configuration(root, trainer={"logger": logger})

    def failing(self, _) -> None:
        raise InputError("failing")

    monkeypatch.setattr(ReconstructionTask, "training_step", failing)
    assert "failing" in sentence(capsys, "fit", "--config", changed)
    assert earlier.exists()
    assert not (root / "run").exists()


def test_a_loss_that_is_not_finite(root, capsys, monkeypatch) -> None:
    step = ReconstructionTask.training_step

    def broken(self, batch):
        return step(self, batch) * (math.nan if self.global_step == 1 else 1.0)

    monkeypatch.setattr(ReconstructionTask, "training_step", broken)
    message = sentence(capsys, "fit", "--config", configuration(root))
    assert "training diverged: the loss of step " in message
    assert "lower learning_rate, which is 0.001" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_nan_in_training_data_names_the_file(workers, root, capsys) -> None:
    path = root / "data/singlecoil_train/file_train.h5"
    with h5py.File(path, "r+") as file:
        file["kspace"][2] = np.nan
    changed = configuration(root, data={"workers": workers})
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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": {"typo": 1}}, "'training' does not accept option 'typo'"),
        ({"trainer": {"typo": 1}}, "'trainer' does not accept option 'typo'"),
        ({"model": {"channel": 8}}, "channel"),
        ({"typo": 1}, "typo"),
        ({"trainer": {"max_epochs": "many"}}, "trainer.max_epochs"),
        ({"training": None}, "training is None"),
        ({"model": None}, "model is None"),
        ({"training": [1]}, "training is [1]"),
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
        (["fit", "--data.root", "x"], "output"),
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


@pytest.mark.parametrize(
    ("size", "value", "message"),
    [
        (16, np.nan, "reconstruction_esc holds NaN"),
        (20, 1.0, "must hold a square of the target's width, 20"),
        (16, 0.0, "the target is zero everywhere"),
    ],
)
def test_a_target_that_nothing_compares_with_is_named_before_training(
    size, value, message, root, capsys
) -> None:
    path = root / "data/singlecoil_val/file_val.h5"
    target = np.full((2, size, size), value, np.float32)
    write_volume(path, 2, reconstruction_esc=target)
    found = sentence(capsys, "fit", "--config", configuration(root))
    assert "file_val.h5" in found
    assert message in found
    assert not (root / "run").exists()


@pytest.mark.parametrize("place", ["h5py.File", "pathlib.Path.iterdir"])
@pytest.mark.parametrize("command", ["reconstruct", "check", "fit"])
def test_what_may_not_be_read(place, command, root, capsys, monkeypatch) -> None:
    """As a user other than the owner; the tests may run as one who may do all."""

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "some/place")

    config = configuration(root)
    monkeypatch.setattr(place, denied)
    arguments = {
        "fit": ["--config", config],
        "check": ["--data", root / "data"],
        "reconstruct": [
            "--data",
            root / "data/singlecoil_test",
            "--output",
            root / "o",
        ],
    }
    assert run(command, *arguments[command]) == 2
    out, err = capsys.readouterr()
    assert "Permission denied" in out + err
    assert "change its permissions" in out + err
    assert "copy it again" not in out + err
    assert "Traceback" not in out + err


def test_names_that_are_not_unicode(root, capsys) -> None:
    header = Header((32, 16, 1), (16, 16, 1), center=8, maximum=15)
    for path in list((root / "data").glob("*/*.h5")):
        path.unlink()
        name = os.fsdecode(b"\xff.h5")
        write_volume(path.with_name(name), ismrmrd_header=header.xml())  # no doubts
    test, out = root / "data/singlecoil_test", root / "out"
    best = ("--checkpoint", root / "run/best.ckpt")
    assert run("fit", "--config", configuration(root)) == 0
    assert run("reconstruct", "--data", test, "--output", out, *best) == 0
    assert run("evaluate", "--targets", test, "--reconstructions", out) == 0
    (test / os.fsdecode(b"\xfe.h5")).touch()
    assert run("check", "--data", root / "data") == 2
    printed = capsys.readouterr().out
    assert "\\udcff.h5" in printed
    assert "\\udcfe.h5" in printed
    for page in (root / "run/report.html", root / "out.html"):
        assert "\\udcff.h5" in page.read_text("utf-8")


def test_files_for_folders_and_folders_for_files(root, capsys) -> None:
    test, out = root / "data/singlecoil_test", root / "out"
    arguments = ("reconstruct", "--output", out, "--data")
    message = sentence(capsys, *arguments, test / "file_test.h5")
    assert "file_test.h5 is a file: name the folder" in message
    for option in ("--checkpoint", "--masks.file"):
        message = sentence(capsys, *arguments, test, option, root)
        assert f"{root} is a folder: name a file in it" in message


def test_a_binary_file_is_no_configuration(root, capsys) -> None:
    path = root / "data/singlecoil_test/file_test.h5"
    message = sentence(capsys, "fit", "--config", path)
    assert "the configuration is not text: write it as YAML" in message


def test_an_empty_reconstruction(root, capsys) -> None:
    test, out = root / "data/singlecoil_test", root / "out"
    out.mkdir()
    with h5py.File(out / "file_test.h5", "w") as file:
        file["reconstruction"] = h5py.Empty("f")
    arguments = ("evaluate", "--targets", test, "--reconstructions", out)
    assert "reconstruction is empty" in sentence(capsys, *arguments)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_k_space_beyond_single_precision(root, capsys) -> None:
    kspace = np.full((3, 32, 16), 1e300, np.complex128)
    write_volume(root / "in/large.h5", kspace=kspace, reconstruction_esc=None)
    arguments = ("reconstruct", "--data", root / "in", "--output", root / "out")
    assert "large.h5: the k-space of slice 0" in sentence(capsys, *arguments)


def test_a_nifti_volume_of_nothing(tmp_path, capsys) -> None:
    path = tmp_path / "empty.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 9, 0)), np.eye(4)), path)
    arguments = ("simulate", "--output", tmp_path / "out", "--source", path)
    message = sentence(capsys, *arguments)
    assert "empty.nii holds float64 of shape (4, 9, 0)" in message


def test_a_complex_reconstruction_is_not_cut_to_its_real_part(root, capsys) -> None:
    test, out = root / "data/singlecoil_test", root / "out"
    out.mkdir()
    with h5py.File(out / "file_test.h5", "w") as file:
        file["reconstruction"] = np.ones((3, 16, 16), np.complex64)
    arguments = ("evaluate", "--targets", test, "--reconstructions", out)
    assert "file_test.h5: reconstruction is complex64" in sentence(capsys, *arguments)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.permutations(range(1, 6)))
def test_another_number_of_steps_is_refused(steps, tmp_path_factory, capsys) -> None:
    """A run may end in the middle of an epoch, where no other can go on."""
    folder = tmp_path_factory.mktemp("root")
    for split, slices in {"train": 4, "val": 2}.items():
        write_volume(folder / f"data/singlecoil_{split}/file_{split}.h5", slices)
    first, second = (
        configuration(folder, trainer={"max_steps": n}).read_text() for n in steps[:2]
    )
    config = folder / "config.yaml"
    config.write_text(first.replace("batch_size: 4", "batch_size: 2"))
    for _ in range(2):
        assert run("fit", "--config", config) == 0
    config.write_text(second.replace("batch_size: 4", "batch_size: 2"))
    said = sentence(capsys, "fit", "--config", config)
    assert f"last.ckpt was written with max_steps = {steps[0]}, but" in said


COMMANDS = {
    "simulate": ("output",),
    "reconstruct": ("data", "output", "checkpoint"),
    "evaluate": ("targets", "reconstructions", "output"),
    "fit": ("output", "data.root", "config"),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), joined=st.booleans())
def test_options_that_are_empty(data, joined, root, capsys) -> None:
    """A variable of a script that is not set would mean the current folder."""
    name = data.draw(st.sampled_from(sorted(COMMANDS)))
    options = {option: root / option for option in COMMANDS[name]}
    empty = data.draw(st.sampled_from(COMMANDS[name]))
    arguments = [f"--{option}={path}" for option, path in options.items()]
    place = list(options).index(empty)
    arguments[place : place + 1] = [f"--{empty}="] if joined else [f"--{empty}", ""]
    with contextlib.chdir(root):
        said = sentence(capsys, name, *arguments)
    assert re.match(rf"error: --{empty}=? is empty: give a value", said)
    assert not [*root.glob("*coil_*")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_options_that_a_file_gives_twice(data, root, capsys) -> None:
    """YAML takes the last one."""
    config = configuration(root)
    lines = config.read_text().splitlines()
    named = [i for i, line in enumerate(lines) if re.match(r" *\w+: \S", line)]
    place = data.draw(st.sampled_from(named))
    config.write_text("\n".join([*lines[: place + 1], *lines[place:]]))
    name = lines[place].strip().split(":")[0]
    said = sentence(capsys, "fit", "--config", config)
    assert f"config.yaml gives {name} 2 times: keep one of them" in said
    assert not (root / "run").exists()


@pytest.mark.parametrize("parents", [[], ["model"], ["model", "init_args"]])
@pytest.mark.parametrize("deep", [True, False])
def test_configurations_without_an_end(parents, deep, root, capsys) -> None:
    config = root / "config.yaml"
    end = "[" * 1000 + "]" * 1000 if deep else "&a [*a]"
    lines = [f"{' ' * i}{name}:" for i, name in enumerate([*parents, "trainer"])]
    config.write_text("\n".join(lines) + f" {end}\n")
    found = sentence(capsys, "fit", "--config", config)
    assert "config.yaml refers to itself, or is nested too deeply" in found


@pytest.mark.parametrize("name", ["output", "data"])
def test_paths_that_a_file_leaves_empty(name, root, capsys) -> None:
    """They would mean the current folder."""
    changed = configuration(root, **{name: {"root": ""} if name == "data" else ""})
    with contextlib.chdir(root):
        found = sentence(capsys, "fit", "--config", changed)
    assert re.search(rf'key "{name}(\.root)?": .* it is empty: give a value', found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["acceleration", "num_low_frequency", "columns"]),
    value=st.sampled_from(
        [h5py.Empty("f"), [b"x"] * 16, np.array(["x"] * 16, "S1"), [1j] * 16, [1, 2]]
    ),
)
def test_attributes_of_other_types_are_no_damage(name, value, root, capsys) -> None:
    mask = np.arange(16) % 2
    test, out = root / "data/singlecoil_test", root / "out"
    if name == "columns":
        run("reconstruct", "--data", test, "--output", out)
        changed = out / "file_test.h5"
    else:
        changed = write_volume(test / "file_test.h5", mask=mask.astype(np.float32))
    with h5py.File(changed, "r+") as file:
        file.attrs[name] = value
    for command in (
        ("reconstruct", "--data", test, "--output", out),
        ("evaluate", "--targets", test, "--reconstructions", out),
    )[name == "columns" :]:
        code = run(*command)
        said = "".join(capsys.readouterr())
        assert code == 0 or (code == 2 and f"attribute '{name}'" in said)
    write_volume(test / "file_test.h5")


FULL = "exec {python} -m mri_example check --data {data} {sink}"


@pytest.mark.parametrize("sink", ["> /dev/full", "| true"])
def test_an_output_that_cannot_be_written(sink, root) -> None:
    """Nobody reads the pipe, or the disk is full."""
    command = FULL.format(python=sys.executable, data=root / "data", sink=sink)
    if sink.startswith("|"):  # true ends before anything is written
        command = f"set -o pipefail; {command.replace('exec ', '')}"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert "error: standard output cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_error_that_cannot_be_written(root) -> None:
    """Its exit code can be read."""
    command = FULL.format(python=sys.executable, data="missing", sink="2> /dev/full")
    assert subprocess.run(["bash", "-c", command], cwd=ROOT).returncode == 2


@pytest.mark.parametrize("option", ["size=12000000", "coils=900000000"])
def test_sizes_beyond_the_memory(option, tmp_path, capsys) -> None:
    said = sentence(capsys, "simulate", "--output", tmp_path, f"--simulation.{option}")
    assert said.endswith("choose smaller sizes")
