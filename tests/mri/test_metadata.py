"""Models that know kinds of scans: what they are told of known and of unknown ones."""

import copy
import logging

import numpy as np
import pytest
import torch

from mri_example.data.dataset import SliceDataset
from mri_example.data.files import KSpaceFile, write_kspace
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.models import IRIM2D, IRIM3D, ChallengeIRIM
from mri_example.models.irim import KNEE_SCANS
from mri_example.reconstruct import reconstruct
from mri_example.training.checkpoints import export, load
from tests.mri.runs import train
from tests.mri.signals import magnitudes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
AUTHORS = {  # channel by acquisition and scanner, in the authors' implementation
    ("CORPDFS_FBK", "Aera"): 0,
    ("CORPD_FBK", "Aera"): 1,
    ("CORPDFS_FBK", "Biograph_mMR"): 2,
    ("CORPD_FBK", "Biograph_mMR"): 3,
    ("CORPDFS_FBK", "Prisma_fit"): 4,
    ("CORPD_FBK", "Prisma_fit"): 5,
    ("CORPDFS_FBK", "Skyra"): 6,
    ("CORPDFS_FBKREPEAT", "Skyra"): 6,
    ("CORPD_FBK", "Skyra"): 7,
}
UNKNOWN = [("CORPD_FBK", "Vida"), ("CORPD_FBK", ""), ("AXT2", "Skyra"), (None, "")]
FAN = {"hidden": (4, 4), "strides": (1, 2)}
KINDS = ("T1/Aera", "T2/Aera", "T2/Skyra")
MASKS = Masks("random", [0.2], [3])
MODELS = {
    "slices": IRIM2D(8, 2, **FAN, metadata=KINDS),
    "slabs": IRIM3D(8, 2, **FAN, metadata=KINDS, slab=2),
    "challenge": ChallengeIRIM(24, 1, **FAN),
}


def write(path, acquisition, scanner, rows=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kspace = (rng.normal(size=(4, rows, 12)) * (1 + 1j)).astype(np.complex64)
    header = Header((rows, 12, 1), (12, 12, 1), center=6, maximum=11, scanner=scanner)
    told = {} if acquisition is None else {"acquisition": acquisition}
    write_kspace(path, kspace, magnitudes(kspace, (12, 12)), header, told)
    return path


def problem(config, batch=3):
    space = (12, 10) if config.slab is None else (2, 12, 10)
    image = torch.randn(batch, 1, *space, dtype=torch.complex128)
    return image, torch.ones(batch, *(1,) * len(space), 10).double()


@pytest.mark.parametrize(("scan", "channel"), AUTHORS.items())
def test_the_channels_are_those_of_the_authors(tmp_path, scan, channel):
    write(tmp_path / "a.h5", *scan)
    dataset = SliceDataset(tmp_path, MASKS, metadata=ChallengeIRIM().metadata)
    assert dataset[0].metadata.equal(torch.eye(len(KNEE_SCANS))[channel])


@pytest.mark.parametrize("scan", UNKNOWN)
def test_an_unknown_scan_has_no_channel_and_is_named(tmp_path, caplog, scan):
    write(tmp_path / "a.h5", *scan)
    with caplog.at_level(logging.WARNING):
        dataset = SliceDataset(tmp_path, MASKS, metadata=KNEE_SCANS)
    assert not dataset[0].metadata.any()
    named = "/".join(part or "unknown" for part in scan)
    assert named in caplog.text
    caplog.clear()
    (sample, *_) = SliceDataset(tmp_path, MASKS)
    assert len(sample.inputs) == 2
    assert not caplog.text


def test_a_file_without_a_header_is_of_an_unknown_scanner(tmp_path):
    path = write(tmp_path / "a.h5", b"T2", "")
    assert KSpaceFile.inspect(path).scan == "T2/unknown"


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_metadata_stand_in_the_last_channels_of_the_first_state(config):
    model, seen = copy.deepcopy(config).double(), []
    model.irim.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    known = torch.eye(len(config.metadata))[:3]
    data = problem(config)
    model(*data)
    model(*data, known)
    plain, told = seen
    kinds = len(config.metadata)
    assert told[:, :-kinds].equal(plain[:, :-kinds])
    assert not plain[:, -kinds:].any()
    everywhere = known.double().view(3, kinds, *(1,) * config.dims)
    assert told[:, -kinds:].equal(everywhere.expand_as(told[:, -kinds:]))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_each_sample_is_reconstructed_as_a_scan_of_its_own_kind(config):
    model, (image, mask) = copy.deepcopy(config).double(), problem(config)
    image = image[:1].expand_as(image)
    kinds = torch.eye(len(config.metadata))[:3] * torch.tensor([[1], [1], [0]])
    first, second, unknown = model(image, mask, kinds)
    assert not torch.allclose(first, second)
    assert torch.allclose(unknown, model(image, mask)[0])
    assert torch.allclose(first, model(image[:1], mask[:1], kinds[:1])[0])


def test_every_kind_is_an_entry_and_needs_a_channel():
    model = copy.deepcopy(MODELS["slices"]).double()
    data = problem(model)
    with pytest.raises(
        ValueError, match=r"metadata has shape \(3, 2\), but .*\(3, 3\)"
    ):
        model(*data, torch.zeros(3, 2))
    with pytest.raises(InputError, match=r"kinds of scans .* need at least 7"):
        IRIM2D(6, 1, **FAN, metadata=KINDS)


def test_models_are_told_in_training_validation_and_reconstruction(
    tmp_path, monkeypatch
):
    """Also after an export, and of files with and without a known scanner."""
    told, start = set(), IRIM2D._start

    def watched(model, measured, metadata):
        told.update((model.training, *map(int, row)) for row in metadata)
        return start(model, measured, metadata)

    monkeypatch.setattr(IRIM2D, "_start", watched)
    for split in ("train", "val"):
        folder = tmp_path / f"singlecoil_{split}"
        write(folder / "known.h5", "T2", "Skyra")
        write(folder / "unknown.h5", "T2", "Vida")
    run, options = tmp_path / "run", {"batch_size": 8, "augment": False}
    best = train(tmp_path, run, MODELS["slices"], **options)
    kinds = {(0, 0, 0), (0, 0, 1)}
    assert told == {(mode, *kind) for mode in (True, False) for kind in kinds}
    export(best, tmp_path / "model.safetensors")
    model, data = load(tmp_path / "model.safetensors"), tmp_path / "singlecoil_val"
    told.clear()
    reconstruct(model, data, tmp_path / "out", MASKS)
    assert told == {(False, *kind) for kind in kinds}
