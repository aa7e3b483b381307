"""Lines of progress where there is no terminal."""

import sys

import numpy as np
import pytest

from mri_example import progress
from mri_example.data.convert import convert_raw
from mri_example.data.simulate import Simulation
from mri_example.inspection import inspect_root
from mri_example.progress import shown
from tests.mri.test_raw import lines, random_kspace, write

INTERVAL = progress.INTERVAL


@pytest.fixture
def always(monkeypatch):
    """Let every line be due."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


def test_lines_are_twenty_seconds_apart(monkeypatch, capsys) -> None:
    """By a clock that goes on by 7 seconds an item."""
    seconds = iter(range(0, 10**6, 7))
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    now = [next(seconds)]
    monkeypatch.setattr(progress, "LINES", progress.Lines())
    monkeypatch.setattr(progress, "INTERVAL", INTERVAL)
    seen = []
    for item in shown("abcdefgh", "read", "letter"):
        seen.append(item)
        now[0] = next(seconds)
    assert "".join(seen) == "abcdefgh"
    said = capsys.readouterr().err.splitlines()
    assert said == ["read: letter 4 of 8, 21 s", "read: letter 7 of 8, 42 s"]


def test_a_terminal_shows_a_bar(monkeypatch, capsys, always) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(shown([1, 2, 3], "count", "number")) == [1, 2, 3]
    assert "count: number" not in capsys.readouterr().err


def test_simulations_conversions_and_checks_say_how_far_they_are(
    tmp_path, capsys, always
) -> None:
    volume = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    Simulation(8).write(tmp_path / "singlecoil_train/a.h5", volume, "a")
    assert "simulate a: slice 3 of 3, " in capsys.readouterr().err
    inspect_root(tmp_path)
    assert "check: volume 1 of 1, " in capsys.readouterr().err
    write(tmp_path / "raw/a.h5", acquired := lines(random_kspace()))
    convert_raw(tmp_path / "raw/a.h5", tmp_path / "out")
    count = len(acquired)
    assert f"convert: line {count} of {count}, " in capsys.readouterr().err


def test_progress_that_cannot_be_written_ends_nothing(monkeypatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        progress.LINES.say("epoch 1")
        progress.LINES.say("epoch 2")
