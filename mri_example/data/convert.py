"""From Cartesian ISMRMRD raw files to files in the fastMRI layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from ismrmrd import xsd
from ismrmrd.file import Acquisitions
from ismrmrd.hdf5 import acquisition_header_dtype
from numpy.typing import NDArray

from mri_example.data.checks import checked
from mri_example.data.files import crop_of, opened, plain, write_kspace
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.masks import center_width
from mri_example.paths import distinct, files_of
from mri_example.progress import shown
from mri_example.transforms import magnitudes

LOG = logging.getLogger(__name__)
SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")
NO_IMAGE = (  # noise, and what serves the scanner itself
    *("IS_NOISE_MEASUREMENT", "IS_NAVIGATION_DATA", "IS_PHASECORR_DATA"),
    *("IS_HPFEEDBACK_DATA", "IS_DUMMYSCAN_DATA", "IS_RTFEEDBACK_DATA"),
    *("IS_SURFACECOILCORRECTIONSCAN_DATA", "IS_PHASE_STABILIZATION"),
    "IS_PHASE_STABILIZATION_REFERENCE",
)
RAW = {
    "lines read backwards, as in echo-planar imaging": ("IS_REVERSE",),
    "compressed lines": tuple(f"COMPRESSION{i}" for i in (1, 2, 3, 4)),
}
SEPARATE = "write each into a file of its own"
TRANSFORM = "make slices of them by an inverse Fourier transform along them"
COUNTERS = {  # by their meaning; a file holds one stack of slices
    "partitions of a 3-D encoding": ("kspace_encode_step_2", TRANSFORM),
    "contrasts": ("contrast", SEPARATE),
    "phases of a cycle": ("phase", SEPARATE),
    "repetitions": ("repetition", SEPARATE),
    "sets": ("set", SEPARATE),
}
PLACE = ["slice", "kspace_encode_step_1", "average"]
LINE = ("active_channels", "number_of_samples", "discard_pre", "discard_post")
APART = 1e-2  # mm between positions, or of directions, that are not the same
COHERENT = 0.8  # magnitude of the mean of averages, relative to their mean magnitude
SIMILAR = 0.02  # relative difference of sizes that are rounded


def convert_raw(source: Path, folder: Path) -> list[Path]:
    """Convert a raw file, or those in a folder, to files that do not exist yet.

    Averages are averaged, slices are in the order of their positions, and what was not
    encoded is zero; where the phase encoding is coarser than the readout, zeros around
    k-space make pixels square. A file that is fully sampled has a target; another has
    its mask.

    Raises:
        InputError: If a file is not Cartesian, holds more than one stack of slices or
            contradicts itself, two would have one name, or `folder` is the source's.
    """
    files = files_of(source, SUFFIXES) if source.is_dir() else [source]
    own = folder.resolve() == files[0].parent.resolve()
    _require(not own, f"output is the folder of {source}: choose another folder")
    named = distinct((f"{file.stem}.h5", file) for file in files)
    written = [folder / name for name in named if not (folder / name).exists()]
    for path in written:
        try:
            write_kspace(path, *_content(named[path.name]))
            checked([path])
        except InputError as error:
            path.unlink(missing_ok=True)
            said, file = str(error), str(named[path.name])
            known = file in said or str(path) in said
            raise InputError(said if known else f"{file} {said}") from error
    return written


def _require(right: Any, otherwise: str) -> None:
    if not right:
        raise InputError(otherwise)


def _content(source: Path) -> tuple[Any, ...]:
    """Return k-space, target, header, attributes and mask of a raw file."""
    with opened(source) as file:
        groups = [g for g in file.values() if isinstance(g, h5py.Group)]
        groups = [g for g in groups if "data" in g and "xml" in g]
        text = f"holds {len(groups)} ISMRMRD scans (groups of data and xml), but must"
        _require(len(groups) == 1, f"{text} hold one: name a raw file of one scan")
        xml = plain(groups[0]["xml"][()])
        document, header = _document(xml)
        kspace, measured = _kspace(groups[0]["data"], header)
    changed = (measured != measured[0]).any(axis=1)
    text = f"slice {changed.argmax()} was measured along other columns than slice 0"
    _require(not changed.any(), f"{text}, but a file has one mask: separate them")
    before = header.encoded[1]
    if _make_square(document.encoding[0]):
        xml = xsd.ToXML(document).encode()
        header = Header.parse(xml)
    more, left = header.encoded[1] - before, header.encoded[1] // 2 - before // 2
    kspace = np.pad(kspace, [(0, 0)] * 3 + [(left, more - left)])
    mask = np.pad(measured[0], (left, more - left))
    scan, patient = document.measurementInformation, document.subjectInformation
    attributes = {"acquisition": getattr(scan, "protocolName", None) or "UNKNOWN"}
    attributes["patient_id"] = getattr(patient, "patientID", None) or source.stem
    encoded = mask[max(header.padding[0], 0) : header.padding[1]]
    data = kspace[:, 0] if kspace.shape[1] == 1 else kspace
    if encoded.all():
        crop = crop_of(None, header, (kspace.shape[-2], kspace.shape[-1]))
        return data, magnitudes(data, crop), xml, attributes, None
    attributes["acceleration"] = round(float(1 / encoded.mean()), 1)
    attributes["num_low_frequency"] = center_width(mask)
    return data, None, xml, attributes, mask.astype(np.float32)


def _document(xml: bytes) -> tuple[Any, Header]:
    """Return the header of a scan with one Cartesian encoding, and its sizes."""
    try:
        document, header = xsd.CreateFromDocument(xml), Header.parse(xml)
    except (ValueError, TypeError, SyntaxError, LookupError) as error:
        text = f"has a header that does not say the sizes of the scan ({error})"
        raise InputError(f"{text}: convert the scanner's file again") from error
    text = f"has {len(document.encoding)} encodings, but must have one: {SEPARATE}"
    _require(len(document.encoding) == 1, text)
    text = f"has a trajectory that is {header.trajectory or 'not named'}, but must be"
    cartesian = header.trajectory.lower() == "cartesian"
    _require(cartesian, f"{text} cartesian: grid its data first")
    return document, header


def _make_square(encoding: Any) -> bool:
    """Enlarge the matrix until pixels are square, and say whether anything changed."""
    size, view = encoding.encodedSpace.matrixSize, encoding.encodedSpace.fieldOfView_mm
    recon, seen = encoding.reconSpace.matrixSize, encoding.reconSpace.fieldOfView_mm
    if min(view.x, view.y, seen.x, seen.y) <= 0:
        return False
    before, pixel = (size.y, recon.x, recon.y), view.x / size.x
    size.y = max(size.y, _near(view.y / pixel, size.y))
    recon.x = _near(seen.x / pixel, recon.x)
    recon.y = _near(seen.y / view.y * size.y, recon.y)
    return before != (size.y, recon.x, recon.y)


def _near(size: float, said: int) -> int:
    return said if abs(size - said) <= SIMILAR * said else max(1, round(size))


def _kspace(data: h5py.Dataset, header: Header) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the mean of the lines of each place, and where there are any."""
    try:
        heads = data.fields("head")[:].astype(acquisition_header_dtype)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError) as error:
        text = f"has data that are not acquisitions of ISMRMRD ({error})"
        raise InputError(f"{text}: convert it again") from error
    indices = _image_lines(heads)
    heads = heads[indices]
    coils, samples, rows = _readout(heads, header.encoded[0])
    slices, columns = _slices(heads), _columns(heads, header)
    kspace = np.zeros((max(slices) + 1, coils, *header.encoded[:2]), np.complex64)
    times, norms = np.zeros((2, len(kspace), kspace.shape[-1]), np.float32)
    places = [*zip(indices, slices, columns, strict=True)]
    for index, z, column in shown(places, "convert", "line"):
        try:
            line = Acquisitions(data)[int(index)].data[:, samples]
        except (ValueError, OSError) as error:
            text = f"is damaged, acquisition {index} cannot be read ({error})"
            raise InputError(f"{text}: copy it again") from error
        _require(np.isfinite(line).all(), f"has NaN in acquisition {index}: remove it")
        kspace[z, :, rows, column] += line
        times[z, column] += 1
        norms[z, column] += np.linalg.norm(line)
    coherence = np.linalg.norm(kspace) / (np.linalg.norm(norms) or 1)
    text = f"has averages that cancel, {coherence:.2f} of their magnitude is left"
    cure = "correct their phases first, or keep one of them"
    _require(not norms.any() or coherence >= COHERENT, f"{text}: {cure}")
    kspace /= np.maximum(times, 1)[:, None, None, :]
    return kspace, times > 0


