"""Faults in the middle of a run: files that break or vanish, disks that fill up."""

import hashlib
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mri_example.training.module import ReconstructionTask
from tests.mri.forked import Run
from tests.mri.killed import on_a_full_disk, up_to_a_file, up_to_a_step
from tests.mri.test_command_line import (
    ROOT,
    configuration,
    refused,
    root,
    run,
    write_volume,
)
from tests.strategies import costly

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:-100] = bytes(len(content) - 200)
    path.write_bytes(content)


BREAK = {"cut": cut, "overwritten": overwritten, "removed": Path.unlink}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", sorted(BREAK))
def test_a_file_that_breaks_in_the_middle_of_an_epoch_is_named(
    fault, split, workers, root, capsys, monkeypatch
) -> None:
    """What was saved stays, and with the file back the run goes on."""
    path = root / f"data/singlecoil_{split}/file_{split}.h5"
    content, step = path.read_bytes(), ReconstructionTask.training_step

    def training_step(self, batch):
        if self.global_step == 5:  # of the second epoch
            BREAK[fault](path)
        return step(self, batch)

    more = {"max_epochs": 3}  # a worker reads ahead
    data = {"batch_size": 2, "workers": workers}
    config = configuration(root, data=data, trainer=more)
    with monkeypatch.context() as patched:
        patched.setattr(ReconstructionTask, "training_step", training_step)
        message = refused(capsys, "fit", "--config", config)
    assert path.name in message
    last = torch.load(root / "run/last.ckpt", weights_only=True)
    assert last["epoch"] in ((0, 1) if workers else (0,))
    assert not list(root.rglob("*.partial"))
    path.write_bytes(content)
    assert run("fit", "--config", config) == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_loads_data_is_sent_a_signal(
    sent, root, capsys, monkeypatch
) -> None:
    """SIGTERM is for the run, which ends its workers; a system out of memory kills."""
    step = ReconstructionTask.training_step

    def training_step(self, batch):
        if self.global_step == 1:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, sent)
        return step(self, batch)

    config = configuration(root, data={"batch_size": 1, "workers": 1})
    with monkeypatch.context() as patched:
        patched.setattr(ReconstructionTask, "training_step", training_step)
        if sent == signal.SIGKILL:
            message = refused(capsys, "fit", "--config", config)
            said = r"at step \d: (DataLoader worker|.*Connection reset).*lower batch_s"
            assert re.search(said, message)
        else:
            assert run("fit", "--config", config) == 0
    assert run("fit", "--config", config) == 0


@costly(4)
@given(
    names=st.lists(st.sampled_from(["best", "last"]), min_size=1, max_size=4),
    number=st.integers(1, 10**6),
)
def test_what_killed_runs_left_half_written_is_removed(names, number, trained) -> None:
    """Checkpoints of large models would fill the disk, kill by kill."""
    config, whole = trained
    folder = config.parent / "run"
    (folder / "last.ckpt").write_bytes(whole)
    for i, name in enumerate(names):
        (folder / f".{name}.ckpt.{number + i}.partial").write_bytes(whole[:99])
    assert run("fit", "--config", config) == 0
    assert not list(folder.rglob("*.partial"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, bytes]:
    """Return a configuration, and the bytes of a checkpoint that it wrote."""
    folder = tmp_path_factory.mktemp("trained")
    for split, slices in {"train": 4, "val": 2, "test": 2}.items():
        write_volume(folder / f"data/singlecoil_{split}/file_{split}.h5", slices)
    config = configuration(folder, trainer={"max_epochs": 1})
    assert run("fit", "--config", config) == 0
    more = configuration(folder, trainer={"max_epochs": 2})
    return more, (folder / "run/last.ckpt").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_checkpoint_cut_at_any_byte_is_refused(share, trained, capsys) -> None:
    config, whole = trained
    last = config.parent / "run/last.ckpt"
    last.write_bytes(whole[: int(share * len(whole))])
    damaged = digest(last)
    assert "last.ckpt" in refused(capsys, "fit", "--config", config)
    test, out = config.parent / "data/singlecoil_test", config.parent / "out"
    arguments = ("--data", test, "--output", out, "--checkpoint", last)
    assert "last.ckpt" in refused(capsys, "reconstruct", *arguments)
    assert not out.exists()
    assert digest(last) == damaged


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), bit=st.integers(0, 7))
def test_a_checkpoint_of_which_a_bit_changed_is_refused(
    data, bit, trained, capsys
) -> None:
    """Other weights would be loaded without a word, and finite ones."""
    config, whole = trained
    weights = torch.load(io.BytesIO(whole), weights_only=True)["state_dict"]
    name = data.draw(st.sampled_from(sorted(weights)))
    content = weights[name].numpy().tobytes()
    place = whole.index(content) + data.draw(st.integers(0, len(content) - 1))
    path, changed = config.parent / "run/last.ckpt", bytearray(whole)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    assert "last.ckpt cannot be read" in refused(capsys, "fit", "--config", config)
    test, out = config.parent / "data/singlecoil_test", config.parent / "out"
    arguments = ("--data", test, "--output", out, "--checkpoint", path)
    assert "last.ckpt cannot be read" in refused(capsys, "reconstruct", *arguments)
    assert not out.exists()


