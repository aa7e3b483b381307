"""Whole volumes, in slabs where they do not fit, and how volumes fail."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example import reconstruct as module
from mri_example.cli import main
from mri_example.data.files import read_reconstruction
from mri_example.data.simulate import Simulation
from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.models import IRIM2D, IRIM3D
from mri_example.reconstruct import MADE, reconstruct, zero_filled

MASKS = Masks("random", [0.2], [3])
SIZE, SLICES = 16, 4


def head(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((SLICES, SIZE, SIZE), dtype=np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with two volumes of a single coil."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("a", "b"):
        Simulation(SIZE).write(folder / f"{name}.h5", head(), name)
    return folder


def volume(method, data, output, **options) -> np.ndarray:
    reconstruct(method, data, output, MASKS, **options)
    return read_reconstruction(output / "a.h5")


def attributes(path) -> dict[str, object]:
    with h5py.File(path) as file:
        return {name: value for name, value in file.attrs.items() if name != MADE}


def small(channels: int = 8) -> IRIM2D:
    torch.manual_seed(0)
    return IRIM2D(channels, steps=1, hidden=(4,), strides=(1,))


class TestARunThatWasInterrupted:
    """What was made in the same way is kept, the rest is made; nothing else is kept."""

    @pytest.fixture
    def made(self, monkeypatch) -> list[str]:
        """Return the names of the files that are reconstructed, and written."""
        names: list[str] = []
        write = module.write_reconstruction

        def noted(path, *content) -> None:
            write(path, *content)
            names.append(path.stem)

        monkeypatch.setattr(module, "write_reconstruction", noted)
        return names

    @pytest.mark.parametrize("method", [zero_filled, small()], ids=["none", "i-RIM"])
    def test_it_goes_on(self, method, made, data, tmp_path, monkeypatch) -> None:
        reconstruct(method, data, tmp_path / "whole", MASKS)
        volume_of, failing = module._volume, ["b"]

        def volume(method, dataset, file, *rest):
            if file.path.stem in failing:
                raise KeyboardInterrupt
            return volume_of(method, dataset, file, *rest)

        monkeypatch.setattr(module, "_volume", volume)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(method, data, tmp_path / "out", MASKS)
        made.clear()
        failing.clear()
        paths = reconstruct(method, data, tmp_path / "out", MASKS)
        assert made == ["b"]
        assert [path.name for path in paths] == ["a.h5", "b.h5"]
        for name in ("a.h5", "b.h5"):
            whole, found = (
                read_reconstruction(tmp_path / folder / name)
                for folder in ("whole", "out")
            )
            assert np.array_equal(whole, found)

    def test_another_way_makes_all_anew(self, made, tmp_path) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        for name in ("a", "b"):
            Simulation(SIZE).write(data / f"{name}.h5", head(), name)

        def again(method=None, masks=MASKS) -> list[str]:
            made.clear()
            reconstruct(method or small(), data, out, masks)
            return [*made]

        both = ["a", "b"]
        assert again() == both
        assert again() == []
        other = small()
        with torch.no_grad():
            next(other.parameters()).flatten()[0] += 1
        assert again(other) == both
        assert again(small(12)) == both
        assert again(zero_filled) == both
        assert again(zero_filled, Masks("random", [0.2], [2])) == both
        np.save(tmp_path / "mask.npy", np.arange(SIZE) % 2)
        masks = Masks(file=str(tmp_path / "mask.npy"))
        assert again(zero_filled, masks) == both
        assert again(zero_filled, Masks(file=masks.file)) == []
        np.save(tmp_path / "mask.npy", np.arange(SIZE) % 3 == 2)
        assert again(zero_filled, Masks(file=masks.file)) == both
        assert again(lambda image, mask: image) == both
        assert again(lambda image, mask: 2 * image) == both  # functions are not known
        assert again() == both
        with h5py.File(data / "a.h5", "r+") as file:  # beside what a hash reads
            file["kspace"][0, 0, 0] = 1
        assert again() == ["a"]
        (out / "b.h5").write_bytes((out / "b.h5").read_bytes()[:500])
        assert again() == ["b"]


def test_reconstructions_say_how_they_were_undersampled(tmp_path):
    for i in range(8):
        Simulation(32).write(tmp_path / f"data/{i}.h5", head(), "x")
    both = Masks("equispaced", [0.1, 0.05], [4, 8])
    reconstruct(zero_filled, tmp_path / "data", tmp_path, both)
    found = [attributes(tmp_path / f"{i}.h5") for i in range(8)]
    pairs = {(a["acceleration"], a["num_low_frequency"], a["mask"]) for a in found}
    assert pairs == {(4, 3, "equispaced"), (8, 2, "equispaced")}


def test_the_acceleration_of_masks_that_are_not_drawn(data, tmp_path):
    np.save(tmp_path / "third.npy", np.arange(SIZE) % 3 == 0)
    masks = Masks(file=str(tmp_path / "third.npy"))
    reconstruct(zero_filled, data, tmp_path / "out", masks)
    found = attributes(tmp_path / "out/a.h5")
    assert (found["acceleration"], found["mask"]) == (2.7, "third.npy")
    own = tmp_path / "own"
    Simulation(SIZE).write(own / "a.h5", head(), "x")
    with h5py.File(own / "a.h5", "r+") as file:
        del file["reconstruction_esc"]
        file["mask"] = (np.arange(SIZE) % 4 == 0).astype(np.float32)
        file["kspace"][...] *= file["mask"][()]
    reconstruct(zero_filled, own, tmp_path / "measured", MASKS)
    assert attributes(tmp_path / "measured/a.h5")["acceleration"] == 4.0
    with h5py.File(own / "a.h5", "r+") as file:
        file.attrs.update({"acceleration": 5, "num_low_frequency": 1})
    reconstruct(zero_filled, own, tmp_path / "told", MASKS)
    told = {"acceleration": 5, "num_low_frequency": 1, "mask": "of the file"}
    assert attributes(tmp_path / "told/a.h5") == told


def damaged(folder) -> None:
    """Write a good volume, one that holds NaN, and one that is cut off."""
    for name in ("good", "nan", "cut"):
        Simulation(SIZE).write(folder / f"{name}.h5", head(), name)
    with h5py.File(folder / "nan.h5", "r+") as file:
        file["kspace"][1, 0, 0] = np.nan
    (folder / "cut.h5").write_bytes((folder / "good.h5").read_bytes()[:500])


def test_volumes_that_fail_are_skipped_only_if_that_is_asked_for(tmp_path, capsys):
    damaged(tmp_path / "data")
    options = [f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    assert main(["reconstruct", *options]) == 2
    assert "cut.h5 cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["reconstruct", *options, "--skip_failures=true"]) == 0
    out = capsys.readouterr().out
    assert "1 reconstructions in" in out
    assert "failed and not written: 2" in out
    assert "cut.h5 cannot be read" in out
    assert "nan.h5: the k-space of slice 1 holds NaN" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.h5"]


def test_masks_that_do_not_fit_a_volume_name_it(tmp_path, capsys):
    for size in (16, 20):
        Simulation(size).write(tmp_path / f"data/{size}.h5", head(), "x")
    np.save(tmp_path / "mask.npy", np.ones(SIZE))
    options = [f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    options.append(f"--masks.file={tmp_path / 'mask.npy'}")
    assert main(["reconstruct", *options]) == 2
    assert "20.h5 cannot be undersampled: " in capsys.readouterr().err
    assert main(["reconstruct", *options, "--skip_failures=true"]) == 0
    assert "20.h5 cannot be undersampled: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["16.h5"]


def test_a_volume_that_fails_leaves_no_reconstruction_of_an_earlier_run(tmp_path):
    """Else it would be evaluated as one of this run."""
    damaged(tmp_path / "data")
    (tmp_path / "out").mkdir()
    for name in ("cut", "nan", "of another folder"):
        (tmp_path / f"out/{name}.h5").write_bytes(b"earlier")
    options = [f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    assert main(["reconstruct", *options, "--skip_failures=true"]) == 0
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["good.h5", "of another folder.h5"]


def test_nothing_that_could_be_reconstructed_is_an_error(tmp_path, capsys):
    damaged(tmp_path)
    (tmp_path / "good.h5").unlink()
    options = [f"--data={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert main(["reconstruct", *options, "--skip_failures=true"]) == 2
    printed = capsys.readouterr()
    assert "failed and not written: 2" in printed.out
    assert "no volume" in printed.err


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_not_finite_are_not_written(data, tmp_path, value):
    def broken(image, mask):
        image = image.clone()
        image[-1, ..., 3] = value
        return image

    with pytest.raises(
        InputError, match=r"a\.h5 is reconstructed to values that are no"
    ):
        reconstruct(broken, data, tmp_path / "out", MASKS)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_names_the_way_out(data, tmp_path):
    def hungry(image, mask):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match=r"a\.h5 does not fit .* 4 of shape .* slab"):
        volume(hungry, data, tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--device=toaster", "device is 'toaster', which cannot be used here"),
        ("--device=hpu", "device is 'hpu', which cannot be used here"),
        ("--batch_size=0", "batch_size is 0, but must be at least 1"),
        ("--slab=2", "zero_filled is given slice after slice"),
        ("--slab=0", "slab is 0, but must be at least 1"),
    ],
)
def test_options_that_cannot_be_used(data, tmp_path, capsys, option, message):
    arguments = [f"--data={data}", f"--output={tmp_path / 'out'}", option]
    try:
        code = main(["reconstruct", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_progress_is_shown(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mri_example.progress.INTERVAL", 0.0)
    options = [f"--data={data}", f"--output={tmp_path}", "--device=cpu"]
    assert main(["reconstruct", *options]) == 0
    assert "reconstruct: volume 2 of 2, " in capsys.readouterr().err


@pytest.mark.parametrize("slab", [2, 4])
def test_slabs_may_be_thinner_than_those_of_the_model(data, tmp_path, slab):
    method, depths = IRIM3D(8, 1, (4,), (1,), slab=4), set()
    method.register_forward_pre_hook(lambda _, x: depths.add(x[0].shape[2]))
    found = volume(method, data, tmp_path, slab=slab)
    assert depths == {slab}
    assert found.shape == (SLICES, SIZE, SIZE)
    with pytest.raises(InputError, match="slab is 5, but IRIM3D takes sla"):
        volume(method, data, tmp_path, slab=5)


OTHERS = {  # what another folder may hold under the names of the inputs
    "k-space": lambda file: file.create_dataset(
        "kspace", data=np.ones((1, 8, 8), "c8")
    ),
    "a target": lambda file: file.create_dataset("reconstruction_esc", data=[1.0]),
    "a raw file": lambda file: file.create_group("dataset"),
}


@given(
    kind=st.sampled_from(sorted(OTHERS)),
    name=st.sampled_from(["a", "b"]),
    fails=st.booleans(),
    skip=st.booleans(),
)
def test_files_that_are_no_reconstructions_are_kept(
    kind, name, fails, skip, tmp_path_factory
) -> None:
    """Measured data in the folder of the output, by mistake, would be lost."""
    tmp = tmp_path_factory.mktemp("data")
    for stem in ("a", "b"):
        Simulation(SIZE).write(tmp / f"data/{stem}.h5", head(), stem)
    if fails:
        (tmp / f"data/{name}.h5").write_bytes(b"damaged")
    precious = tmp / f"other/{name}.h5"
    precious.parent.mkdir()
    with h5py.File(precious, "w") as file:
        OTHERS[kind](file)
    before, failures = precious.read_bytes(), {} if skip else None
    with pytest.raises(InputError, match=f"{name}.h5 is there and no reconstruction"):
        reconstruct(zero_filled, tmp / "data", tmp / "other", MASKS, failures=failures)
    assert precious.read_bytes() == before
    assert [*precious.parent.iterdir()] == [precious]
