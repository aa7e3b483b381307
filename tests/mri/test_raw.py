"""ISMRMRD raw files, written by the reference package, in the fastMRI layout."""

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from ismrmrd import xsd

from mri_example.cli import main
from mri_example.data.checks import findings
from mri_example.data.convert import convert_raw
from mri_example.data.dataset import SliceDataset
from mri_example.data.files import KSpaceFile
from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.transforms import center_crop, ifftc
from tests.mri.signals import logged

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
    pixel = changes.get("pixel", (2, 2))  # mm

    def space(size):
        view = xsd.fieldOfViewMm(x=size[0] * pixel[0], y=size[1] * pixel[1], z=5)
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


def placed(kspace, positions, normal=(0, 0, 1), **values):
    """Return lines of slices that say where they are, along a normal in mm."""
    directions = {"slice_dir": tuple(map(float, normal))}
    return [
        line(
            kspace[z, ..., step].copy(),
            step,
            z,
            position=tuple(positions[z] * np.array(normal, float)),
            **directions,
            **values,
        )
        for step in range(kspace.shape[-1])
        for z in range(len(kspace))
    ]


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
    images = ifftc(torch.from_numpy(kspace)).abs().square().sum(1).sqrt()
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


@given(mode=st.sampled_from(["embedded", "separate", "external", ""]))
def test_embedded_calibration_lines_are_of_the_scan(tmp_path_factory, mode):
    """GRAPPA measures them between the others; those of a scan before are others."""
    kspace, path = random_kspace(), tmp_path_factory.mktemp("raw") / "scan.h5"
    flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]
    measured, center = range(0, COLS, 2), (3, 5, 7)
    write(path, lines(kspace, measured) + lines(kspace, center, flags=flags))
    factor = "<accelerationFactor><x>2</x></accelerationFactor>"
    inner = f"{factor}<calibrationMode>{mode}</calibrationMode>" if mode else factor
    parallel = f"<parallelImaging>{inner}</parallelImaging></encoding>"
    with h5py.File(path, "r+") as raw:
        raw["dataset/xml"][0] = header().replace("</encoding>", parallel).encode()
    mask = np.isin(np.arange(COLS), [*measured, *center * (mode == "embedded")])
    file = converted(path)
    np.testing.assert_array_equal(file.mask, mask)
    np.testing.assert_array_equal(whole(file), kspace * mask)


def test_averages_are_averaged(tmp_path):
    one = random_kspace()
    other = (one + one[::-1] / 4).astype(np.complex64)
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


@given(minimum=st.integers(0, 5), steps=st.sampled_from([1, 2]), early=st.booleans())
def test_steps_below_the_minimum_were_not_encoded(
    tmp_path_factory, minimum, steps, early
):
    """Partial Fourier is a lowest step, where the center is that of all steps."""
    kspace, path = random_kspace(), tmp_path_factory.mktemp("raw") / "scan.h5"
    xml = header().replace("<minimum>0<", f"<minimum>{minimum}<")
    assume(minimum or not early)
    measured = [*range(minimum - early, COLS, steps)]
    write(path, lines(kspace, measured), xml)
    if early:
        with pytest.raises(InputError, match=f"from {minimum - 1} to .* {minimum}, 6"):
            converted(path)
        return
    file, mask = converted(path), np.isin(np.arange(COLS), measured)
    assert file.padding == (minimum, COLS)
    np.testing.assert_array_equal(whole(file), kspace * mask)
    assert (file.mask is None) == (steps == 1) == (file.target is not None)


OTHER_XML = {
    "elements": ("</encoding>", "</encoding><vendor><mode>2</mode></vendor>"),
    "dates": ("<patientID>", "<patientBirthdate>unknown</patientBirthdate><patientID>"),
    "case": (">cartesian<", ">Cartesian<"),
    "attributes": ("<encoding>", '<encoding name="first">'),
    "no unit": (">24</y>", ">NaN</y>"),
}


