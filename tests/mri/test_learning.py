"""A training run learns, keeps the best of what it saw, and draws anew every epoch."""

import csv

import pytest
import torch

from mri_example.data import Simulation, simulate_volumes
from mri_example.data.volumes import embedded_anatomy
from mri_example.model import IRIM2D
from mri_example.training import MaskConfig, TrainingConfig, fit
from mri_example.training.data import SliceData

MODEL = IRIM2D(8, 2, (8, 8), (1, 2))
TRAINING = TrainingConfig(
    epochs=3, batch_size=4, fraction=1.0, learning_rate=5e-3, accelerator="cpu"
)
MASKS = MaskConfig("random", (0.08,), (4,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on a few real slices, and return the folder."""
    root = tmp_path_factory.mktemp("learning")
    head = embedded_anatomy()["epi"]
    for split, slices in {"train": slice(0, 16), "val": slice(16, 20)}.items():
        simulate_volumes(
            [(split, head[slices])], root / f"singlecoil_{split}", Simulation(size=48)
        )
    fit(root, root / "run", MODEL, MASKS, TRAINING)
    return root


def logged(run, name: str) -> list[float]:
    with (run / "run/log/version_0/metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_the_loss_falls_and_the_scores_rise(run) -> None:
    losses, ssim = logged(run, "loss"), logged(run, "validation_ssim")
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert ssim[-1] > ssim[0]


def test_every_weight_moves(run) -> None:
    torch.manual_seed(TRAINING.seed)
    start = MODEL.build().state_dict()
    end = torch.load(run / "run/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in start.items():
        assert not torch.equal(tensor, end[f"model.{name}"]), name


def test_the_best_checkpoint_has_the_highest_similarity(run) -> None:
    checkpoint = torch.load(run / "run/best.ckpt", weights_only=True)
    (best,) = (
        state
        for name, state in checkpoint["callbacks"].items()
        if "ModelCheckpoint" in name and "validation_ssim" in name
    )
    scores = logged(run, "validation_ssim")
    assert float(best["best_model_score"]) == pytest.approx(max(scores), abs=1e-6)
    assert checkpoint["epoch"] == scores.index(max(scores))


def test_masks_differ_from_epoch_to_epoch(run) -> None:
    data = SliceData(run, MASKS.build(), TRAINING, MODEL)
    data.trainer = type("Trainer", (), {"world_size": 1, "global_rank": 0})()
    loader = data.train_dataloader()
    masks = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        masks.append(torch.stack([data.training[i].mask for i in range(8)]))
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