@pytest.fixture(scope="module")
def writers(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """Return a folder, and commands that each wrote a file there and write it again."""
    folder = tmp_path_factory.mktemp("writers")
    for split, slices in {"train": 4, "val": 2, "test": 3}.items():
        write_volume(folder / f"data/singlecoil_{split}/file_{split}.h5", slices)
    assert run("fit", "--config", configuration(folder, trainer={"max_epochs": 1})) == 0
    more = configuration(folder, trainer={"max_epochs": 2})
    test, best = folder / "data/singlecoil_test", folder / "run/best.ckpt"
    out, scores, model = (
        folder / "out",
        folder / "scores.json",
        folder / "m.safetensors",
    )
    both = [f"--targets={test}", f"--reconstructions={out}"]
    commands = {
        "run/last.ckpt": ["fit", "--config", more],
        "out/file_test.h5": [
            *("reconstruct", "--data", test, "--output", out, "--checkpoint", best)
        ],
        "scores.json": ["evaluate", *both, "--output", scores],
        "m.safetensors": ["export", "--checkpoint", best, "--output", model],
    }
    texts = {name: [str(a) for a in command] for name, command in commands.items()}
    for command in [*texts.values()][1:]:
        assert run(*command) == 0
    # what was made in the same way would be kept
    texts["out/file_test.h5"] += ["--masks.pattern=equispaced"]
    return folder, texts


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_files_that_cannot_be_written_whole_are_named_and_left_as_they_were(
    share, writers
) -> None:
    folder, commands = writers
    before = {name: digest(folder / name) for name in commands}
    for name, command in commands.items():
        limit = int(share * (folder / name).stat().st_size)
        code, said = Run(on_a_full_disk, limit, command).ended()
        assert code == 2, said
        assert "Traceback" not in said, said
        assert said.count("cannot be written") == 1, said
        assert str(folder / name.split("/")[0]) in said
        assert digest(folder / name) == before[name]
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "file"])
def test_a_run_that_is_terminated_says_so_and_leaves_nothing_half_written(
    where, root
) -> None:
    config = configuration(root, data={"batch_size": 4})
    fit = ["fit", "--config", str(config)]
    of_a_step = (up_to_a_step, signal.SIGTERM, 3)
    code, said = Run(*of_a_step if where == "step" else (up_to_a_file,), fit).ended()
    assert code == 128 + signal.SIGTERM, said
    assert "terminated: run the same command again to go on" in said
    assert "Traceback" not in said
    assert not list(root.rglob("*.partial"))
    assert run("fit", "--config", config) == 0


HELD = """
import sys
from mri_example.cli import main
from mri_example.training.module import ReconstructionTask

step = ReconstructionTask.training_step

def training_step(self, batch):
    if self.global_step == int(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
    return step(self, batch)

ReconstructionTask.training_step = training_step
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 5), workers=st.integers(0, 1), killed=st.booleans())
def test_a_second_run_in_a_folder_is_refused_while_the_first_one_lives(
    step, workers, killed, tmp_path_factory, capsys
) -> None:
    """It would write between the checkpoints of the other; SIGKILL ends the lock."""
    folder = tmp_path_factory.mktemp("root")
    for split, slices in {"train": 4, "val": 2}.items():
        write_volume(folder / f"data/singlecoil_{split}/file_{split}.h5", slices)
    data = {"batch_size": 2, "workers": workers}
    trainer = {"max_epochs": 3}
    whole = configuration(folder, output=str(folder / "whole"), trainer=trainer)
    assert run("fit", "--config", whole, "--data.batch_size=2") == 0
    config = configuration(folder, data=data, trainer=trainer)
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(step), "fit", "--config", str(config)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as first:
        assert first.stdout.readline() == "held\n"
        before = {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*")}
        said = refused(capsys, "fit", "--config", config)
        assert f"output is {folder / 'run'}, where another run is training" in said
        assert before == {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*")}
        if killed:
            first.kill()
        first.communicate("\n")
    assert first.returncode == (-signal.SIGKILL if killed else 0)
    assert run("fit", "--config", config) == 0
    found, expected = (
        torch.load(folder / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "whole")
    )
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert not (folder / "run/.lock").exists()