@pytest.mark.parametrize("kind", OTHER_XML)
def test_headers_of_other_converters_are_read_and_kept(tmp_path, kind):
    """Their elements are not all of the schema; what is needed is there."""
    old, new = OTHER_XML[kind]
    path = write(tmp_path / "scan.h5", lines(random_kspace()))
    xml = header()
    assert old in xml
    with h5py.File(path, "r+") as raw:
        raw["dataset/xml"][0] = xml.replace(old, new).encode()
    np.testing.assert_array_equal(whole(converted(path)), random_kspace())
    with h5py.File(tmp_path / "out/scan.h5") as out:
        assert new in out["ismrmrd_header"][()].decode()


@given(place=st.integers(0, 3), factor=st.sampled_from([1e-3, 0.05, 20, 1e3]))
def test_fields_of_view_of_different_units_are_refused(tmp_path_factory, place, factor):
    """One in meters would make 12,000 columns of 12, or images of one pixel."""
    document = xsd.CreateFromDocument(header())
    space, axis = divmod(place, 2)
    encoding = document.encoding[0]
    view = (encoding.encodedSpace, encoding.reconSpace)[space].fieldOfView_mm
    name = "xy"[axis]
    setattr(view, name, factor * getattr(view, name))
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write(path, lines(random_kspace()), xsd.ToXML(document))
    with pytest.raises(
        InputError, match=r"scan\.h5: 16 x 12 encoded pixels are .* mm,"
    ):
        converted(path)


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
    samples = list(SliceDataset(file.path.parent, Masks("random", [0.1], [4])))
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


def test_what_was_converted_from_another_file_is_not_kept_for_it(tmp_path):
    """Raw files of many patients may have one name."""
    out = tmp_path / "out"
    for patient, kspace in enumerate((random_kspace(), 2 * random_kspace())):
        write(tmp_path / f"{patient}/scan.h5", lines(kspace))
    assert len(convert_raw(tmp_path / "0/scan.h5", out)) == 1
    content = (out / "scan.h5").read_bytes()
    with pytest.raises(InputError, match=r"out/scan\.h5 exists and was not converted"):
        convert_raw(tmp_path / "1/scan.h5", out)
    assert convert_raw(tmp_path / "0", out) == []
    assert (out / "scan.h5").read_bytes() == content


def test_names_that_would_be_the_same_are_refused(tmp_path):
    for name in ("a.h5", "a.mrd"):
        write(tmp_path / f"raw/{name}", lines(random_kspace()))
    with pytest.raises(InputError, match=r"a\.h5 and .*a\.mrd would both be a\.h5"):
        convert_raw(tmp_path / "raw", tmp_path / "out")


def test_the_output_is_not_the_source(tmp_path):
    path = write(tmp_path / "a.h5", lines(random_kspace()))
    with pytest.raises(InputError, match="choose another folder"):
        convert_raw(path, tmp_path)


normals = st.sampled_from([(0, 0, 1), (0, 0, -1), (1, 0, 0), (0, 0.6, 0.8)])


@given(order=st.permutations(range(5)), normal=normals, gap=st.floats(1, 9))
def test_slices_are_in_the_order_of_their_positions(
    tmp_path_factory, order, normal, gap
):
    """Interleaved scans count the slices as they are measured."""
    kspace, path = random_kspace(5), tmp_path_factory.mktemp("raw") / "scan.h5"
    positions = gap * (np.array(order) - 2)
    file = converted(write(path, placed(kspace, positions, normal)))
    np.testing.assert_array_equal(whole(file), kspace[np.argsort(order)])


@given(turned=st.sampled_from([(1, 0, 0), (0, 0.1, 0.995)]), first=st.integers(1, 3))
def test_two_orientations_are_refused(tmp_path_factory, turned, first):
    kspace, path = random_kspace(4), tmp_path_factory.mktemp("raw") / "scan.h5"
    acquisitions = placed(kspace, np.arange(4.0))
    for acquisition in acquisitions:
        if acquisition.idx.slice >= first:
            acquisition.slice_dir[:] = turned
    with pytest.raises(InputError, match="several orientations, slice_dir"):
        converted(write(path, acquisitions))


