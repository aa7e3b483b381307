"""ISMRMRD raw files, written by the reference package, in the fastMRI layout."""

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ismrmrd import xsd

from mri_example.cli import main
from mri_example.data import KSpaceFile, SliceDataset, convert_raw
from mri_example.data.checks import findings
from mri_example.errors import InputError
from mri_example.masks import MaskFunction
from mri_example.transforms import center_crop, ifft2c

SLICES, COILS, ROWS, COLS = 3, 2, 16, 12
RECON = (8, 8)
FLAGS = {
    "noise": ismrmrd.ACQ_IS_NOISE_MEASUREMENT,
    "calibration": ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,
    "navigator": ismrmrd.ACQ_IS_NAVIGATION_DATA,
    "phase correction": ismrmrd.ACQ_IS_PHASECORR_DATA,
    "dummy": ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
}


def random_kspace(slices=SLICES, coils=COILS, rows=ROWS, cols=COLS) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (slices, coils, rows, cols)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def header(encoded=(ROWS, COLS), center=COLS // 2, maximum=COLS - 1, **changes) -> str:
    """Return a header, by the classes of the reference package."""

    def space(size):
        view = xsd.fieldOfViewMm(x=200, y=200, z=5)
        matrix = xsd.matrixSizeType(x=size[0], y=size[1], z=1)
        return xsd.encodingSpaceType(matrixSize=matrix, fieldOfView_mm=view)

    limit = xsd.limitType(minimum=0, maximum=maximum, center=center)
    encoding = xsd.encodingType(
        encodedSpace=space(encoded),
        reconSpace=space(RECON),
        encodingLimits=xsd.encodingLimitsType(kspace_encoding_step_1=limit),
        trajectory=changes.get("trajectory", xsd.trajectoryType.CARTESIAN),
    )
    frequency = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=128_000_000)
    document = xsd.ismrmrdHeader(
        experimentalConditions=frequency,
        measurementInformation=xsd.measurementInformationType(
            patientPosition="HFS", protocolName="T2 TSE"
        ),
        subjectInformation=xsd.subjectInformationType(patientID="p7"),
        encoding=[encoding] * changes.get("encodings", 1),
    )
    return xsd.ToXML(document)


