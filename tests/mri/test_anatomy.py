"""The heads to simulate from: embedded, and from NIfTI files."""

import hashlib
import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_example.data import anatomy
from mri_example.data.anatomy import EMBEDDED, SHA256, embedded_anatomy, nifti_volumes
from mri_example.errors import InputError
from tests.mri.signals import logged

SHAPES = {
    "sagittal": (84, 128, 128),
    "coronal": (62, 128, 128),
    "epi": (24, 96, 128),
    "average": (107, 128, 107),
}
IMAGES = [".nii", ".nii.gz", ".mgz", ".hdr"]
INFINITE = np.float32(np.inf).tobytes()
PAIRS = ("IS", "PA", "LR")  # each axis of an upright head, and its opposite


def save(path, voxels, affine=None):
    nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_filename(
        path
    )


def test_the_embedded_heads_are_those_that_were_looked_at():
    heads = embedded_anatomy()
    assert {name: head.shape for name, head in heads.items()} == SHAPES
    for head in heads.values():
        assert head.dtype == np.float32
        assert head.min() == 0
        assert 200 <= head.max() <= 255
        assert 0.15 < (head > 0.1 * head.max()).mean() < 0.6


def test_the_embedded_file_is_small_and_has_a_notice():
    assert EMBEDDED.stat().st_size < 2e6
    notice = (EMBEDDED.parent / "NOTICE").read_text()
    assert all(f'"{name}"' in notice for name in SHAPES)


@pytest.mark.parametrize("content", [None, b"", b"other"])
def test_a_damaged_embedded_file_is_named(tmp_path, monkeypatch, content):
    path = tmp_path / "anatomy.npz"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(anatomy, "EMBEDDED", path)
    with pytest.raises(InputError, match=r"anatomy\.npz is damaged: check it out"):
        embedded_anatomy()


def test_the_hash_is_that_of_the_shipped_file():
    assert hashlib.sha256(EMBEDDED.read_bytes()).hexdigest() == SHA256


def stored_as(head, codes):
    """Store a head (axes down, back, left) along other axes; return voxels, affine."""
    axes = [next(i for i, pair in enumerate(PAIRS) if code in pair) for code in codes]
    flips = [
        code != pair[0]
        for axis, code in zip(axes, codes, strict=True)
        for pair in [PAIRS[axis]]
    ]
    voxels = head.transpose(axes)[
        tuple(slice(None, None, -1 if f else 1) for f in flips)
    ]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, code in enumerate(codes):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[row, column] = 1 if code in "RAS" else -1
    return voxels, affine


@pytest.mark.parametrize(("third", "pair"), list(enumerate(PAIRS)))
def test_slices_are_upright_however_the_voxels_are_stored(tmp_path, third, pair):
    head = np.arange(1, 2 * 3 * 4 + 1, dtype=np.int16).reshape(2, 3, 4)
    others = [other for other in PAIRS if other != pair]
    for codes in itertools.product(*others, pair):
        save(tmp_path / "a.nii", *stored_as(head, codes))
        ((name, volume),) = nifti_volumes(tmp_path / "a.nii")
        assert name == "a"
        assert volume.dtype == np.float32
        np.testing.assert_array_equal(volume, np.moveaxis(head, third, 0))


@given(count=st.integers(2, 4), data=st.data())
def test_a_series_says_which_volume_is_taken(tmp_path_factory, count, data):
    folder = tmp_path_factory.mktemp("images")
    number = data.draw(st.sampled_from([None, *range(-1, count + 1)]))
    series = np.random.default_rng(0).random((4, 5, 6, count)).astype(np.float32)
    save(folder / "series.nii.gz", series)
    with logged() as said:
        if number in (-1, count):
            text = f"volume is {number}, but .* holds {count} volumes: choose 0 to "
            with pytest.raises(InputError, match=f"{text}{count - 1}"):
                list(nifti_volumes(folder, number))
            return
        ((name, found),) = nifti_volumes(folder, number)
    save(folder / "one.nii", series[..., number or 0])
    assert name == "series"
    np.testing.assert_array_equal(found, dict(nifti_volumes(folder, 0))["one"])
    assert said == [
        f"{folder / 'series.nii.gz'} holds {count} volumes: volume 0 is taken, "
        f"--volume N takes another"
    ] * (number is None)


