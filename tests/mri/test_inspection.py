"""The walk through a data root: what it counts, and every defect that it names."""

import h5py
import numpy as np
import pytest

from mri_example.cli import main
from mri_example.data.files import write_kspace
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.inspection import inspect_root
from tests.mri.signals import kspace_of

ROWS, COLS = 12, 8


def write(path, slices=2, coils=0, cols=COLS, **attributes):
    """Write a small file in the layout; without coils a single-coil one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = 1 + np.random.default_rng(0).random((slices, 6, 6), np.float32)
    target[:, 3, 3] = 2
    kspace = kspace_of(target, ROWS, cols, coils)
    write_kspace(path, kspace, target, header(cols), {"acquisition": "T2"} | attributes)
    return path


def header(cols):
    return Header((ROWS, cols, 1), (6, 6, 1), center=cols // 2, maximum=cols - 1)


def change(path, **datasets):
    """Replace data sets; `None` removes one."""
    with h5py.File(path, "r+") as file:
        for name, value in datasets.items():
            file.pop(name, None)
            if value is not None:
                file[name] = value


@pytest.fixture
def root(tmp_path):
    """Return a data root without defects, of files of several kinds."""
    write(tmp_path / "singlecoil_train/a.h5", 3)
    write(tmp_path / "singlecoil_train/b.h5", 2, cols=9, acquisition="T1")
    write(tmp_path / "multicoil_val/a.h5", 4, coils=3)
    write(tmp_path / "multicoil_val/b.h5", 1, coils=5)
    change(tmp_path / "multicoil_val/b.h5", ismrmrd_header=None)
    test = write(tmp_path / "multicoil_test/c.h5", 2, coils=3)
    mask = (np.arange(COLS) % 2).astype(np.float32)
    with h5py.File(test) as file:
        kspace = file["kspace"][()] * mask
    change(test, mask=mask, kspace=kspace, reconstruction_rss=None)
    (tmp_path / "notes").mkdir()
    (tmp_path / "multicoil_val/.half.partial").touch()
    return tmp_path


def reports(root, **options):
    return {r.name: r for r in inspect_root(root, **options)}


def test_each_folder_is_counted(root):
    found = reports(root)
    assert {name: (r.volumes, r.slices) for name, r in found.items()} == {
        "singlecoil_train": (2, 5),
        "multicoil_val": (2, 5),
        "multicoil_test": (1, 2),
    }
    assert found["singlecoil_train"].counts == {
        "rows x columns": {"12 x 8": 1, "12 x 9": 1},
        "coils": {"1": 2},
        "acquisition/scanner": {"T2/unknown": 1, "T1/unknown": 1},
        "target": {"reconstruction_esc": 2},
        "mask": {"none": 2},
        "header": {"ISMRMRD": 2},
    }
    several = found["multicoil_val"].counts
    assert several["coils"] == {"3": 1, "5": 1}
    assert several["header"] == {"ISMRMRD": 1, "none": 1}
    test = found["multicoil_test"].counts
    assert (test["target"], test["mask"]) == ({"none": 1}, {"of its own": 1})
    assert not any(r.defects for r in found.values())


def test_the_command_prints_counts_and_succeeds(root, capsys):
    assert main(["check", "--data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "singlecoil_train: 2 volumes, 5 slices\n" in out
    assert "  rows x columns: 12 x 8 (1), 12 x 9 (1)\n" in out
    assert "multicoil_val: 2 volumes, 5 slices\n" in out
    assert "  coils: 3 (1), 5 (1)\n" in out
    assert out.count("  defects: none\n") == 3


def nan(path):
    with h5py.File(path) as file:
        kspace = file["kspace"][()]
    kspace[-1, 3, 4] = np.nan
    change(path, kspace=kspace)


def attribute(**values):
    def set_attributes(path):
        with h5py.File(path, "r+") as file:
            file.attrs.update(values)

    return set_attributes


DEEP = {
    "NaN": (nan, "k-space of slice 2 holds NaN"),
    "target": (
        lambda path: change(path, reconstruction_esc=np.full((3, 6, 6), np.inf)),
        "reconstruction_esc holds NaN or infinite",
    ),
    "maximum": (attribute(max=3.0), "'max' is 3, but that of reconstruction_esc is 2:"),
    "no number": (attribute(max="big"), "'max' is 'big', but must be a number"),
    "norm": (attribute(norm=1.0), "'norm' is 1, but that of reconstruction_esc is 1"),
}
SHALLOW = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        "cannot be read as HDF5",
    ),
    "text": (lambda path: path.write_text("a,b\n" * 99), "cannot be read as HDF5"),
    "no kspace": (lambda path: change(path, kspace=None), "no data set 'kspace'"),
    "magnitudes": (
        lambda path: change(path, kspace=np.ones((3, 4, 4))),
        "must be complex",
    ),
    "slices of target": (
        lambda path: change(path, reconstruction_esc=np.ones((2, 6, 6))),
        "all 3 slices",
    ),
    "length of mask": (lambda path: change(path, mask=np.ones(5)), r"shape \(5,\)"),
    "header": (lambda path: change(path, ismrmrd_header=b"<no"), "header cannot be re"),
    "header of another file": (
        lambda path: change(path, ismrmrd_header=header(COLS + 2).xml()),
        "header speaks of 10 encoded columns, but k-space has 8",
    ),
    "mask in training": (
        lambda path: change(path, mask=np.ones(COLS)),
        "brings a mask.*move it from singlecoil_train",
    ),
    "coils": (
        lambda path: write(path, coils=2),
        r"\(2, 2, 12, 8\), which does not belong into singlecoil_train",
    ),
}
DEFECTS = DEEP | SHALLOW


@pytest.mark.parametrize(("damage", "message"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_defective_file_is_named_with_the_reason(root, capsys, damage, message):
    damage(root / "singlecoil_train/a.h5")
    report = reports(root)["singlecoil_train"]
    assert report.volumes == 2
    assert len(report.defects) == 1
    with pytest.raises(InputError, match=rf"singlecoil_train/a\.h5.*{message}"):
        raise InputError(report.defects[0])
    assert main(["check", "--data", str(root)]) == 2
    out, err = capsys.readouterr()
    assert f"  defects: 1\n    {report.defects[0]}\n" in out
    assert "has 1 defects: repair or remove what is named above" in err


def test_a_volume_to_validate_on_needs_its_target(root):
    change(root / "multicoil_val/a.h5", reconstruction_rss=None)
    (defect,) = reports(root)["multicoil_val"].defects
    assert "multicoil_val/a.h5: it has no target volume" in defect
    assert not reports(root)["multicoil_test"].defects


@pytest.mark.parametrize(("damage", "quick"), [(nan, []), (nan, ["--quick=true"])])
def test_a_quick_check_reads_one_slice(root, damage, quick):
    damage(root / "singlecoil_train/a.h5")
    assert main(["check", "--data", str(root), *quick]) == (0 if quick else 2)


def test_a_mask_that_belongs_to_another_file_is_a_defect(root):
    mask = (np.arange(COLS) % 3 == 0).astype(np.float32)
    change(root / "multicoil_test/c.h5", mask=mask)
    (defect,) = reports(root)["multicoil_test"].defects
    assert "k-space of slice 0 is not zero where the mask is" in defect


def test_a_header_of_another_file_hides_no_other_defect(root):
    for name in ("singlecoil_train/a.h5", "multicoil_test/c.h5"):
        change(root / name, ismrmrd_header=header(COLS + 2).xml())
    nan(root / "singlecoil_train/a.h5")
    found = reports(root)
    assert len(found["singlecoil_train"].defects) == 2
    assert not found["multicoil_test"].defects  # its own mask says what was measured


@pytest.mark.parametrize("twin", ["singlecoil_train/a.hdf5", "singlecoil_test/a.h5"])
def test_a_volume_is_there_only_once(root, twin):
    write(root / twin)
    defects = [d for r in reports(root).values() for d in r.defects]
    paths = (root / "singlecoil_train/a.h5", root / twin)
    assert sorted(defects) == sorted(
        f"{one} has the name of {other}: rename one"
        for one, other in (paths, paths[::-1])
    )


def test_every_defect_of_a_root_is_counted(root, capsys):
    for name in ("a.h5", "b.h5"):
        nan(root / f"singlecoil_train/{name}")
    (root / "singlecoil_val").mkdir()
    assert main(["check", "--data", str(root)]) == 2
    out, err = capsys.readouterr()
    assert f"{root / 'singlecoil_val'} holds no .h5, .hdf5 files" in out
    assert "has 3 defects" in err


def test_folders_of_other_names_are_not_passed_over(root):
    write(root / "multicoil_test_v2/d.h5", 3, coils=2)
    assert [(n, r.slices) for n, r in reports(root).items()][-1] == (
        "multicoil_test_v2",
        3,
    )


def test_what_is_no_data_root_is_named(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "missing"):
        assert main(["check", "--data", str(path)]) == 2
        assert "has none of singlecoil_train, " in capsys.readouterr().err