@given(same=st.integers(0, 2), offset=st.floats(-50, 50))
def test_two_slices_at_one_position_are_refused(tmp_path_factory, same, offset):
    kspace, path = random_kspace(4), tmp_path_factory.mktemp("raw") / "scan.h5"
    positions = np.arange(4.0) + offset
    positions[same + 1] = positions[same]
    with pytest.raises(InputError, match=f"slices {same} and {same + 1} at one posit"):
        converted(write(path, placed(kspace, positions), shuffle=False))


@given(
    rows=st.sampled_from([16, 20, 32]),
    resolution=st.floats(0.5, 0.95),
    oversampling=st.integers(1, 2),
)
def test_the_field_of_view_is_kept_and_pixels_are_square(
    tmp_path_factory, rows, resolution, oversampling
):
    """At a phase resolution of 75 %, 96 columns show the 128 mm of 128 rows."""
    cols = round(rows * resolution)
    kspace = random_kspace(rows=oversampling * rows, cols=cols)
    document = xsd.CreateFromDocument(header((oversampling * rows, cols)))
    space = document.encoding[0]
    limit = space.encodingLimits.kspace_encoding_step_1
    limit.center, limit.maximum = cols // 2, cols - 1
    view = xsd.fieldOfViewMm(x=oversampling * rows, y=rows, z=5)
    space.encodedSpace.fieldOfView_mm = view
    space.reconSpace.fieldOfView_mm = xsd.fieldOfViewMm(x=rows, y=rows, z=5)
    space.reconSpace.matrixSize = xsd.matrixSizeType(x=rows, y=rows, z=1)
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    file = converted(write(path, lines(kspace), xsd.ToXML(document)))
    wide = rows if abs(rows - cols) > 0.02 * cols else cols
    left = wide // 2 - cols // 2
    assert file.shape == (SLICES, COILS, oversampling * rows, wide)
    assert file.crop == (rows, rows)
    assert file.padding == (left, left + cols)
    padded = np.zeros(file.shape, np.complex64)
    padded[..., left : left + cols] = kspace
    np.testing.assert_array_equal(whole(file), padded)
    images = ifftc(torch.from_numpy(padded)).abs().square().sum(1).sqrt()
    expected = center_crop(images, (rows, rows)).numpy()
    np.testing.assert_allclose(file.target_volume(), expected, rtol=1e-4, atol=1e-6)


@given(angle=st.floats(0, np.pi), count=st.integers(2, 3))
def test_averages_that_cancel_are_refused(tmp_path_factory, angle, count):
    """Two that are 2.6 rad apart leave .27 of their magnitude."""
    kspace, path = random_kspace(), tmp_path_factory.mktemp("raw") / "scan.h5"
    turns = np.exp(1j * angle * np.arange(count)).astype(np.complex64)
    acquisitions = [
        a for i, t in enumerate(turns) for a in lines(t * kspace, average=i)
    ]
    left = abs(turns.mean())
    write(path, acquisitions)
    if left < 0.79:
        with pytest.raises(InputError, match="averages that cancel") as caught:
            converted(path)
        said = float(str(caught.value).split("cancel, ")[1].split()[0])
        assert said == pytest.approx(left, abs=0.01)
    elif left > 0.81:
        mean = turns.mean() * kspace
        np.testing.assert_allclose(whole(converted(path)), mean, atol=1e-5)


@given(
    place=st.tuples(st.integers(0, 4), st.integers(0, COLS - 1)), n=st.integers(2, 5)
)
def test_averages_of_one_line_that_cancel_are_refused(tmp_path_factory, place, n):
    """However many slices are right: the mean over all of them hides one line."""
    kspace, path = random_kspace(5), tmp_path_factory.mktemp("raw") / "scan.h5"
    other, (z, column) = kspace.copy(), place
    other[z, ..., column] *= -1
    acquisitions = [a for i in range(n) for a in lines(kspace, average=i)]
    acquisitions += [a for i in range(n, 2 * n) for a in lines(other, average=i)]
    text = f"averages that cancel, 0.00 of their magnitude is left in slice {z}"
    with pytest.raises(InputError, match=text):
        converted(write(path, acquisitions))


