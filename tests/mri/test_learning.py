"""A training run learns, keeps the best of what it saw, and draws anew every epoch."""

import csv
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.simulate import Simulation, simulate_volumes
from mri_example.masks import Masks
from mri_example.models import IRIM2D
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask
from tests.mri.runs import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TRAINING = {"fraction": 1.0, "learning_rate": 5e-3}
MASKS = Masks("random", (0.08,), (4,))


def model() -> IRIM2D:
    torch.manual_seed(0)
    return IRIM2D(8, 2, (8, 8), (1, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on a few real slices, and return the folder."""
    root = tmp_path_factory.mktemp("learning")
    head = embedded_anatomy()["epi"]
    for split, slices in {"train": slice(0, 16), "val": slice(16, 20)}.items():
        simulate_volumes(
            [(split, head[slices])], root / f"singlecoil_{split}", Simulation(size=48)
        )
    options = {"training": TRAINING, "trainer": {"max_epochs": 3}, "batch_size": 4}
    train(root, root / "run", model(), MASKS, **options)
    return root


def logged(run, name: str) -> list[float]:
    with (run / "run/log/version_0/metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_the_loss_falls_and_the_scores_rise(run) -> None:
    losses, ssim = logged(run, "loss"), logged(run, "validation_ssim")
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert ssim[-1] > ssim[0]


def test_every_weight_moves(run) -> None:
    start = model().state_dict()
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


def loader(run, rank: int = 0, ranks: int = 1, epoch: int = 0):
    """Return the training loader of one of some processes."""
    data = SliceData(run, MASKS, batch_size=4)
    data.check(model())
    trainer = {"world_size": ranks, "global_rank": rank}
    data.trainer = type("Trainer", (), trainer)()
    found = data.train_dataloader()
    found.sampler.set_epoch(epoch)
    return found


def test_masks_differ_from_epoch_to_epoch_and_from_rank_to_rank(run) -> None:
    seen: dict[tuple[float, ...], tuple[int, int]] = {}
    for epoch in range(3):
        slices = []
        for rank in range(2):
            for batch in loader(run, rank, 2, epoch):
                slices += batch.slice_index.tolist()
                for mask in batch.mask.flatten(1).tolist():
                    assert seen.setdefault(tuple(mask), (epoch, rank)) == (epoch, rank)
        assert sorted(slices) == list(range(16))


def test_weights_do_not_depend_on_the_workers(run, tmp_path) -> None:
    ends = []
    for workers in (0, 2):
        limits = {"max_epochs": 2, "limit_train_batches": 2}
        options = {"training": TRAINING, "trainer": limits, "batch_size": 4}
        train(run, tmp_path / str(workers), model(), MASKS, **options, workers=workers)
        last = torch.load(tmp_path / f"{workers}/last.ckpt", weights_only=True)
        ends.append(last["state_dict"])
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_the_loss_draws_other_pixels_on_other_ranks_and_batches(monkeypatch) -> None:
    """Also in the batches whose gradients are accumulated to one step."""
    task, trainer = ReconstructionTask(model()), SimpleNamespace(datamodule=None)
    trainer.datamodule = SimpleNamespace(seed=0)
    monkeypatch.setattr(ReconstructionTask, "trainer", trainer)
    draws = {}
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]
    for epoch, rank, batch in places:
        monkeypatch.setattr(ReconstructionTask, "current_epoch", epoch)
        monkeypatch.setattr(ReconstructionTask, "global_rank", rank)
        torch.rand(1)
        task.on_train_batch_start(None, batch)
        drawn = torch.rand(3)
        assert draws.setdefault((epoch, rank, batch), drawn).equal(drawn)
    assert len(torch.stack(list(draws.values())).unique(dim=0)) == 4


def rates(monkeypatch, minutes: float, steps: float) -> list[float]:
    """Return the learning rates along a run in shares of their highest value.

    The run has a hundred steps, and lasts a minute if it takes them all.
    """
    task = ReconstructionTask(model())
    elapsed = {"time_elapsed": lambda self, *_: self.seconds}
    clock = type("Clock", (Timer,), elapsed)({"minutes": minutes} if minutes else None)
    trainer = SimpleNamespace(estimated_stepping_batches=steps, callbacks=[clock])
    monkeypatch.setattr(ReconstructionTask, "trainer", trainer)
    clock.seconds = 0.0
    schedule = task.configure_optimizers()["lr_scheduler"]["scheduler"]
    found = []
    for step in range(100):
        clock.seconds = 0.6 * step
        found.append(schedule.lr_lambdas[0](step))
    return found


def test_the_learning_rate_follows_the_clock_as_it_follows_the_steps(
    monkeypatch,
) -> None:
    by_steps = rates(monkeypatch, minutes=0, steps=100)
    by_clock = rates(monkeypatch, minutes=1, steps=100_000)
    both = rates(monkeypatch, minutes=1, steps=100)
    endless = rates(monkeypatch, minutes=0, steps=math.inf)
    assert by_steps[0] < 0.5 < max(by_steps[:6])
    assert by_steps[-1] < 0.01
    assert by_clock[1:] == pytest.approx(by_steps[1:], abs=0.21)
    assert by_clock[10:] == pytest.approx(by_steps[10:], abs=1e-9)
    assert both == pytest.approx(by_steps)
    assert endless == [1.0] * 100
