"""From Cartesian ISMRMRD raw files to files in the fastMRI layout."""

import logging
from hashlib import file_digest
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mri_example.data.checks import checked
from mri_example.data.files import KSpaceFile, crop_of, opened, plain, write_kspace
from mri_example.data.header import Header, text_of, whole_header
from mri_example.errors import InputError, named_files, require, reworded
from mri_example.masks import center_width
from mri_example.progress import shown
from mri_example.transforms import magnitudes

LOG = logging.getLogger(__name__)
SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")
NO_IMAGE = """NOISE_MEASUREMENT NAVIGATION_DATA PHASECORR_DATA HPFEEDBACK_DATA
DUMMYSCAN_DATA RTFEEDBACK_DATA SURFACECOILCORRECTIONSCAN_DATA PHASE_STABILIZATION
PHASE_STABILIZATION_REFERENCE"""  # noise, and what serves the scanner itself
SEPARATE = "write each into a file of its own"
CORRECT = "let the scanner's converter correct them"
PARTITIONS = (
    "partitions of a 3-D encoding: make slices of them by an inverse Fourier transform "
    "along them"
)
COUNTERS = {  # of which a file has one value
    name: f"{name}s, but a file has one stack of slices: {SEPARATE}"
    for name in ("contrast", "phase", "repetition", "set")
} | {"kspace_encode_step_2": PARTITIONS}
COMPRESSED = [f"COMPRESSION{i}" for i in (1, 2, 3, 4)]
PLACE = ["slice", "kspace_encode_step_1", "average"]
LINE = ("active_channels", "number_of_samples", "discard_pre", "discard_post")
APART = 1e-2  # mm between positions, or of directions, that are not the same
COHERENT = 0.8  # magnitude of the mean of averages, relative to their mean magnitude


def convert_raw(source: Path, folder: Path) -> list[Path]:
    """Convert a raw file, or those in a folder, to files that do not exist yet.

    Averages are averaged, slices in the order of their positions; zeros stand for what
    was not encoded, and make pixels square. What is fully sampled has a target.

    Raises:
        InputError: If a file is not Cartesian, not one stack of slices or contradicts
            itself, two would have one name, or `folder` is the source's.
    """
    files = named_files(source, SUFFIXES, lambda file: f"{file.stem}.h5")
    own = folder.resolve() == (source if source.is_dir() else source.parent).resolve()
    require(not own, f"output is the folder of {source}: choose another folder")
    written = []
    for path, raw in ((folder / name, raw) for name, raw in files.items()):
        with raw.open("rb") as content:
            digest = file_digest(content, "sha256").hexdigest()
        if path.exists():
            before = KSpaceFile.inspect(path).attributes.get("source")
            text = f"{path} exists and was not converted from {raw}: choose another "
            require(before == digest, f"{text}folder")
            continue
        with opened(raw) as file:
            data, target, xml, attributes, mask = _content(path.stem, file)
        write_kspace(path, data, target, xml, attributes | {"source": digest}, mask)
        try:
            checked([path])
        except InputError as error:
            path.unlink()
            raise InputError(str(error).replace(f"{path}", f"{raw}")) from error
        written.append(path)
    return written


def _content(name: str, file: h5py.File) -> tuple[Any, ...]:
    """Return k-space, target, header, attributes and mask of a raw file."""
    groups = [g for g in file.values() if isinstance(g, h5py.Group)]
    groups = [g for g in groups if {"data", "xml"} <= {*g}]
    require(len(groups) == 1, f"{len(groups)} ISMRMRD scans: name a file of one")
    root, header, xml, encoded = whole_header(plain(groups[0]["xml"][()]))
    data, measured = _kspace(groups[0]["data"], header, encoded)
    text = f"lines of {len(data)} slices, but the header speaks of {header.slices}: "
    text += "copy the whole file, or correct the header"
    require(len(data) >= header.slices, text)
    changed = (measured != measured[0]).any(axis=1)
    text = f"slice {changed.argmax()} was measured along other columns than slice 0"
    require(not changed.any(), f"{text}, but a file has one mask: separate them")
    mask, data = measured[0], data[:, 0] if data.shape[1] == 1 else data
    protocol = text_of(root, "measurementInformation/protocolName") or "UNKNOWN"
    patient = text_of(root, "subjectInformation/patientID") or name
    attributes: dict[str, Any] = {"acquisition": protocol, "patient_id": patient}
    inside = mask[max(header.padding[0], 0) : header.padding[1]]
    if inside.all():
        crop = crop_of(None, header, (data.shape[-2], data.shape[-1]))
        return data, magnitudes(data, crop), xml, attributes, None
    attributes["acceleration"] = round(float(1 / inside.mean()), 1)
    attributes["num_low_frequency"] = center_width(mask)
    return data, None, xml, attributes, mask.astype(np.float32)


