"""Validation on two real processes gives the scores of a single one."""

import csv
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reproduce.unet import UNet
from mri_example.data.simulate import Simulation
from mri_example.evaluate import evaluate
from mri_example.masks import Masks
from mri_example.reconstruct import reconstruct
from mri_example.training.checkpoints import load
from tests.mri.distributed_validation import MODELS, main, validate
from tests.mri.forked import two_ranks

pytestmark = [
    pytest.mark.xdist_group("two processes"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return a data root with 7 slices, or 2 + 3 slabs, to validate."""
    root = tmp_path_factory.mktemp("root")
    volumes = {"val/a": 3, "val/b": 4, "train/c": 3}
    for name, slices in volumes.items():
        head = np.random.default_rng(0).random((slices, 16, 16))
        path = root / f"singlecoil_{name}.h5"
        Simulation(16).write(path, head.astype(np.float32), "x")
    return root


@pytest.fixture(scope="module")
def ranks(root):
    """Return what both processes found."""
    for code, said in two_ranks(main, root, root):
        assert code == 0, said
    return [json.loads((root / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", MODELS)
def test_each_rank_takes_its_part_and_one_slice_is_taken_twice(ranks, root, name):
    alone = validate(root, name, devices=1)["seen"]
    parts = [[tuple(item) for item in rank[name]["seen"]] for rank in ranks]
    assert len(alone) % 2 == 1
    assert [len(part) for part in parts] == [(len(alone) + 1) // 2] * 2
    times = Counter(item for part in parts for item in part)
    assert set(times) == set(alone)
    assert sorted(times.values())[-2:] == [1, 2]


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_a_single_process(ranks, root, name):
    alone = validate(root, name, devices=1)["scores"]
    for rank in ranks:
        assert rank[name]["scores"] == pytest.approx(alone, rel=1e-6)


def test_training_on_two_ranks_logs_the_numbers_of_evaluate(ranks, root):
    val, out = root / "singlecoil_val", root / "out"
    log = (root / "run/log/version_0/metrics.csv").read_text().splitlines()
    (logged,) = [row for row in csv.DictReader(log) if row["validation_psnr"]]
    model, masks = load(root / "run/last.ckpt", model=UNet), Masks()
    reconstruct(model, val, out, masks, batch_size=1)
    for metric, value in asdict(evaluate(val, out).summary.mean).items():
        assert float(logged[f"validation_{metric}"]) == pytest.approx(value, rel=1e-5)