def _flagged(heads: NDArray[Any], *names: str) -> Any:
    bits = sum(1 << (getattr(ismrmrd, f"ACQ_{name}") - 1) for name in names)
    return (heads["flags"] & np.uint64(bits)) != 0


def _image_lines(heads: NDArray[Any]) -> NDArray[Any]:
    """Find the lines of one stack of slices by their flags and counters."""
    calibration = _flagged(heads, "IS_PARALLEL_CALIBRATION")
    calibration &= ~_flagged(heads, "IS_PARALLEL_CALIBRATION_AND_IMAGING")
    (indices,) = np.nonzero(~(_flagged(heads, *NO_IMAGE) | calibration))
    _require(indices.size, "has no lines of an image: take the scan itself")
    for meaning, names in RAW.items():
        text = f"has {meaning}: let the scanner's converter correct them"
        _require(not _flagged(heads[indices], *names).any(), text)
    counters = heads["idx"][indices]
    for meaning, (counter, cure) in COUNTERS.items():
        count = len(np.unique(counters[counter]))
        text = f"has {count} {meaning}, but a file holds one stack of slices: {cure}"
        _require(count == 1, text)
    places, times = np.unique(counters[PLACE], return_counts=True)
    z, step, average = places[times.argmax()]
    text = f"lines of slice {z}, phase encoding {step} and average {average}"
    _require(times.max() == 1, f"has {times.max()} {text}: separate the measurements")
    return indices


