"""Runs that were stopped, and go on as if they had not been."""

import signal
from pathlib import Path

import pytest
import torch

from mri_example.cli import main
from mri_example.training.module import ReconstructionTask
from tests.mri.forked import Run
from tests.mri.killed import up_to_a_step
from tests.mri.test_command_line import configuration, refused, root, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture


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

    def end_of(output: Path, *killed_at: int) -> tuple[int, int]:
        command = (up_to_a_step, signal.SIGKILL, *killed_at) if killed_at else (main,)
        code, _ = Run(*command, arguments(output)).ended()
        checkpoint = torch.load(output / "last.ckpt", weights_only=True)
        return code, checkpoint["global_step"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    died = -signal.SIGKILL
    assert end_of(whole) == (0, 24)
    assert end_of(killed, 12) == (died, 8)  # in the second epoch
    assert end_of(killed, 16) == (died, 16)  # right after it
    assert end_of(killed) == (0, 24)
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
