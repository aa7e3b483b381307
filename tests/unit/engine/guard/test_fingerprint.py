"""Fingerprints: a few numbers that tell how far two states are apart."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch.engine.guard.fingerprint import fingerprint, size
from invtorch.engine.guard.tolerance import distance


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 9), min_size=1, max_size=4) | st.just([20, 30]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    st.floats(1e-3, 1.0),
)
def test_fingerprints_estimate_distances(seed, shape, dtype, scale) -> None:
    torch.manual_seed(seed)
    states = torch.randn(60, *shape, dtype=dtype)
    noise = scale * torch.randn(60, *shape, dtype=dtype)
    ratios = []
    for x, n in zip(states, noise, strict=True):
        one, other = (fingerprint((s.unsqueeze(0),))[0] for s in (x, x + n))
        true = float(size((x + n - x,)))
        ratios.append(float(distance(one, other)) / max(true, 1e-12))
    assert 0.4 < torch.tensor(ratios).square().mean().sqrt() < 2.0


@given(st.integers(1, 70) | st.integers(250_000, 300_000), st.floats(0, 1))
def test_every_element_counts_alike(count, where) -> None:
    x = torch.zeros(count, dtype=torch.float64)
    place = round(where * (count - 1))
    x[place] = 1
    projections = fingerprint((x,)).abs()
    assert ((projections > 0.5) & (projections < 1.6)).all()


def test_a_fingerprint_sees_a_misplaced_pixel() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[0, 1, 2, 3] = 1
    for moved in (x.roll(1, 1), x.roll(2, 2), x.roll(3, 3), x.flip(3)):
        one, other = fingerprint((x,)), fingerprint((moved,))
        assert not torch.equal(one, other)