def _readout(heads: NDArray[Any], rows: int) -> tuple[int, slice, slice]:
    """Return the coils, the samples of a line that count, and the rows they fill."""
    for name in (*LINE, "center_sample"):
        values = np.unique(heads[name])
        text = f"has lines of {name} {values[0]} and {values[-1]}, but all must be"
        _require(len(values) == 1, f"{text} alike: write them into separate files")
    coils, count, before, after = (int(heads[name][0]) for name in LINE)
    kept, center = count - before - after, int(heads["center_sample"][0])
    # a line shorter than the readout, a partial echo, is placed by its central sample
    row = 0 if kept == rows else rows // 2 - (center - before)
    text = f"has lines of {kept} samples of {coils} coils, sample {center} in the "
    text += f"middle, but the header says {rows} rows: correct the header"
    _require(min(coils, kept) >= 1 and row >= 0 and row + kept <= rows, text)
    return coils, slice(before, count - after), slice(row, row + kept)


def _slices(heads: NDArray[Any]) -> Any:
    """Return the slice of each line; slices are counted along their normal."""
    for name in ("read_dir", "phase_dir", "slice_dir"):
        away = np.abs(heads[name] - heads[name][0]).max(axis=1)
        ends = f"{heads[name][0].tolist()} and {heads[name][away.argmax()].tolist()}"
        text = f"has several orientations, {name} {ends}: {SEPARATE}"
        _require(away.max() <= APART, text)
    counter = heads["idx"]["slice"].astype(np.int64)
    found, first, slices = np.unique(counter, return_index=True, return_inverse=True)
    missing = np.setdiff1d(np.arange(found[0], found[-1]), found)
    text = f"has no lines of slice {missing[:1]}, but of slices before and behind"
    _require(not missing.size, f"{text}: copy the whole file")
    positions, normal = heads["position"][first], heads["slice_dir"][0]
    if not normal.any():
        normal = np.eye(3)[np.ptp(positions, axis=0).argmax()]
    along = positions.astype(np.float64) @ normal
    if len(found) == 1 or np.ptp(along) <= APART:
        if len(found) > 1:
            LOG.warning("raw slices are all at one position: their counter orders them")
        return slices
    order, gaps = along.argsort(), np.diff(np.sort(along))
    one, other = found[order[gaps.argmin() :][:2]]
    text = f"has the slices {one} and {other} at one position"
    _require(gaps.min() > APART, f"{text}: {SEPARATE}")
    return order.argsort()[slices]


def _columns(heads: NDArray[Any], header: Header) -> NDArray[Any]:
    steps = heads["idx"]["kspace_encode_step_1"].astype(np.int64)
    columns = steps + header.padding[0]
    inside = columns.min() >= 0 and columns.max() < header.encoded[1]
    text = f"has phase encodings from {steps.min()} to {steps.max()}, but the header "
    text += f"says at most {header.maximum}, {header.center} in the middle of "
    text += f"{header.encoded[1]} columns: correct the header"
    _require(inside and steps.max() <= header.maximum, text)
    return columns
