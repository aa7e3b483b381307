"""Tables by acquisition and acceleration, and that nothing is left out of them."""

import json

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_example.cli import main
from mri_example.data.files import write_reconstruction
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.metrics import METRICS, Scores, score, summarize
from tests.mri.signals import kspace_of

SIZE, SLICES = 9, 2
CONDITIONS = {  # of the volumes, 8x told by the file with the target
    "a.h5": ("AXT2", 4.0),
    "b.h5": ("AXT2", 4.0),
    "c.h5": ("AXFLAIR", 4.0),
    "d.h5": ("AXT2", b"8"),
    "e.h5": (None, None),
}


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((SLICES, SIZE, SIZE), dtype=np.float32)


def write_target(path, acquisition=None, acceleration=None, target=True) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        magnitudes = images(len(str(path)) + ord(path.stem[0]))
        file["kspace"] = kspace_of(magnitudes, SIZE, SIZE)
        if target:
            file["reconstruction_esc"] = magnitudes
        if acquisition is not None:
            file.attrs["acquisition"] = acquisition
        if acceleration is not None:
            file.attrs["acceleration"] = acceleration


@pytest.fixture
def folders(tmp_path):
    """Return a folder of targets and one of reconstructions."""
    targets, out = tmp_path / "targets", tmp_path / "out"
    for i, (name, (acquisition, acceleration)) in enumerate(CONDITIONS.items()):
        told = isinstance(acceleration, bytes)
        write_target(targets / name, acquisition, acceleration if told else None)
        own = {} if told or acceleration is None else {"acceleration": acceleration}
        write_reconstruction(out / name, images(100 + i), own)
    return targets, out


def command(folders, *options) -> int:
    targets, out = folders
    paths = [f"--targets={targets}", f"--reconstructions={out}"]
    return main(["evaluate", *paths, *map(str, options)])


def truth(folders, *names) -> list[Scores]:
    targets, out = folders
    pairs = []
    for name in names:
        with h5py.File(targets / name) as t, h5py.File(out / name) as r:
            pairs.append((t["reconstruction_esc"][()], r["reconstruction"][()]))
    return [score(*pair) for pair in pairs]


def test_volumes_are_grouped_by_acquisition_and_acceleration(folders):
    evaluation = evaluate(*folders)
    assert list(evaluation.volumes) == list(CONDITIONS)
    groups = {str(c): summary for c, summary in evaluation.groups.items()}
    groups["all"] = evaluation.summary
    members = {
        "AXFLAIR, 4x": ["c.h5"],
        "AXT2, 4x": ["a.h5", "b.h5"],
        "AXT2, 8x": ["d.h5"],
        "unknown, unknown": ["e.h5"],
        "all": list(CONDITIONS),
    }
    assert list(groups) == list(members)
    for name, files in members.items():
        expected = truth(folders, *files)
        assert groups[name] == summarize(expected)
        assert (groups[name].interval is None) == (len(files) == 1)


def test_json_holds_all_numbers(folders, tmp_path):
    path = tmp_path / "scores.json"
    assert command(folders, f"--output={path}") == 0
    found, evaluation = json.loads(path.read_text()), evaluate(*folders)
    assert found["count"] == len(found["volumes"]) == len(CONDITIONS)
    assert found["volumes"]["d.h5"]["acceleration"] == "8"
    whole = evaluation.summary
    for metric in METRICS:
        assert found["mean"][metric] == getattr(whole.mean, metric)
        spread = found["two_standard_deviations"][metric]
        assert spread == getattr(whole.two_standard_deviations, metric)
        low, high = (found["interval"][side][metric] for side in ("low", "high"))
        assert low < found["mean"][metric] < high
    counts = [(g["acquisition"], g["count"]) for g in found["groups"]]
    assert counts == [("AXFLAIR", 1), ("AXT2", 2), ("AXT2", 1), ("unknown", 1)]
    for key in ("interval", "two_standard_deviations"):
        alone = [group[key] is None for group in found["groups"]]
        assert alone == [True, False, True, True]
    assert found["failures"] == {}


def test_the_printed_table(folders, capsys):
    assert command(folders) == 0
    out = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert set(CONDITIONS) < set(lines)
    assert "(one volume)" in lines["AXFLAIR, 4x"]
    mean = evaluate(*folders).summary.mean
    for text in ("all", f"{mean.psnr:.3f} +-", f"{mean.ssim:.4f} +-", "["):
        assert text in lines["all"]


def missing_target(targets, out):
    write_target(targets / "b.h5", target=False)
    return "b.h5"


def missing_reconstruction(targets, out):
    (out / "b.h5").unlink()
    return "b.h5"


def unexpected_reconstruction(targets, out):
    write_reconstruction(out / "z.h5", images(0))
    return "z.h5"


