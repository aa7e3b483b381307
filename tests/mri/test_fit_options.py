"""What `fit` takes of Lightning, and the checks on top of it."""

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.reproduce.rim import RIM
from mri_example.cli import main
from mri_example.models import IRIM2D
from mri_example.training.checkpoints import load
from tests.mri.forked import two_ranks
from tests.mri.test_command_line import ROOT, configuration, root, run, write_volume
from tests.mri.test_unusable_runs import sentence

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture
KINDS = {"irim": IRIM2D, "rim": RIM}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def logged(folder: Path, name: str) -> list[float]:
    paths = sorted(folder.glob("log/*/metrics.csv"))
    texts = [path.read_text().splitlines() for path in paths]
    rows = [row for text in texts for row in csv.DictReader(text)]
    return [float(row[name]) for row in rows if row.get(name)]


def other_files(folder: Path) -> None:
    write_volume(folder / "other.h5", 8)


def no_files(folder: Path) -> None:
    (folder / "file_train.h5").rename(folder / "renamed.h5")


def another_shape(folder: Path) -> None:
    write_volume(folder / "file_train.h5", 9)


def another_content(folder: Path) -> None:
    """Change the values of a file, and leave its size and its attributes."""
    write_volume(folder / "file_train.h5", 8, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_files, "other data, without singlecoil_train/other.h5"),
        (no_files, "singlecoil_train/file_train.h5, which is not there now"),
        (another_shape, "another singlecoil_train/file_train.h5: its size, shape"),
        (another_content, "another singlecoil_train/file_train.h5: its size, shape"),
    ],
)
@pytest.mark.parametrize("epochs", [2, 3])
def test_a_run_that_began_on_other_data(epochs, change, message, root, capsys) -> None:
    """Also one that is over, which would only say where its best checkpoint is."""
    assert run("fit", "--config", configuration(root)) == 0
    before = {p: p.read_bytes() for p in (root / "run").rglob("*") if p.is_file()}
    change(root / "data/singlecoil_train")
    again = configuration(root, trainer={"max_epochs": epochs})
    found = sentence(capsys, "fit", "--config", again)
    assert f"last.ckpt was trained with {message}" in found
    assert before == {
        p: p.read_bytes() for p in (root / "run").rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"masks": {"center_fractions": [0.2], "accelerations": [2]}},
        {"data": {"augment": False}},
        {"training": {"loss": "l1"}},
        {"trainer": {"accumulate_grad_batches": 2}},
        {"trainer": {"devices": 2, "strategy": "ddp"}},
        {"seed_everything": 1},
    ],
)
def test_a_run_that_began_otherwise(changes, root, capsys) -> None:
    assert run("fit", "--config", configuration(root)) == 0
    found = sentence(capsys, "fit", "--config", configuration(root, **changes))
    assert "last.ckpt was written with " in found


def test_a_run_that_is_over_is_left_or_given_more_epochs(root, capsys) -> None:
    assert run("fit", "--config", configuration(root)) == 0
    last = root / "run/last.ckpt"
    before = last.read_bytes()
    assert run("fit", "--config", configuration(root)) == 0
    assert last.read_bytes() == before
    longer = configuration(root, trainer={"max_epochs": 4})
    assert run("fit", "--config", longer) == 0
    assert torch.load(last, weights_only=True)["epoch"] == 3
    assert len(logged(root / "run", "validation_ssim")) == 4
    found = sentence(capsys, "fit", "--config", configuration(root))
    assert "max_epochs is 2, but " in found
    assert "has 4 epochs behind it: give as many at least" in found


