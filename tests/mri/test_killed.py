"""Runs that are killed at any point lose nothing that was saved."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mri.test_command_line import ROOT, configuration, write_volume

KILLED = Path(__file__).with_name("killed.py")
KILLED_RANK = Path(__file__).with_name("killed_rank.py")
CHAINS, KILLS = 5, 4


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def fit_of(root: Path, name: str) -> list[str]:
    config = configuration(
        root,
        output=str(root / name),
        data={"batch_size": 1},
        trainer={"max_epochs": 3},
    )
    return ["fit", "--config", str(config.rename(root / f"{name}.yaml"))]


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
    names = [f"killed {i}" for i in range(CHAINS)]
    runs = [fit_of(root, name) for name in names]
    report = root / "codes.json"
    plan = json.dumps([fit_of(root, "whole"), runs, KILLS, seed, str(report)])
    ended = subprocess.run(
        [sys.executable, KILLED, plan],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    code, codes = json.loads(report.read_text())
    assert code == 0
    for chain in codes:
        assert {*chain[:-1]} <= {-signal.SIGKILL, 0}  # 0 if it ended before
        assert chain[-1] == 0
    assert sum(code == -signal.SIGKILL for chain in codes for code in chain) >= CHAINS
    whole = torch.load(root / "whole/last.ckpt", weights_only=True)
    for name in names:
        found = torch.load(root / name / "last.ckpt", weights_only=True)
        assert found["epoch"] == whole["epoch"] == 2
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, found["state_dict"][key]), key
        best = torch.load(root / name / "best.ckpt", weights_only=True)
        kept = torch.load(root / "whole/best.ckpt", weights_only=True)
        assert best["epoch"] == kept["epoch"]


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
@settings(max_examples=1)
@given(steps=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_one_of_two_processes_is_killed(steps, tmp_path_factory) -> None:
    """The other one ends too, and the same command goes on."""
    root = tmp_path_factory.mktemp("root")
    for split, slices in {"train": 8, "val": 2}.items():
        write_volume(root / f"data/singlecoil_{split}/file_{split}.h5", slices)

    def train(name: str, *script: str) -> int:
        config = configuration(
            root,
            output=str(root / name),
            data={"batch_size": 2},
            trainer={"max_epochs": 3, "devices": 2, "strategy": "ddp"},
        )
        with (root / "errors").open("w") as errors:  # a pipe would wait for both
            ended = subprocess.run(
                [sys.executable, *script, "fit", "--config", config],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                check=False,
                timeout=300,
            )
        return ended.returncode

    command = "-m", "mri_example"
    assert train("whole", *command) == 0, (root / "errors").read_text()
    whole = torch.load(root / "whole/last.ckpt", weights_only=True)
    for rank, step in enumerate(steps):
        name = f"killed {rank}"
        assert train(name, str(KILLED_RANK), str(rank), str(step)) not in (0, None)
        assert train(name, *command) == 0, (root / "errors").read_text()
        found = torch.load(root / name / "last.ckpt", weights_only=True)
        assert found["global_step"] == whole["global_step"] == 6
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, found["state_dict"][key]), key