def line(samples, step, z=0, flags=(), **values) -> ismrmrd.Acquisition:
    counters = {"kspace_encode_step_1": step, "slice": z}
    names = [name for name, _ in ismrmrd.EncodingCounters._fields_]
    counters |= {name: values.pop(name) for name in names if name in values}
    values = {"center_sample": samples.shape[-1] // 2} | values
    acquisition = ismrmrd.Acquisition.from_array(samples, **values)
    for name, value in counters.items():
        setattr(acquisition.idx, name, value)
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def lines(kspace, steps=None, first=0, **values) -> list[ismrmrd.Acquisition]:
    """Return the lines of a volume, of which `first` is the first column encoded."""
    steps = range(kspace.shape[-1] - first) if steps is None else steps
    return [
        line(kspace[z, ..., first + step].copy(), step, z, **values)
        for step in steps
        for z in range(len(kspace))
    ]


def write(path, acquisitions, xml=None, shuffle=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    if shuffle:
        np.random.default_rng(1).shuffle(acquisitions)
    with ismrmrd.File(path, "w") as file:
        dataset = file["dataset"]
        dataset.acquisitions = acquisitions
        dataset.header = xsd.CreateFromDocument(xml or header())
    return path


def converted(path) -> KSpaceFile:
    (out,) = convert_raw(path, path.parent / "out")
    return KSpaceFile.inspect(out)


def whole(file: KSpaceFile) -> np.ndarray:
    return np.stack([file.kspace(i) for i in range(file.slices)])


def root_sum_of_squares(kspace: np.ndarray) -> np.ndarray:
    images = ifft2c(torch.from_numpy(kspace)).abs().square().sum(1).sqrt()
    return center_crop(images, RECON).numpy()


def test_a_fully_sampled_scan_comes_with_a_target(tmp_path):
    kspace = random_kspace()
    file = converted(write(tmp_path / "scan.h5", lines(kspace)))
    np.testing.assert_array_equal(whole(file), kspace)
    assert (file.target, file.mask) == ("reconstruction_rss", None)
    assert (file.crop, file.padding) == (RECON, (0, COLS))
    assert not findings(file, range(SLICES))
    target = root_sum_of_squares(kspace)
    np.testing.assert_allclose(file.target_volume(), target, rtol=1e-5)
    assert file.attributes["max"] == pytest.approx(target.max())
    assert file.attributes["norm"] == pytest.approx(np.linalg.norm(target))
    assert file.attributes["acquisition"] == "T2 TSE"
    assert file.attributes["patient_id"] == "p7"


def test_the_whole_header_is_kept(tmp_path):
    path = write(tmp_path / "scan.h5", lines(random_kspace()))
    file = converted(path)
    with h5py.File(path) as raw, h5py.File(file.path) as out:
        assert out["ismrmrd_header"][()] == raw["dataset/xml"][0]


def test_one_coil_makes_a_single_coil_file(tmp_path):
    kspace = random_kspace(coils=1)
    file = converted(write(tmp_path / "scan.mrd", lines(kspace)))
    assert file.path.name == "scan.h5"
    assert file.target == "reconstruction_esc"
    np.testing.assert_array_equal(whole(file), kspace[:, 0])
    np.testing.assert_allclose(
        file.target_volume(), root_sum_of_squares(kspace), rtol=1e-5
    )


def test_what_is_no_line_of_the_image_is_left_out(tmp_path):
    kspace = random_kspace()
    wrong = np.full((COILS + 3, 2 * ROWS), 7, np.complex64)
    others = [line(wrong, 0, flags=[flag]) for flag in FLAGS.values()]
    file = converted(write(tmp_path / "scan.h5", others + lines(kspace)))
    np.testing.assert_array_equal(whole(file), kspace)


def test_calibration_lines_that_are_of_the_image_are_kept(tmp_path):
    kspace = random_kspace()
    both = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
    flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, both]
    middle, outside = {5, 6, 7}, set(range(COLS)) - {5, 6, 7}
    acquisitions = lines(kspace, middle, flags=flags) + lines(kspace, outside)
    file = converted(write(tmp_path / "scan.h5", acquisitions))
    np.testing.assert_array_equal(whole(file), kspace)


def test_averages_are_averaged(tmp_path):
    one, other = random_kspace(), random_kspace()[::-1].copy()
    acquisitions = lines(one, average=0) + lines(other, average=1)
    file = converted(write(tmp_path / "scan.h5", acquisitions))
    np.testing.assert_allclose(whole(file), (one + other) / 2, rtol=1e-6)


@given(
    center=st.integers(0, 6),
    rows=st.integers(8, 17),
    cols=st.integers(8, 17),
)
def test_partial_coverage_is_padded_as_the_header_says(
    tmp_path_factory, center, rows, cols
):
    first = cols // 2 - min(center, cols // 2)
    encoded = cols - first
    kspace = random_kspace(rows=rows, cols=cols)
    kspace[..., :first] = 0
    xml = header((rows, cols), center=cols // 2 - first, maximum=encoded - 1)
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    file = converted(write(path, lines(kspace, first=first), xml))
    assert file.padding == (first, cols)
    assert (file.target, file.mask) == ("reconstruction_rss", None)
    np.testing.assert_array_equal(whole(file), kspace)


def test_a_partial_echo_is_placed_by_its_center(tmp_path):
    kspace = random_kspace()
    kspace[:, :, :5] = 0
    acquisitions = lines(kspace[:, :, 3:], center_sample=ROWS // 2 - 3, discard_pre=2)
    file = converted(write(tmp_path / "scan.h5", acquisitions))
    np.testing.assert_array_equal(whole(file), kspace)


def test_an_undersampled_scan_comes_with_its_mask(tmp_path):
    kspace = random_kspace()
    measured = [0, 4, 5, 6, 7, 10]
    file = converted(write(tmp_path / "scan.h5", lines(kspace, measured)))
    mask = np.isin(np.arange(COLS), measured)
    np.testing.assert_array_equal(file.mask, mask)
    np.testing.assert_array_equal(whole(file), kspace * mask)
    bits = whole(file)[..., ~mask].copy().view(np.float32)
    assert not np.signbit(bits).any()
    assert file.target is None
    assert file.attributes["acceleration"] == 2
    assert file.attributes["num_low_frequency"] == 4
    samples = list(SliceDataset(file.path.parent, MaskFunction("random", [0.1], [4])))
    assert all(np.array_equal(s.mask.flatten(), mask) for s in samples)


def test_an_acceleration_is_no_integer(tmp_path):
    measured = [0, 4, 5, 6, 7, 8, 10]
    file = converted(write(tmp_path / "a.h5", lines(random_kspace(), measured)))
    assert file.attributes["acceleration"] == 1.7


def test_half_a_scan_is_undersampled_within_what_it_encodes(tmp_path):
    kspace = random_kspace()
    xml = header(center=2, maximum=7)
    acquisitions = lines(kspace, [0, 2, 4, 6], first=4)
    file = converted(write(tmp_path / "scan.h5", acquisitions, xml))
    np.testing.assert_array_equal(np.flatnonzero(file.mask), [4, 6, 8, 10])
    assert file.attributes["acceleration"] == 2
    assert file.padding == (4, 12)


def test_a_folder_is_converted_and_what_is_there_is_kept(tmp_path):
    source = tmp_path / "raw"
    for name in ("b.h5", "a.ismrmrd"):
        write(source / name, lines(random_kspace()))
    out = tmp_path / "multicoil_train"
    assert [p.name for p in convert_raw(source, out)] == ["a.h5", "b.h5"]
    (out / "a.h5").unlink()
    assert [p.name for p in convert_raw(source, out)] == ["a.h5"]
    assert main(["convert", f"--source={source}", f"--output={out}"]) == 0
    assert main(["check", f"--data={tmp_path}"]) == 0


def test_names_that_would_be_the_same_are_refused(tmp_path):
    for name in ("a.h5", "a.mrd"):
        write(tmp_path / f"raw/{name}", lines(random_kspace()))
    with pytest.raises(InputError, match=r"a\.h5 and .*a\.mrd would both become a\.h5"):
        convert_raw(tmp_path / "raw", tmp_path / "out")


def test_the_output_is_not_the_source(tmp_path):
    path = write(tmp_path / "a.h5", lines(random_kspace()))
    with pytest.raises(InputError, match="choose another folder"):
        convert_raw(path, tmp_path)