def _kspace(data: h5py.Dataset, header: Header, encoded: int) -> tuple[Any, Any]:
    """Return the mean of the lines of each place, and where there are any."""
    text = "its data are not acquisitions of ISMRMRD ({}): convert it again"
    with reworded(text, AttributeError, LookupError, ValueError, TypeError):
        heads = data.fields("head")[:].astype(ismrmrd.hdf5.acquisition_header_dtype)
    indices = _image_lines(heads, embedded=header.calibration == "embedded")
    heads = heads[indices]
    coils, samples, rows = _readout(heads, header.encoded[0])
    slices = _slices(heads, header.encoded[2], data.file.filename)
    columns = _columns(heads, header, encoded)
    kspace = np.zeros((max(slices) + 1, coils, *header.encoded[:2]), np.complex64)
    times, norms = np.zeros((2, len(kspace), kspace.shape[-1]), np.float32)
    places = [*zip(indices, slices, columns, strict=True)]
    for index, z, column in shown(places, "convert", "line"):
        line = ismrmrd.file.Acquisitions(data)[int(index)].data[:, samples]
        require(np.isfinite(line).all(), f"NaN in acquisition {index}: remove it")
        kspace[z, :, rows, column] += line
        times[z, column] += 1
        norms[z, column] += np.linalg.norm(line)
    _check_averages(np.stack([np.linalg.norm(k, axis=(0, 1)) for k in kspace]), norms)
    kspace /= np.maximum(times, 1)[:, None, None, :]
    return kspace, times > 0


def _check_averages(sums: NDArray[Any], norms: NDArray[Any]) -> None:
    """Make sure that the lines of a place add up, where there is more than noise."""
    most = norms.max(axis=1, keepdims=True)
    signal = (norms > most / 2) & (most > norms.max() / 10)
    left = np.divide(sums, norms, out=np.ones_like(sums), where=signal).min(axis=1)
    text = f"averages that cancel, {left.min():.2f} of their magnitude is left in slice"
    require(left.min() >= COHERENT, f"{text} {left.argmin()}: keep one of them")


def _flagged(heads: NDArray[Any], *names: str) -> Any:
    bits = sum(1 << (getattr(ismrmrd, f"ACQ_{name}") - 1) for name in names)
    return (heads["flags"] & np.uint64(bits)) != 0


def _image_lines(heads: NDArray[Any], *, embedded: bool) -> NDArray[Any]:
    """Find the lines of one stack of slices by their flags and counters.

    Calibration lines are among them if they are embedded: measured in the same scan.
    """
    others = _flagged(heads, *(f"IS_{name}" for name in NO_IMAGE.split()))
    if not embedded:
        image = _flagged(heads, "IS_PARALLEL_CALIBRATION_AND_IMAGING")
        others |= _flagged(heads, "IS_PARALLEL_CALIBRATION") & ~image
    (indices,) = np.nonzero(~others)
    require(indices.size, "no lines of an image: take the scan itself")
    heads = heads[indices]
    refused = {
        "trajectory, but the header says cartesian: grid the data, or leave it out": (
            heads["trajectory_dimensions"]
        ),
        f"second encoding, but the header has one: {SEPARATE}": (
            heads["encoding_space_ref"]
        ),
        f"reversed readout, as in EPI: {CORRECT}": _flagged(heads, "IS_REVERSE"),
        f"compression: {CORRECT}": _flagged(heads, *COMPRESSED),
    }
    for text, found in refused.items():
        require(not found.any(), f"lines with a {text}")
    for name, text in COUNTERS.items():
        count = len(np.unique(heads["idx"][name]))
        require(count == 1, f"{count} {text}")
    places, times = np.unique(heads["idx"][PLACE], return_counts=True)
    z, step, average = places[times.argmax()]
    text = f"{times.max()} lines of slice {z}, phase encoding {step} and average "
    require(times.max() == 1, f"{text}{average}: separate the measurements")
    return indices


