"""The scores of the networks of a comparison on heads that they learned from."""

import json

import pytest
import torch

from benchmarks import record
from benchmarks.reproduce import gap as command
from benchmarks.reproduce.gap import gap, scores
from benchmarks.reproduce.methods import ACCELERATIONS
from mri_example.data.simulate import Simulation, simulate_volumes
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.reconstruct import zero_filled


@pytest.fixture
def folder(tmp_path):
    """Return a folder with data of two training heads and one for validation."""
    generator = torch.Generator().manual_seed(0)
    volumes = {
        name: torch.rand(2, 32, 32, generator=generator).numpy() + 0.1 for name in "abc"
    }
    for part, names in {"train": "ab", "val": "c"}.items():
        out = tmp_path / "1_coils/data" / f"singlecoil_{part}"
        simulate_volumes([(n, volumes[n]) for n in names], out, Simulation(size=32))
    return tmp_path / "1_coils"


def test_every_volume_has_a_row_with_its_scores(folder) -> None:
    rows = [
        row
        for part in ("train", "val")
        for row in scores(zero_filled, folder, "zero", part, 32)
    ]
    places = {(row["part"], row["volume"], row["acceleration"]) for row in rows}
    assert places == {
        (part, volume, acceleration)
        for part, volume in [("train", "a"), ("train", "b"), ("val", "c")]
        for acceleration in ACCELERATIONS
    }
    for row in rows:
        made = folder / f"gap/zero_{row['part']}_{row['acceleration']}x"
        found = evaluate(folder / f"data/singlecoil_{row['part']}", made).volumes
        assert found[f"{row['volume']}.h5"].nmse == row["nmse"]


def test_networks_are_found_by_their_folders(folder, tmp_path, monkeypatch) -> None:
    for name in ("RIM_1", "unknown_0"):
        (folder / name).mkdir()
        (folder / name / "last.ckpt").touch()
    monkeypatch.setattr(command, "load_checkpoint", lambda _: {"global_step": 7})
    monkeypatch.setattr(command, "load", lambda *_, model: zero_filled)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    gap(tmp_path, ("val",), 32)
    (written,) = tmp_path.glob("reproduce_gap*.json")
    rows = json.loads(written.read_text())["rows"]
    found = {(row["method"], row["seed"], row["steps"], row["part"]) for row in rows}
    assert found == {("RIM", 1, 7, "val")}


def test_a_folder_without_networks_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="has no trained network: run"):
        gap(tmp_path)