@given(
    sizes=st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.0])] * 3),
    codes=st.permutations(["R", "A", "S"]),
    radius=st.floats(10, 18),
)
def test_pixel_sizes_count(tmp_path_factory, sizes, codes, radius):
    """A ball stays round in every slice, whatever the voxels."""
    path = tmp_path_factory.mktemp("images") / "ball.nii"
    shape = [round(40 / size) for size in sizes]
    grids = [(np.arange(n) + 0.5) * s - 20 for n, s in zip(shape, sizes, strict=True)]
    x, y, z = np.meshgrid(*grids, indexing="ij")
    ball = (np.sqrt(x**2 + y**2 + z**2) < radius).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, code in enumerate(codes):
        affine["RAS".index(code), column] = sizes[column]
    save(path, ball, affine)
    ((_, volume),) = nifti_volumes(path)
    middle = volume[len(volume) // 2] > 0.5
    pixel = min(sizes[:2])
    assert middle.shape == (round(40 / pixel),) * 2
    for axis in (0, 1):
        wide = np.flatnonzero(middle.any(axis=axis)).size * pixel
        assert wide == pytest.approx(2 * radius, abs=2 * max(sizes))


@given(
    sizes=st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.0])] * 3),
    other=st.integers(0, 1),
    factor=st.sampled_from([0.5, 0.9, 1.2, 3.0]),
    whole=st.booleans(),
)
def test_pixel_sizes_that_contradict_each_other_are_refused(
    tmp_path_factory, sizes, other, factor, whole
):
    """`pixdim` against the affine; both may be of another unit, or of a template."""
    path = tmp_path_factory.mktemp("images") / "a.nii"
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([*sizes, 1]))
    said = np.array(sizes)
    said[slice(3) if whole else other] *= factor
    image.header.set_zooms(said)
    image.to_filename(path)
    if whole:
        ((_, volume),) = nifti_volumes(path)
        assert len(volume) == 4
        return
    text = (
        rf"pixels of {sizes[0]:g} x {sizes[1]:g} mm by its affine, but of {said[0]:g}"
    )
    with pytest.raises(InputError, match=rf"a\.nii has {text} x {said[1]:g} by pixdim"):
        list(nifti_volumes(path))


@given(number=st.integers(1, 9), ones=st.integers(0, 2))
def test_a_volume_of_no_series_is_alone(tmp_path_factory, number, ones):
    folder = tmp_path_factory.mktemp("images")
    save(folder / "a.nii", np.ones((4, 5, 6, *[1] * ones), np.float32))
    text = f"volume is {number}, but .*a.nii holds one volume: leave it out"
    with pytest.raises(InputError, match=text):
        list(nifti_volumes(folder, number))
    assert dict(nifti_volumes(folder, 0))["a"].shape == (6, 5, 4)


@given(stem=st.sampled_from(["a", "my.scan", "b.nii"]), end=st.sampled_from(IMAGES))
def test_the_name_is_that_of_the_file_without_its_ending(tmp_path_factory, stem, end):
    path = tmp_path_factory.mktemp("images") / f"{stem}{end}"
    kinds = {".mgz": nibabel.MGHImage, ".hdr": nibabel.Nifti1Pair}
    kind = kinds.get(end, nibabel.Nifti1Image)
    kind(np.ones((4, 4, 4), np.float32), np.eye(4)).to_filename(path)
    assert [name for name, _ in nifti_volumes(path)] == [stem]


def test_files_of_another_format_are_to_be_converted(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(99))
    with pytest.raises(InputError, match="DICOM with dcm2niix"):
        list(nifti_volumes(tmp_path / "a.dcm"))