def _readout(heads: NDArray[Any], rows: int) -> tuple[int, slice, slice]:
    """Return the coils, the samples of a line that count, and the rows they fill."""
    for name in (*LINE, "center_sample"):
        values = np.unique(heads[name])
        text = f"lines of {name} {values[0]} and {values[-1]}: {SEPARATE}"
        require(len(values) == 1, text)
    coils, count, before, after = (int(heads[name][0]) for name in LINE)
    kept, center = count - before - after, int(heads["center_sample"][0])
    # a line shorter than the readout, a partial echo, is placed by its central sample
    row = 0 if kept == rows else rows // 2 - (center - before)
    cut = abs(2 * (center - before) - kept) > 1 or rows - kept <= 1  # at one end
    text = f"lines of {kept} samples of {coils} coils, sample {center} in the "
    text += f"middle, but the header says {rows} rows: correct its encoded space"
    require(min(coils, kept) >= 1 and cut and 0 <= row <= rows - kept, text)
    return coils, slice(before, count - after), slice(row, row + kept)


def _slices(heads: NDArray[Any], partitions: int, file: str) -> Any:
    """Return the slice of each line; slices are counted along their normal."""
    for name in ("read_dir", "phase_dir", "slice_dir"):
        _check_equal(heads[name], heads[name][:1], f"several orientations, {name}")
    counter = heads["idx"]["slice"].astype(np.int64)
    found, first, slices = np.unique(counter, return_index=True, return_inverse=True)
    missing = np.setdiff1d(np.arange(found[0], found[-1]), found)
    text = f"no lines of slice {missing[:1]}, but of others: copy the whole file"
    require(not missing.size, text)
    positions, normal = heads["position"][first], heads["slice_dir"][0]
    _check_equal(heads["position"], positions[slices], "lines of one slice at")
    if not normal.any():
        normal = np.eye(3)[np.ptp(positions, axis=0).argmax()]
    along = positions.astype(np.float64) @ normal
    if len(found) == 1:
        return slices
    if np.ptp(along) <= APART:
        text = f"slices that are apart, but not along slice_dir {normal.tolist()}: "
        require(np.ptp(positions, axis=0).max() <= APART, f"{text}correct it")
        require(partitions == 1, f"{len(found)} {PARTITIONS}")
        text = "%s: all slices are at one position, so their counter orders them"
        LOG.warning(text, file)
        return slices
    order, gaps = along.argsort(), np.diff(np.sort(along))
    one, other = found[order[gaps.argmin() :][:2]]
    text = f"the slices {one} and {other} at one position: {SEPARATE}"
    require(gaps.min() > APART, text)
    return order.argsort()[slices]


def _check_equal(found: NDArray[Any], expected: NDArray[Any], said: str) -> None:
    away = np.abs(found - expected).max(axis=1)
    one, other = found[away.argmax()], np.broadcast_to(expected, found.shape)
    text = f"{said} {other[away.argmax()].tolist()} and {one.tolist()}: {SEPARATE}"
    require(away.max() <= APART, text)


def _columns(heads: NDArray[Any], header: Header, encoded: int) -> Any:
    steps = heads["idx"]["kspace_encode_step_1"].astype(np.int64)
    places = steps - header.center + encoded // 2
    inside = places.min() >= 0 and places.max() < encoded
    inside = inside and header.minimum <= steps.min() and steps.max() <= header.maximum
    text = f"phase encodings from {steps.min()} to {steps.max()}, but the header "
    text += f"says at most {header.maximum}, at least {header.minimum}, {header.center}"
    require(inside, f"{text} in the middle of {encoded}: correct the header")
    return steps - header.center + header.encoded[1] // 2
