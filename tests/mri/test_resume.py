"""Runs that were stopped, and go on as if they had not been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mri_example.training.module import ReconstructionTask
from tests.mri.test_command_line import ROOT, configuration, refused, root, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture

RUNS = """
import json, os, signal, sys
import torch
from mri_example.cli import main
from mri_example.training.module import ReconstructionTask

step = ReconstructionTask.training_step

def run(arguments, killed_at):
    child = os.fork()  # a process for each run, all with what was imported once
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def training_step(self, batch):
        if self.global_step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    ReconstructionTask.training_step = training_step
    os._exit(main(arguments))

runs, ended = json.loads(sys.argv[1]), []
for output, arguments, killed_at in runs:
    code = run(arguments, killed_at)
    checkpoint = torch.load(output + "/last.ckpt", weights_only=True)
    ended.append((code, checkpoint["global_step"]))
with open(sys.argv[2], "w") as file:
    json.dump(ended, file)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_twice_ends_as_if_it_had_never_stopped(
    workers, root, tmp_path
) -> None:
    def arguments(output: Path) -> list[str]:
        config = configuration(
            root,
            output=str(output),
            data={"batch_size": 1, "workers": workers},
            trainer={"max_epochs": 3},
        )
        return ["fit", "--config", str(config.rename(root / f"{output.name}.yaml"))]

    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole_run = (str(whole), arguments(whole), None)
    resumed = [(str(killed), arguments(killed), step) for step in (12, 16, None)]
    report = tmp_path / "ended.json"
    subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps([whole_run, *resumed]), str(report)],
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    died = -signal.SIGKILL  # in the second epoch, and right after it
    ended = [tuple(end) for end in json.loads(report.read_text())]
    assert ended == [(0, 24), (died, 8), (died, 16), (0, 24)]
    one, other = (
        torch.load(folder / "last.ckpt", weights_only=True)
        for folder in (whole, killed)
    )
    assert one["epoch"] == other["epoch"] == 2
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


def test_a_checkpoint_of_another_configuration(root, capsys) -> None:
    assert run("fit", "--config", configuration(root)) == 0
    capsys.readouterr()
    changed = configuration(root, model={"steps": 3})
    message = refused(capsys, "fit", "--config", changed)
    assert (
        "last.ckpt was written with steps = 2, but the configuration says 3" in message
    )


def test_a_file_that_is_no_checkpoint(root, capsys) -> None:
    data = root / "data/singlecoil_test"
    bad = root / "bad.ckpt"
    bad.write_bytes(b"not a checkpoint")
    arguments = ("reconstruct", "--data", data, "--output", root / "out")
    message = refused(capsys, *arguments, "--checkpoint", bad)
    assert "bad.ckpt cannot be read as a checkpoint" in message
    message = refused(capsys, *arguments, "--checkpoint", root / "none.ckpt")
    assert "none.ckpt does not exist" in message
    torch.save({"weights": torch.ones(1)}, bad)
    message = refused(capsys, *arguments, "--checkpoint", bad)
    assert "bad.ckpt is not a checkpoint of this package" in message
    assert not (root / "out").exists()


def test_control_c_is_said_and_can_be_gone_on_from(root, capsys, monkeypatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning ignores SIGINT
    step = ReconstructionTask.training_step

    def interrupted(self, batch):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    config = configuration(root, data={"batch_size": 2})
    with monkeypatch.context() as patched:
        patched.setattr(ReconstructionTask, "training_step", interrupted)
        assert run("fit", "--config", config) == 130
    assert "interrupted: run the same command again" in capsys.readouterr().err
    assert run("fit", "--config", config) == 0
