"""Steps on some of the coils of a slice."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduce.rim import RIM
from benchmarks.reproduce.unet import UNet
from mri_example.data.dataset import SliceDataset
from mri_example.errors import InputError
from mri_example.losses import normalized_l1, subsampled_nmse, training_loss
from mri_example.models import IRIM2D, IRIM3D
from mri_example.training.module import ReconstructionTask
from tests.mri.test_multicoil import COILS, FAN, MASKS, root

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
__all__ = ["root"]  # a fixture


@pytest.mark.parametrize(
    "model",
    [
        RIM(4, 2),
        IRIM2D(8, 1, **FAN, coils=None),
        IRIM3D(8, 1, **FAN, coils=None, slab=2),
    ],
    ids=["rim", "irim", "irim 3d"],
)
@given(st.integers(1, COILS + 1), st.integers(0, 99))
def test_a_step_on_some_coils_sees_them_as_among_all(root, model, few, seed):
    folder = root / "multicoil_train"
    dataset = SliceDataset(folder, MASKS, slab=model.slab, epoch=0)
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    network, scale = model, model.scale_of(batch.zero_filled)
    for loss in ("l1", "nmse"):
        torch.manual_seed(seed)
        found = training_loss(loss, 1.0, coils_per_step=few)(network, batch)
        torch.manual_seed(seed)
        chosen = torch.randperm(COILS)[:few].sort().values
        parts = batch.zero_filled[:, chosen], batch.mask
        whole = network.trajectory(batch.zero_filled, batch.mask)
        some = network.trajectory(*parts, scale=scale)
        for estimate, all_coils in zip(some, whole, strict=True):
            assert torch.allclose(estimate, all_coils[:, chosen], rtol=1e-4, atol=1e-6)
        torch.manual_seed(seed)
        alone = batch._replace(image=batch.image[:, chosen])
        one = {"l1": normalized_l1, "nmse": partial(subsampled_nmse, fraction=1.0)}[
            loss
        ]
        expected = torch.stack([one(e, alone.image) for e in some]).mean()
        assert torch.allclose(found, expected, rtol=1e-4)


def test_some_coils_of_a_model_that_needs_all_are_refused():
    for model in (UNet(2, 2), IRIM2D(12, 1, **FAN, coils=COILS)):
        with pytest.raises(InputError, match=r"coils_per_step is 1, .*each coil by"):
            ReconstructionTask(model, coils_per_step=1)
    with pytest.raises(InputError, match="coils_per_step is 0, but must be positive"):
        ReconstructionTask(RIM(4, 2), coils_per_step=0)
    with pytest.raises(InputError, match=r'coils_per_step is 1, .* the loss "ssim"'):
        ReconstructionTask(RIM(4, 2), coils_per_step=1, loss="ssim")
