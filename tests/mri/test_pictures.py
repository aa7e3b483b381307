"""Pictures of a validation in the log: what they show, where, and how many stay."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib import colormaps
from PIL import Image

from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.masks import Masks
from mri_example.models import IRIM2D
from mri_example.reconstruct import reconstruct, zero_filled
from mri_example.report import AMPLIFY, Slice
from mri_example.training.checkpoints import load
from mri_example.training.fit import PICTURES, Pictures
from tests.mri.runs import train
from tests.mri.test_command_line import root, write_volume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture
MASKS = Masks("random", (0.2,), (2,))
MODEL = IRIM2D(8, 1, (4, 4), (1, 2))
LEVELS = 3  # of 255: colormaps have 256 bins, and truncate
sizes = st.integers(2, 9)


class Board(DummyLogger):
    """What Lightning's TensorBoard logger has that the pictures need."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple] = []
        self.writer = SimpleNamespace(add_image=self.add_image)

    @property
    def experiment(self):
        return self.writer

    def add_image(self, tag, image, step, *, dataformats) -> None:
        self.added.append((tag, image, step, dataformats))


def parts(picture: np.ndarray, count: int = 4) -> list[np.ndarray]:
    return np.split(picture, count, axis=1)


@given(rows=sizes, cols=sizes, images=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_strip_has_the_images_the_target_and_the_last_error(
    rows, cols, images, seed
) -> None:
    random = np.random.default_rng(seed)
    *made, target = 3e-5 * random.random((images + 1, rows, cols), np.float32)
    shown = Slice("a", {str(i): image for i, image in enumerate(made)}, target)
    *grays, error = parts(shown.strip(), images + 2)
    for gray, image in zip(grays, [*made, target], strict=True):
        expected = 255 * np.clip(image / shown.white, 0, 1)
        assert np.abs(gray - expected[..., None]).max() <= LEVELS
    table = (255 * np.asarray(colormaps["magma"].colors)).round().astype(int)
    distances = np.abs(error[:, :, None].astype(int) - table).sum(axis=-1)
    brightness = 255 * AMPLIFY * np.abs(made[-1] - target) / shown.white
    assert np.abs(distances.argmin(-1) - brightness.clip(0, 255)).max() <= LEVELS
    assert distances.min(-1).max() <= LEVELS


def test_each_validation_logs_its_volumes_to_csv_and_tensorboard(root) -> None:
    """The last picture is of what the last checkpoint reconstructs."""
    write_volume(root / "data/singlecoil_val/other.h5", 5)
    write_volume(root / "data/singlecoil_val/third.h5", 3)
    board, run = Board(), root / "run"
    options = {"max_epochs": 7, "limit_train_batches": 1, "logger": [board]}
    last = train(root / "data", run, MODEL, MASKS, trainer=options)
    titles = ["file_val.h5, slice 1", "other.h5, slice 2"]
    expected = [f"epoch_{i:04}, {t}.png" for i in range(7) for t in titles]
    found = sorted((run / "log/version_0/pictures").iterdir())
    assert [path.name for path in found] == expected[-PICTURES:]
    assert [(tag, step, of) for tag, _, step, of in board.added] == [
        (f"validation/{title}", i + 1, "HWC") for i in range(7) for title in titles
    ]
    folder = root / "data/singlecoil_val"
    for method, column in ((zero_filled, 0), (load(last), 1)):
        made = reconstruct(method, folder, root / f"out_{column}", MASKS)
        for i, index in enumerate((1, 2)):
            image = board.added[i - 2][1]
            assert np.array_equal(image, np.asarray(Image.open(found[i - 2])))
            target = KSpaceFile.inspect(folder / made[i].name).target_volume(index)
            images = {"": read_reconstruction(made[i])[index]}
            expected, truth, _ = parts(Slice("", images, target).strip(), 3)
            difference = np.int32(parts(image)[column]) - expected
            assert np.abs(difference).max() <= 1  # a level, by rounding
            assert np.array_equal(parts(image)[2], truth)


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_rank_logs(first, tmp_path) -> None:
    board, csv = Board(), CSVLogger(tmp_path)
    shown = Slice("a.h5, slice 0", {"a": np.eye(4)}, np.eye(4))
    trainer = SimpleNamespace(is_global_zero=first, loggers=[csv, board, DummyLogger()])
    trainer.current_epoch = trainer.global_step = 0
    task = SimpleNamespace(validated_slices=lambda: iter([shown]))
    Pictures().on_validation_end(trainer, task)
    assert len(board.added) == len(list(tmp_path.rglob("*.png"))) == first
