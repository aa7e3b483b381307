"""Runs that are killed at any point lose nothing that was saved."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_example.cli import main
from tests.mri.forked import Run, two_ranks
from tests.mri.killed import up_to_a_batch, up_to_a_call
from tests.mri.test_command_line import ROOT, configuration, root, write_volume

__all__ = ["root"]  # a fixture
CHAINS, KILLS = 5, 4


def fit_of(root: Path, name: str) -> list[str]:
    config = configuration(
        root,
        output=str(root / name),
        data={"batch_size": 1},
        trainer={"max_epochs": 3},
    )
    return ["fit", "--config", str(config.rename(root / f"{name}.yaml"))]


def assert_same_weights(found: dict, expected: dict) -> None:
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name]), name


@pytest.mark.slow
@settings(max_examples=1)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_run_killed_at_any_points_ends_as_if_it_had_never_stopped(
    seed, tmp_path_factory
) -> None:
    """In training, in validation, and while checkpoints and logs are written."""
    root = tmp_path_factory.mktemp("root")
    for split, slices in {"train": 3, "val": 2}.items():
        write_volume(root / f"data/singlecoil_{split}/file_{split}.h5", slices)
    counted = root / "calls"

    def end_of(name: str, last: int | None = None) -> int:
        code, said = Run(up_to_a_call, last, counted, fit_of(root, name)).ended()
        assert code in (0, -signal.SIGKILL), said
        return code

    assert end_of("whole") == 0
    calls, draw = int(counted.read_text()), random.Random(seed)
    names = [f"killed {i}" for i in range(CHAINS)]
    killed = 0
    for name in names:
        points = [draw.randint(1, calls // 2) for _ in range(KILLS)]
        killed += sum(end_of(name, point) != 0 for point in points)
        assert end_of(name) == 0
    assert killed >= CHAINS  # a run may have ended before its point
    whole = torch.load(root / "whole/last.ckpt", weights_only=True)
    for name in names:
        found = torch.load(root / name / "last.ckpt", weights_only=True)
        assert found["epoch"] == whole["epoch"] == 2
        assert_same_weights(found, whole)
        best = torch.load(root / name / "best.ckpt", weights_only=True)
        kept = torch.load(root / "whole/best.ckpt", weights_only=True)
        assert best["epoch"] == kept["epoch"]


def launched(*command: str, errors: Path) -> int:
    """Run a script whose second process Lightning starts, and return its exit code."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with errors.open("w") as file:  # a pipe would wait for both
        ended = subprocess.run(
            [sys.executable, "-m", "tests.mri.killed", *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=file,
            check=False,
            timeout=300,
        )
    return ended.returncode


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
@settings(max_examples=1)
@given(steps=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_one_of_two_processes_is_killed(steps, tmp_path_factory) -> None:
    """The other one ends too, and the same command goes on.

    The first one is killed beside a process that something else has started, and the
    second one beside that which started it.
    """
    root = tmp_path_factory.mktemp("root")
    for split, slices in {"train": 8, "val": 2}.items():
        write_volume(root / f"data/singlecoil_{split}/file_{split}.h5", slices)

    def fit(name: str) -> list[str]:
        config = configuration(
            root,
            output=str(root / name),
            data={"batch_size": 2},
            trainer={"max_epochs": 3, "devices": 2, "strategy": "ddp"},
        )
        return ["fit", "--config", str(config)]

    def train(name: str) -> None:
        for code, said in two_ranks(main, fit(name)):
            assert code == 0, said

    train("whole")
    whole = torch.load(root / "whole/last.ckpt", weights_only=True)
    ended = two_ranks(up_to_a_batch, signal.SIGKILL, 0, steps[0], fit("killed 0"))
    assert ended[0][0] == -signal.SIGKILL, ended
    assert ended[1][0] != 0, ended
    errors = root / "errors"
    code = launched("1", str(steps[1]), *fit("killed 1"), errors=errors)
    assert code != 0, errors.read_text()
    for name in ("killed 0", "killed 1"):
        train(name)
        found = torch.load(root / name / "last.ckpt", weights_only=True)
        assert found["global_step"] == whole["global_step"] == 6
        assert_same_weights(found, whole)


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_is_terminated(rank, root) -> None:
    """Neither waits for the other."""
    trainer = {"max_epochs": 3, "devices": 2, "strategy": "ddp"}
    config = configuration(root, data={"batch_size": 2}, trainer=trainer)
    fit = ["fit", "--config", str(config)]
    ended = two_ranks(up_to_a_batch, signal.SIGTERM, rank, 2, fit)
    code, said = ended.pop(rank)
    assert code == 128 + signal.SIGTERM, said
    ((code, said),) = ended
    assert code == 2, said
    assert "another process ended, see what that says, and go on" in said
    assert "Traceback" not in said
