"""The experiments: what is trained, and of which weights the scores are."""

import numpy as np
import pytest
import torch

from benchmarks.reproduce import experiments
from benchmarks.reproduce.contrast import ContrastData
from benchmarks.reproduce.experiments import EXPERIMENTS, Experiment, scores, train
from mri_example.data.simulate import Simulation, simulate_volumes
from mri_example.models import IRIM2D
from mri_example.training.checkpoints import load

SHAPE = (8, 1, (4,), (1,))


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Return a folder with data of two small heads, and a few small experiments."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        volume = generator.random((4, 32, 32), np.float32) + 0.1
        folder = tmp_path / f"data/singlecoil_{part}"
        simulate_volumes([(part, volume)], folder, Simulation(size=32))
    few = {
        "plain": Experiment("none", lambda: IRIM2D(*SHAPE)),
        "averaged": Experiment("weights", lambda: IRIM2D(*SHAPE), average=0.5),
        "contrast": Experiment("data", lambda: IRIM2D(*SHAPE), data=ContrastData),
    }
    monkeypatch.setattr(experiments, "EXPERIMENTS", few)
    return tmp_path


def test_averaged_weights_have_a_row_of_their_own(output) -> None:
    """The weights beside them are those of a training that averages none."""
    options = {"steps": 4, "epoch": 2, "seed": 3}
    (plain,) = train("plain", output, **options)
    own, averaged = train("averaged", output, **options)
    assert [own["experiment"], averaged["experiment"]] == [
        "averaged",
        "averaged, averaged",
    ]
    assert own["nmse_4x"] == plain["nmse_4x"] != averaged["nmse_4x"]
    kept = load(output / "averaged/last.ckpt")
    assert scores(kept, output, "again")["nmse_8x"] == averaged["nmse_8x"]


def test_seeds_and_data_make_other_trainings(output) -> None:
    options = {"steps": 2, "epoch": 1}
    (first,) = train("plain", output, seed=0, **options)
    (other,) = train("contrast", output, seed=0, **options)
    assert first["parameters"] == other["parameters"]
    assert first["nmse_4x"] != other["nmse_4x"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_network(name) -> None:
    torch.manual_seed(0)
    model = EXPERIMENTS[name].model()
    assert any(p.requires_grad for p in model.parameters())
