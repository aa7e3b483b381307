"""Simulated k-space: the model it follows, and the files it ends in."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.checks import findings
from mri_example.data.files import KSpaceFile, volume_paths
from mri_example.data.simulate import (
    UNIT,
    Simulation,
    simulate_demo,
    simulate_volumes,
    without_empty_slices,
)
from mri_example.errors import InputError
from mri_example.transforms import center_crop, ifftc

SMALL = Simulation(size=16)
SPLITS = {
    "train": {
        **{f"average_axis{axis}": "average" for axis in range(3)},
        **{f"sagittal_axis{axis}": "sagittal" for axis in range(3)},
        "epi_first": "epi",
    },
    "val": {"epi_rest": "epi"},
    "test": {"coronal_axis0": "coronal"},
}


def images(simulation, magnitudes, name="a"):
    kspace = torch.from_numpy(simulation.kspace(name, magnitudes))
    return ifftc(kspace) / UNIT


def head(slices=4, rows=20, cols=20, seed=0):
    return 1 + np.random.default_rng(seed).random((slices, rows, cols), np.float32)


@given(st.integers(8, 21), st.integers(1, 4), st.integers(0, 9))
def test_without_noise_the_image_is_the_magnitude(size, slices, seed):
    magnitudes = head(slices, size, size, seed)
    image = images(Simulation(size=size, noise=0, seed=seed), magnitudes)
    assert image.shape == (slices, 2 * size, size)
    cropped = center_crop(image, (size, size)).abs().numpy()
    np.testing.assert_allclose(cropped, magnitudes / magnitudes.max(), atol=1e-5)
    assert image.abs().sum().item() == pytest.approx(cropped.sum(), rel=1e-3)


@given(st.integers(8, 20), st.integers(8, 20))
def test_slices_are_padded_to_squares_around_the_center(rows, cols):
    side = max(rows, cols)
    image = images(Simulation(size=side, noise=0), head(2, rows, cols))
    lit = center_crop(image, (side, side)).abs() > 0.1
    assert lit.sum() == 2 * rows * cols
    assert center_crop(lit, (rows, cols)).all()


def test_resizing_keeps_the_mean():
    large = without_empty_slices(embedded_anatomy()["epi"])
    image = images(Simulation(size=32, noise=0), large).abs()
    expected = large.sum((1, 2)) / large.sum()
    np.testing.assert_allclose(image.sum((1, 2)) / image.sum(), expected, rtol=0.02)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_noise_is_white_and_of_the_level_given(noise):
    magnitudes = head(slices=8, rows=64, cols=64)
    clean = images(Simulation(size=64, noise=0), magnitudes)
    residual = images(Simulation(size=64, noise=noise), magnitudes) - clean
    parts = torch.view_as_real(residual)
    assert parts.square().mean().item() == pytest.approx(noise**2 / 2, rel=0.05)
    assert residual.mean().abs().item() < 0.05 * noise
    neighbors = (residual[:, 1:] * residual[:, :-1].conj()).mean()
    assert neighbors.abs().item() < 0.05 * noise**2


def test_the_phase_is_smooth_in_all_directions_and_not_constant():
    image = images(Simulation(size=32, noise=0), np.ones((32, 32, 32), np.float32))
    image = center_crop(image, (32, 32))
    for axis in range(3):
        turns = (image.narrow(axis, 1, 31) / image.narrow(axis, 0, 31)).angle().abs()
        assert turns.max() < 1
    assert image.angle().std() > 0.1


def test_everything_follows_from_seed_and_name():
    base = SMALL.kspace("a", head())
    np.testing.assert_array_equal(Simulation(size=16).kspace("a", head()), base)
    assert not np.array_equal(SMALL.kspace("b", head()), base)
    assert not np.array_equal(Simulation(size=16, seed=1).kspace("a", head()), base)


def test_the_file_is_complete(tmp_path):
    (path,) = simulate_volumes([("man", head())], tmp_path, SMALL)
    file = KSpaceFile.inspect(path)
    assert (file.shape, file.crop, file.padding) == ((4, 32, 16), (16, 16), (0, 16))
    assert file.mask is None
    assert not findings(file, range(4))
    kspace = torch.from_numpy(np.stack([file.kspace(i) for i in range(4)]))
    target = center_crop(ifftc(kspace), (16, 16)).abs().numpy()
    np.testing.assert_allclose(file.target_volume(), target, atol=1e-6 * UNIT)
    assert file.attributes["max"] == pytest.approx(UNIT, rel=0.1)
    assert file.attributes["patient_id"] == "man"
    assert "simulated from magnitude images" in file.attributes["simulated"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    return root, simulate_demo(root, SMALL)


def test_the_demo_is_split_by_subject(demo):
    root, written = demo
    for split, files in SPLITS.items():
        paths = volume_paths(root / f"singlecoil_{split}")
        assert set(paths) <= set(written)
        patients = {
            p.stem: KSpaceFile.inspect(p).attributes["patient_id"] for p in paths
        }
        assert patients == files
    assert len(written) == sum(map(len, SPLITS.values()))


def test_all_slices_of_the_unseen_head_are_tested_and_those_of_the_epi_shared(demo):
    slices = {path.stem: KSpaceFile.inspect(path).slices for path in demo[1]}
    assert slices["coronal_axis0"] == 62
    assert (slices["epi_first"], slices["epi_rest"]) == (16, 8)


def test_what_is_there_is_kept_and_what_is_missing_is_written(demo):
    root, written = demo
    before = {path: path.stat().st_mtime_ns for path in written}
    assert simulate_demo(root, SMALL) == []
    written[0].unlink()
    assert simulate_demo(root, SMALL) == [written[0]]
    after = {path: path.stat().st_mtime_ns for path in written}
    assert [p for p in written if after[p] != before[p]] == [written[0]]


def test_files_of_another_simulation_are_not_mixed_in(demo):
    with pytest.raises(InputError, match=r"exists and is .*noise=0\.005.*noise=0\.5"):
        simulate_demo(demo[0], Simulation(size=16, noise=0.5))


@given(data=st.data(), factor=st.sampled_from([0.5, 2.0]))
def test_files_of_another_image_are_not_mixed_in(tmp_path_factory, data, factor):
    """Of the same name, and simulated in the same way."""
    folder, one = tmp_path_factory.mktemp("data"), head()
    (path,) = simulate_volumes([("a", one)], folder, SMALL)
    content, other = path.read_bytes(), one.copy()
    place = [data.draw(st.integers(0, n - 1)) for n in other.shape]
    other[tuple(place)] += factor
    with pytest.raises(InputError, match=r"a\.h5 exists and is of another image"):
        simulate_volumes([("a", other)], folder, SMALL)
    assert simulate_volumes([("a", one)], folder, SMALL) == []
    assert path.read_bytes() == content


def test_an_interrupted_run_leaves_no_half_written_file(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    volumes = [("a", head()), ("b", head())]
    simulate_volumes(volumes[:1], tmp_path, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("mri_example.data.files.Header.xml", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate_volumes(volumes, tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert [p.name for p in simulate_volumes(volumes, tmp_path, SMALL)] == ["b.h5"]


def test_empty_slices_are_dropped_at_the_ends_alone(tmp_path, caplog):
    volume = np.zeros((6, 100, 100), np.float32)
    volume[1, :3, 40:90], volume[2], volume[3] = 1, 0.05, 0.5
    np.testing.assert_array_equal(without_empty_slices(volume), volume[1:4])
    (path,) = simulate_volumes([("a", volume)], tmp_path, SMALL)
    assert KSpaceFile.inspect(path).slices == 3
    assert f"{path}: 3 empty slices at its ends left out" in caplog.text


def test_a_volume_without_content_is_named(tmp_path):
    volume = np.zeros((4, 100, 100), np.float32)
    volume[0, 0, 0] = 1
    with pytest.raises(InputError, match="every slice of dot is empty"):
        simulate_volumes([("dot", volume)], tmp_path, SMALL)


@pytest.mark.parametrize(
    "wrong", [{"size": 7}, {"noise": -1}, {"phase": -1}, {"seed": -1}]
)
def test_options_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name} (is )?{value}"):
        Simulation(**wrong)