@given(name=st.sampled_from(["._a.nii.gz", ".a.nii", ".DS_Store"]))
def test_hidden_files_are_skipped(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("images")
    (folder / name).write_bytes(b"of the file system")
    save(folder / "a.NII", np.ones((4, 4, 4), np.float32))
    assert [name for name, _ in nifti_volumes(folder)] == ["a"]


@given(name=st.sampled_from(["b.nii", "b.nii.gz", "b.NII"]))
def test_folders_with_the_name_of_a_file_are_named(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("images")
    save(folder / "a.nii", np.ones((4, 4, 4), np.float32))
    (folder / name).mkdir()
    with pytest.raises(InputError, match=f"{name} is a folder with the name of a file"):
        list(nifti_volumes(folder))


UNUSABLE = {
    "negative": (-np.ones((4, 4, 4), np.float32), "not magnitudes"),
    "NaN": (np.full((4, 4, 4), np.nan, np.float32), "not magnitudes"),
    "zero": (np.zeros((4, 4, 4), np.float32), "not magnitudes"),
    "complex": (np.ones((4, 4, 4), np.complex64), "complex64 of shape"),
    "one slice": (np.ones((4, 4), np.float32), r"shape \(4, 4\)"),
    "too large": (np.full((4, 4, 4), 1e39), "not finite.* in single precision"),
    "too small": (np.full((4, 4, 4), 1e-60), "zero everywhere.* in single precision"),
}


@pytest.mark.parametrize(("voxels", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_voxels_that_are_no_magnitudes_are_refused(tmp_path, voxels, message):
    save(tmp_path / "a.nii", voxels)
    with pytest.raises(InputError, match=rf"a\.nii holds .*{message}"):
        list(nifti_volumes(tmp_path))


def test_a_surface_has_no_voxels(tmp_path):
    points = nibabel.gifti.GiftiDataArray(np.zeros((4, 3), np.float32))
    nibabel.GiftiImage(darrays=[points]).to_filename(tmp_path / "a.gii")
    with pytest.raises(InputError, match=r"a\.gii cannot be read as NIfTI"):
        list(nifti_volumes(tmp_path / "a.gii"))


@pytest.mark.parametrize(
    "rows",
    [b"\0" * 48, b"\xff" * 48, np.eye(4, dtype="<f4")[:3].tobytes()[:-4] + INFINITE],
    ids=["zero", "NaN", "infinite"],
)
def test_a_header_that_puts_all_voxels_in_one_place_is_refused(tmp_path, rows):
    save(tmp_path / "a.nii", np.ones((4, 4, 4), np.float32))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = rows  # of the affine
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii does not say where its voxels are"):
        list(nifti_volumes(tmp_path))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named(tmp_path, name, share):
    path = tmp_path / name
    save(path, np.random.default_rng(0).random((9, 9, 9)).astype(np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"{name} cannot be read as NIfTI"):
        list(nifti_volumes(path))


def test_what_is_not_there_or_ambiguous_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.nii, \.nii\.gz files"):
        list(nifti_volumes(tmp_path))
    with pytest.raises(InputError, match=r"missing\.nii does not exist"):
        list(nifti_volumes(tmp_path / "missing.nii"))
    for name in ("a.nii", "a.nii.gz"):
        save(tmp_path / name, np.ones((4, 4, 4), np.float32))
    with pytest.raises(InputError, match=r"a\.nii and .*a\.nii\.gz would both be a: r"):
        list(nifti_volumes(tmp_path))


@given(st.data())
def test_axes_that_qform_and_sform_contradict(tmp_path_factory, data):
    """The sform alone decided, silently, which side of a head is up."""
    forms, codes = [], []
    for _ in range(2):
        order = data.draw(st.permutations(range(3)))
        signs = data.draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
        forms.append(np.eye(4)[[*order, 3]] * [*signs, 1])
        codes.append(data.draw(st.integers(0, 2)))
    image = nibabel.Nifti1Image(np.ones((3, 4, 5), np.float32), None)
    image.set_qform(forms[0], codes[0])
    image.set_sform(forms[1], codes[1])
    path = tmp_path_factory.mktemp("nifti") / "a.nii"
    image.to_filename(path)
    if all(codes) and not np.array_equal(*forms):
        with pytest.raises(InputError, match=r"a.nii has axes .* by its qform, but "):
            list(nifti_volumes(path))
        return
    assert len(list(nifti_volumes(path))) == 1