def test_a_run_without_a_limit_of_epochs_is_over_after_its_steps(root) -> None:
    config = configuration(root, trainer={"max_epochs": None, "max_steps": 3})
    for _ in range(2):
        assert run("fit", "--config", config) == 0
        checkpoint = torch.load(root / "run/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 3


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_that_was_stopped_early_is_left(epoch, root) -> None:
    """Without what stopped it, it goes on."""
    stopping = {"monitor": "loss", "mode": "min", "patience": 1, "min_delta": 1e9}
    if epoch == 0:
        stopping["stopping_threshold"] = 1e9
    callback = {"class_path": "EarlyStopping", "init_args": stopping}
    config = configuration(root, trainer={"max_epochs": 4, "callbacks": [callback]})
    assert run("fit", "--config", config) == 0
    last = root / "run/last.ckpt"
    before = last.read_bytes()
    assert torch.load(last, weights_only=True)["epoch"] == epoch
    assert run("fit", "--config", config) == 0
    assert last.read_bytes() == before
    assert run("fit", "--config", configuration(root, trainer={"max_epochs": 3})) == 0
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_a_tilde_is_the_home_folder(root, monkeypatch) -> None:
    """Lightning takes it as such; a run that went on elsewhere would begin again."""
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
    config = configuration(root, data={"root": "~/data"}, output="~/run")
    for epochs in (1, 2):
        assert run("fit", "--config", config, f"--trainer.max_epochs={epochs}") == 0
        checkpoint = torch.load(root / "run/last.ckpt", weights_only=True)
        assert checkpoint["epoch"] == epochs - 1
    assert (root / "run/report.html").exists()
    assert not (root / "~").exists()


def test_a_bar_of_progress_where_there_is_no_terminal(root, capsys) -> None:
    trainer = {"callbacks": ["TQDMProgressBar"], "max_epochs": 1}
    assert run("fit", "--config", configuration(root, trainer=trainer)) == 0
    assert "Epoch 0" in capsys.readouterr().out


def test_init_starts_from_trained_weights(root, capsys) -> None:
    assert run("fit", "--config", configuration(root)) == 0
    trained = root / "run/last.ckpt"
    # one step at the very end of the warm-up, too small to be seen
    still = {"output": str(root / "next"), "training": {"learning_rate": 1e-12}}
    config = configuration(root, **still)
    assert run("fit", "--config", config, "--init", trained) == 0
    for name, tensor in weights(root / "next/last.ckpt").items():
        assert torch.allclose(tensor, weights(trained)[name], atol=1e-8), name
    other = configuration(root, output=str(root / "other"), model={"steps": 3})
    found = sentence(capsys, "fit", "--config", other, "--init", trained)
    assert "init is " in found
    assert "whose weights do not fit the model" in found
    missing = sentence(capsys, "fit", "--config", other, "--init", root / "no.ckpt")
    assert "no.ckpt does not exist" in missing
    assert not (root / "other").exists()


def test_callbacks_accumulation_and_precision_of_lightning(root) -> None:
    stopping = {"monitor": "loss", "stopping_threshold": 1e9, "mode": "min"}
    averaging = {"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}
    trainer = {
        "callbacks": [
            {"class_path": "EarlyStopping", "init_args": stopping},
            averaging,
        ],
        "accumulate_grad_batches": 2,
        "precision": "bf16-mixed",
        "max_epochs": 5,
    }
    config = configuration(root, trainer=trainer, data={"batch_size": 1})
    assert run("fit", "--config", config) == 0
    checkpoint = torch.load(root / "run/last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (0, 4)
    own = checkpoint["current_model_state"]
    assert any(
        not torch.equal(own[name], tensor)
        for name, tensor in checkpoint["state_dict"].items()
    )
    load(root / "run/best.ckpt")


def launched(command: list[str]) -> list[tuple[int, str]]:
    """Run a command as a user does; return its exit code, and what was printed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "mri_example", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return [(ended.returncode, ended.stdout)]


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize(
    ("model", "strategy"), [("irim", "ddp"), ("irim", "fsdp"), ("rim", "fsdp")]
)
def test_two_processes_train_as_one_with_twice_the_batch(model, strategy, root) -> None:
    """Also after they were stopped, and with more epochs.

    Lightning starts the second process of one of the runs.
    """
    changes = {"training": {"loss": "l1"}}
    if model == "rim":
        changes["model"] = "benchmarks.reproduce.rim.RIM"

    def config(name: str, batch_size: int, **trainer) -> Path:
        data, output = {"batch_size": batch_size}, str(root / name)
        return configuration(root, output=output, data=data, trainer=trainer, **changes)

    for epochs in (1, 2):
        assert run("fit", "--config", config("one", 4, max_epochs=epochs)) == 0
        two = {"devices": 2, "strategy": strategy, "max_epochs": epochs}
        command = ["fit", "--config", str(config("two", 2, **two))]
        by_lightning = (strategy, epochs) == ("ddp", 1)
        ended = launched(command) if by_lightning else two_ranks(main, command)
        said = "".join(said for _, said in ended)
        assert {code for code, _ in ended} == {0}, said
        assert said.count("best checkpoint") == 1
    one, both = root / "one", root / "two"
    for name, tensor in weights(one / "last.ckpt").items():
        found = weights(both / "last.ckpt")[name]
        assert torch.allclose(found, tensor, rtol=1e-4, atol=1e-6), name
    for metric in ("validation_ssim", "validation_nmse"):
        expected = logged(one, metric)
        assert logged(both, metric) == pytest.approx(expected, rel=1e-4)
    loaded = [load(f / "best.ckpt", model=KINDS[model]) for f in (one, both)]
    assert {type(network) for network in loaded} == {KINDS[model]}


def test_throughput_and_memory_are_logged_for_each_epoch(root, monkeypatch) -> None:
    now = itertools.count(step=0.5)  # each look at the clock is half a second later
    monkeypatch.setattr("mri_example.training.module.time.perf_counter", now.__next__)
    assert run("fit", "--config", configuration(root, trainer={"max_epochs": 2})) == 0
    rates = logged(root / "run", "slices_per_second")
    assert len(rates) == 2
    assert all(0 < rate <= 8 / 0.5 for rate in rates)  # of eight slices
    peaks = logged(root / "run", "peak_memory_mb")
    assert len(peaks) == 2
    assert 50 < peaks[0] <= peaks[1]  # Python and PyTorch alone take more than 50


def test_lines_of_progress(root, capsys, monkeypatch) -> None:
    monkeypatch.setattr("mri_example.progress.INTERVAL", 0.0)
    assert run("fit", "--config", configuration(root)) == 0
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if ", step " in line]
    assert len(steps) == 4
    assert "epoch 1, step 4, loss " in steps[-1]
    assert "epoch 1, validation, slice 2, " in lines[-1]