@given(data=st.data(), rows=st.integers(8, 40), discard=st.integers(0, 2))
def test_a_readout_without_its_oversampling_is_refused(
    tmp_path_factory, data, rows, discard
):
    """A short line that is not cut at one end is no partial echo: sizes contradict."""
    kept = data.draw(st.integers(2, rows - 2))
    kspace = random_kspace(1, rows=discard + kept)
    middle = {"center_sample": discard + kept // 2, "discard_pre": discard}
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    text = f"lines of {kept} samples of .*but the header says {rows} rows"
    with pytest.raises(InputError, match=text):
        converted(write(path, lines(kspace, **middle), header((rows, COLS))))


@given(z=st.integers(0, 2), average=st.integers(0, 1), away=st.floats(0.1, 99))
def test_lines_of_one_slice_at_two_positions_are_refused(
    tmp_path_factory, z, average, away
):
    kspace, path = random_kspace(), tmp_path_factory.mktemp("raw") / "scan.h5"
    acquisitions = [a for i in range(2) for a in placed(kspace, [0, 5, 10], average=i)]
    for one in acquisitions:
        late = one.idx.average == average and one.idx.kspace_encode_step_1 > 3
        if one.idx.slice == z and late:
            one.position[0] += away
    with pytest.raises(InputError, match="lines of one slice at "):
        converted(write(path, acquisitions, shuffle=False))


@given(count=st.integers(2, 4))
def test_partitions_that_are_counted_as_slices_are_refused(tmp_path_factory, count):
    """The header speaks of a 3-D encoding, and all lie at one position."""
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    document = xsd.CreateFromDocument(header())
    document.encoding[0].encodedSpace.matrixSize.z = count
    text = f"{count} partitions of a 3-D encoding.*an inverse Fourier transform along"
    with pytest.raises(InputError, match=text):
        converted(write(path, lines(random_kspace(count)), xsd.ToXML(document)))
    apart = placed(random_kspace(count), np.arange(count))
    write(path, apart, xsd.ToXML(document))
    assert converted(path).slices == count


def test_a_header_without_limits_is_named(tmp_path):
    document = xsd.CreateFromDocument(header())
    document.encoding[0].encodingLimits.kspace_encoding_step_1 = None
    path = write(tmp_path / "scan.h5", lines(random_kspace()), xsd.ToXML(document))
    text = "lacks .*/kspace_encoding_step_1/center.*: correct it"
    with pytest.raises(InputError, match=text) as caught:
        converted(path)
    assert "ismrmrd_header" not in str(caught.value)


def test_the_warning_that_no_slice_has_a_position_names_the_file(tmp_path):
    with logged() as said:
        converted(write(tmp_path / "scan.h5", lines(random_kspace())))
    assert said[0].startswith(
        f"{tmp_path / 'scan.h5'}: all slices are at one position, so"
    )


@given(steps=st.integers(2, 4))
def test_partitions_are_refused_with_the_right_advice(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    parts = [lines(random_kspace(1), kspace_encode_step_2=i) for i in range(steps)]
    text = f"{steps} partitions of a 3-D encoding.*an inverse Fourier transform along"
    with pytest.raises(InputError, match=text):
        converted(write(path, [one for part in parts for one in part]))


def test_raw_files_are_for_convert(tmp_path, capsys):
    write(tmp_path / "raw/scan.h5", lines(random_kspace()))
    options = [f"--data={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"]
    assert main(["reconstruct", *options]) == 2
    assert "scan.h5 is a raw file of ISMRMRD" in (err := capsys.readouterr().err)
    assert "run `convert` on it first" in err


def test_a_converted_file_that_contradicts_itself_is_removed(tmp_path):
    """The peak of its energy is at the edge: sizes and center of the header lie."""
    kspace = 1e-3 * random_kspace()
    kspace[..., 0] += 1
    path = write(tmp_path / "scan.h5", lines(kspace))
    with pytest.raises(InputError, match=r"most energy .* in column 0 of 12") as caught:
        converted(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not list((tmp_path / "out").iterdir())
