"""The pages that `fit` and `evaluate` write: what they show of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_example import transforms
from mri_example.data.dataset import coil_images
from mri_example.data.files import KSpaceFile, opened, read_reconstruction
from mri_example.evaluate import CAPTION, Evaluation
from mri_example.figures import learning_curve
from mri_example.metrics import comparable, score
from mri_example.report import Slice, versions, write_page
from mri_example.training.checkpoints import CONFIGURATION

if TYPE_CHECKING:  # `evaluate` imports no Lightning
    from mri_example.training.module import ReconstructionTask

EACH = 3  # worst slices, and best ones
CURVES = "Loss of each step and its mean over 30 steps; SSIM of the validation volumes."


def evaluation_page(
    evaluation: Evaluation, targets: Path, reconstructions: Path, path: Path
) -> Path:
    """Write the scores, the worst slices of the worst volume, and the best likewise."""
    volumes, groups = evaluation.tables()
    tables = {f"Scores: {CAPTION}": groups, "Volumes": volumes}
    ranked = sorted(evaluation.volumes, key=lambda n: evaluation.volumes[n].ssim)
    slices: dict[str, Slice] = {}  # of one volume none is shown twice
    for name, worst in (ranked[0], True), (ranked[-1], False):
        for one in _ranked(targets / name, reconstructions / name, worst=worst):
            slices.setdefault(one.title.partition(": ")[2], one)
    facts: dict[str, dict[str, Any]] = {
        "Folders": {"targets": targets, "reconstructions": reconstructions},
        "Versions": versions(),
    }
    count = len(evaluation.volumes)
    lead = f"{count} volume{'s' if count > 1 else ''} of {targets}, reconstructed."
    shown = [*slices.values()]
    return write_page(
        path, "Evaluation", lead, slices=shown, facts=facts, tables=tables
    )


def _ranked(target: Path, reconstruction: Path, *, worst: bool) -> list[Slice]:
    """Return the slices of a volume with the lowest SSIM, or with the highest.

    They are shown as far as they are compared. Those of nothing have no scores.
    """
    file, made = KSpaceFile.inspect(target), read_reconstruction(reconstruction)
    truth, estimate = comparable(file.target_volume(), made)
    peaks = truth.max(axis=(1, 2))
    scores = {
        i: score(truth[[i]], estimate[[i]], maxval=peaks.max())
        for i in np.flatnonzero(peaks > 0).tolist()
    }
    ranked = sorted(scores, key=lambda i: scores[i].ssim, reverse=not worst)
    slices = []
    for i in ranked[:EACH]:
        title = f"{'worst' if worst else 'best'}: {file.path.name}, slice {i}, NMSE "
        title += f"{scores[i].nmse:.4f}, PSNR {scores[i].psnr:.2f}, SSIM "
        title += f"{scores[i].ssim:.3f}"
        images = zero_filled_slice(file, reconstruction, i)
        slices.append(Slice(title, images | {"reconstruction": estimate[i]}, truth[i]))
    return slices


def zero_filled_slice(
    file: KSpaceFile, reconstruction: Path, index: int
) -> dict[str, NDArray[Any]]:
    """Return the zero-filled image, a square as wide as the target.

    There is one if the reconstruction says which columns it had.
    """
    columns: Any = file.mask
    if columns is None:
        with opened(reconstruction) as found:
            columns = found.attrs.get("columns")
    known = np.asarray(columns)  # another program may mean another thing
    if known.shape != file.shape[-1:] or known.dtype.kind not in "biuf":
        return {}
    sampled = torch.from_numpy(known.astype(np.float32))
    kspace = transforms.fftc(coil_images(file, index))
    image = transforms.root_sum_of_squares(transforms.ifftc(kspace * sampled), dim=0)
    _, width = file.target_size or file.crop
    cropped = transforms.center_crop(image, file.crop)
    return {"zero-filled": transforms.fitted(cropped, (width, width)).numpy()}


def training_page(task: ReconstructionTask, output: Path, seconds: float) -> Path:
    """Write the learning curves, two validation slices, and what the run was."""
    slices = [*task.validated_slices()]
    lead = f"{task.global_step:,} steps, {task.current_epoch} epochs, into {output}."
    gpu = task.device.type == "cuda"
    of = "tensors" if gpu else "the process"
    facts = {
        "Memory and time": {
            "this sitting": f"{seconds:.0f} s",
            "peak memory": f"{task.peak_megabytes:.0f} MB of {of}",
            "device": torch.cuda.get_device_name(task.device) if gpu else task.device,
        },
        "Configuration": task.notes[CONFIGURATION],
        "Versions": versions(),
    }
    curves = {CURVES: learning_curve(output / "log")}
    path = output / "report.html"
    return write_page(path, "Training", lead, slices=slices, facts=facts, curves=curves)