def duplicate_target(targets, out):
    write_target(targets / "b.hdf5")
    write_reconstruction(out / "b.hdf5", images(0))
    return "b.h5", "b.hdf5"


def other_slices(targets, out):
    write_reconstruction(out / "b.h5", images(0)[:1])
    return "b.h5"


def damaged_reconstruction(targets, out):
    (out / "b.h5").write_bytes(b"nothing")
    return "b.h5"


def no_reconstruction_inside(targets, out):
    write_target(out / "b.h5")
    return "b.h5"


def not_a_number(targets, out):
    write_reconstruction(out / "b.h5", images(0) * np.nan)
    return "b.h5"


DEFECTS = {
    missing_target: "b.h5 has no target",
    missing_reconstruction: r"lacks b.h5 (1 missing of 5)",
    unexpected_reconstruction: "has no z.h5, but there is a reconstruction of it",
    duplicate_target: "holds b.h5 with another ending too",
    other_slices: "b.h5 cannot be evaluated: the target has 2 slices",
    damaged_reconstruction: "b.h5 cannot be read as HDF5",
    no_reconstruction_inside: "b.h5 holds no data set 'reconstruction'",
    not_a_number: "b.h5 cannot be evaluated: the reconstruction is not finite",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.__name__)
def test_volumes_that_fail_are_named_and_skipped_only_if_asked(
    folders, tmp_path, capsys, defect
):
    names = defect(*folders)
    names = (names,) if isinstance(names, str) else names
    assert command(folders) == 2
    printed = capsys.readouterr()
    assert DEFECTS[defect] in printed.err
    assert "Traceback" not in printed.err
    path = tmp_path / "scores.json"
    assert command(folders, "--skip_failures=true", f"--output={path}") == 0
    out, found = capsys.readouterr().out, json.loads(path.read_text())
    assert tuple(found["failures"]) == names
    assert set(found["volumes"]) == set(CONDITIONS) - set(names)
    listed = out[out.index("failed and not counted: ") :]
    assert all(f"{name}: " in listed for name in names)


def test_every_failure_counts(folders):
    for name in ("a.h5", "b.h5"):
        (folders[1] / name).unlink()
    write_reconstruction(folders[1] / "z.h5", images(0))
    with pytest.raises(InputError, match=r"2 missing of 5.*; 3 volumes fail in all"):
        evaluate(*folders)


def test_nothing_left_to_count_is_an_error(folders, tmp_path, capsys):
    nowhere = (folders[0], tmp_path / "nowhere")
    assert command(nowhere, "--skip_failures=true") == 2
    assert "lacks a.h5 (5 missing of 5)" in capsys.readouterr().err


def test_a_perfect_reconstruction_is_strict_json(folders, tmp_path):
    for name in CONDITIONS:
        with h5py.File(folders[0] / name) as target:
            write_reconstruction(folders[1] / name, target["reconstruction_esc"][()])
    path = tmp_path / "scores.json"
    assert command(folders, f"--output={path}") == 0

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found["volumes"]["a.h5"]["psnr"] is None
    assert found["volumes"]["a.h5"]["nmse"] == 0


def test_a_file_of_unknown_ending_is_refused_at_once(folders, tmp_path, capsys):
    assert command(folders, f"--output={tmp_path / 'scores.csv'}") == 2
    assert "must end in .json" in capsys.readouterr().err


@given(
    empty=st.lists(st.booleans(), min_size=2, max_size=8).filter(lambda e: not all(e)),
    size=st.tuples(st.integers(8, 12), st.just(8)),
    larger=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_the_page_shows_the_worst_and_best_slices_of_any_size_and_none_of_nothing(
    empty, size, larger, tmp_path_factory
):
    folder, random = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    target = random.random((len(empty), *size), dtype=np.float32)
    target[empty] = 0
    (folder / "in").mkdir()
    with h5py.File(folder / "in/a.h5", "w") as file:
        file["kspace"] = kspace_of(target, size[0], size[1])
        file["reconstruction_esc"] = target
    shape = np.add(size, larger)
    estimate = random.random((len(empty), *shape), dtype=np.float32)
    columns = {"columns": np.ones(size[1], bool)}
    write_reconstruction(folder / "out/a.h5", estimate, columns)
    assert command((folder / "in", folder / "out")) == 0
    page = (folder / "out.html").read_text()
    filled = {i for i, nothing in enumerate(empty) if not nothing}
    found = {i for i in range(len(empty)) if f"a.h5, slice {i}, " in page}
    assert found <= filled
    assert len(found) == min(6, len(filled))
    assert page.count("<figcaption>worst: a.h5, slice ") == min(3, len(filled))
    assert page.count("<figcaption>best: a.h5, slice ") == len(found) - min(
        3, len(filled)
    )
