"""Slabs of slices: that they cover a volume, and become one again."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mri_example.data.dataset import blend, slab_starts


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_slabs_cover_every_slice(slices, slab, step):
    slab = min(slab, slices)
    step = min(step, slab)
    starts = slab_starts(slices, slab, step)
    covered = {i for start in starts for i in range(start, start + slab)}
    assert covered == set(range(slices))
    assert all(b - a <= step for a, b in pairwise(starts))


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_slabs_of_a_volume_blend_to_the_volume(slices, slab, seed):
    slab = min(slab, slices)
    volume = np.random.default_rng(seed).random((slices, 3, 2)).astype(np.float32)
    starts = slab_starts(slices, slab, max(1, slab // 2))
    assert np.allclose(blend({s: volume[s : s + slab] for s in starts}, slices), volume)
