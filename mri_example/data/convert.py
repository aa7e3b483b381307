"""From Cartesian ISMRMRD raw files to files in the fastMRI layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import ismrmrd
import numpy as np
import torch
from ismrmrd.file import Acquisitions
from ismrmrd.hdf5 import acquisition_header_dtype
from numpy.typing import NDArray

from mri_example.data.files import crop_of, opened, write_kspace
from mri_example.data.header import NAMESPACE, Header
from mri_example.errors import InputError
from mri_example.transforms import center_crop, ifft2c, root_sum_of_squares

SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")
NO_IMAGE = [  # noise, and what serves the scanner itself
    getattr(ismrmrd, f"ACQ_IS_{name}")
    for name in (
        *("NOISE_MEASUREMENT", "NAVIGATION_DATA", "PHASECORR_DATA", "HPFEEDBACK_DATA"),
        *("DUMMYSCAN_DATA", "RTFEEDBACK_DATA", "SURFACECOILCORRECTIONSCAN_DATA"),
        *("PHASE_STABILIZATION_REFERENCE", "PHASE_STABILIZATION"),
    )
]
UNUSABLE = {
    "lines read backwards, as in echo-planar imaging": [ismrmrd.ACQ_IS_REVERSE],
    "compressed lines": [getattr(ismrmrd, f"ACQ_COMPRESSION{i}") for i in (1, 2, 3, 4)],
}
ONE_OF = {
    "kspace_encode_step_2": "partitions of a 3-D encoding",
    "contrast": "contrasts",
    "phase": "phases of a cycle",
    "repetition": "repetitions",
    "set": "sets",
}
PLACE = ("slice", "kspace_encode_step_1", "average")
READOUT = ("active_channels", "number_of_samples", "discard_pre", "discard_post")


def convert_raw(source: Path, folder: Path) -> list[Path]:
    """Convert one raw file, or every one in a folder.

    Noise scans and calibration lines that are no part of the image are left out,
    averages are averaged, and what was not encoded is zero. A file that is fully
    sampled has a target, the root-sum-of-squares of its coils; another has its mask.
    One coil makes a single-coil file. The header is copied whole, with all that it says
    of the patient.

    Args:
        source: A file, or a folder of them (.h5, .hdf5, .mrd, .ismrmrd).
        folder: Where the files go, for example `.../multicoil_test`.

    Returns:
        The files that were written now; those that exist are left as they are.

    Raises:
        InputError: If a file is not Cartesian or holds more than one stack of slices,
            two would have the same name, or `folder` is that of the source.
    """
    files = _sources(source, folder)
    names: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(file.stem, file)
        if other != file:
            raise InputError(
                f"{other} and {file} would both become {file.stem}.h5: rename one"
            )
    missing = {folder / f"{n}.h5": f for n, f in names.items()}
    missing = {path: file for path, file in missing.items() if not path.exists()}
    for path, file in missing.items():
        _convert(file, path)
    return list(missing)


def _sources(source: Path, folder: Path) -> list[Path]:
    files = [source]
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix in SUFFIXES)
        files = [f for f in files if not f.name.startswith(".")]
    if not files:
        raise InputError(
            f"the folder {source} holds no {', '.join(SUFFIXES)} files: check the path"
        )
    if folder.resolve() == files[0].parent.resolve():
        raise InputError(f"output is the folder of {source}: choose another folder")
    return files


def _convert(source: Path, path: Path) -> None:
    with opened(source) as file:
        group = _group(file, source)
        xml = np.ravel(group["xml"][()])[0]
        xml = xml if isinstance(xml, bytes) else str(xml).encode()
        header, attributes = _header(xml, source)
        kspace, measured = _kspace(group["data"], header, source)
    (other,) = np.nonzero((measured != measured[0]).any(axis=1))
    if other.size:
        raise InputError(
            f"{source}: slice {other[0]} was measured along other columns than slice "
            f"0, but the fastMRI layout has one mask: write them into separate files"
        )
    mask = measured[0].astype(np.float32)
    left, right = header.padding
    encoded = mask[max(left, 0) : right]  # without what the scan does not encode at all
    data = kspace[:, 0] if kspace.shape[1] == 1 else kspace
    if encoded.all():
        crop = crop_of(None, header, (kspace.shape[-2], kspace.shape[-1]))
        images = [root_sum_of_squares(ifft2c(torch.from_numpy(k)), 0) for k in kspace]
        target = torch.stack([center_crop(image, crop) for image in images]).numpy()
        write_kspace(path, data, target, xml, attributes)
    else:
        middle = len(mask) // 2
        sides = (mask[:middle][::-1], mask[middle:])
        block = sum(int(np.cumprod(side).sum()) for side in sides)
        attributes["acceleration"] = round(len(encoded) / float(encoded.sum()), 1)
        attributes["num_low_frequency"] = block if mask[middle] else 0
        write_kspace(path, data, None, xml, attributes, mask)


def _group(file: h5py.File, path: Path) -> h5py.Group:
    groups = [g for g in file.values() if isinstance(g, h5py.Group)]
    groups = [g for g in groups if "data" in g and "xml" in g]
    if len(groups) != 1:
        raise InputError(
            f"{path} holds {len(groups)} ISMRMRD scans (groups of data and xml) among "
            f"{sorted(file)}, but must hold one: name a raw file of one scan"
        )
    return groups[0]


def _header(xml: bytes, path: Path) -> tuple[Header, dict[str, Any]]:
    """Return the sizes of a scan with one Cartesian encoding, and its attributes."""

    def text(element: ElementTree.Element, *names: str) -> str:
        path = "/".join(f"{{{NAMESPACE}}}{name}" for name in names)
        return (element.findtext(path) or "").strip()

    try:
        root = ElementTree.fromstring(xml)
        encodings = root.findall(f"{{{NAMESPACE}}}encoding")
        sizes = Header.parse(xml) if len(encodings) == 1 else None
    except (ElementTree.ParseError, InputError) as error:
        raise InputError(
            f"{path}: its XML header does not say the sizes of the scan "
            f"({error.__cause__ or error}): convert the scanner's file again"
        ) from error
    if sizes is None:
        raise InputError(
            f"{path} has {len(encodings)} encodings, but must have one: write each "
            f"into a file of its own"
        )
    trajectory = text(encodings[0], "trajectory")
    if trajectory.lower() != "cartesian":
        raise InputError(
            f"{path} has a trajectory that is {trajectory or 'not named'}, but must "
            f"be cartesian: grid its data first"
        )
    protocol = text(root, "measurementInformation", "protocolName") or "UNKNOWN"
    patient = text(root, "subjectInformation", "patientID") or path.stem
    return sizes, {"acquisition": protocol, "patient_id": patient}


def _kspace(
    data: h5py.Dataset, header: Header, path: Path
) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Return the mean of the lines of each place, and where there are any."""
    try:
        heads = data.fields("head")[:].astype(acquisition_header_dtype)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: its data are not acquisitions of ISMRMRD ({error}): convert the "
            f"scanner's file again"
        ) from error
    indices = _image_lines(heads, path)
    heads = heads[indices]
    coils, samples, rows = _readout(heads, header.encoded[0], path)
    slices = _slices(heads["idx"]["slice"], path)
    columns = _columns(heads["idx"]["kspace_encode_step_1"], header, path)
    shape = (int(slices.max()) + 1, coils, *header.encoded[:2])
    kspace = np.zeros(shape, dtype=np.complex64)
    times = np.zeros((shape[0], shape[-1]), dtype=np.int64)
    for index, z, column in zip(indices, slices, columns, strict=True):
        kspace[z, :, rows, column] += _line(data, int(index), path)[:, samples]
        times[z, column] += 1
    kspace /= np.maximum(times, 1)[:, None, None, :]
    return kspace, times > 0


def _image_lines(heads: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Find the lines of one stack of slices by their flags and counters."""

    def flagged(heads: NDArray[Any], *flags: int) -> NDArray[np.bool_]:
        bits = sum(1 << (flag - 1) for flag in flags)
        found: NDArray[np.bool_] = (heads["flags"] & np.uint64(bits)) != 0
        return found

    calibration = flagged(heads, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    calibration &= ~flagged(heads, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    (indices,) = np.nonzero(~(flagged(heads, *NO_IMAGE) | calibration))
    if not indices.size:
        raise InputError(f"{path} has no lines of an image: take the scan itself")
    for meaning, flags in UNUSABLE.items():
        if flagged(heads[indices], *flags).any():
            raise InputError(
                f"{path} has {meaning}, which cannot be converted: let the scanner's "
                f"converter correct them"
            )
    _check_counters(heads[indices]["idx"], path)
    return indices


def _check_counters(counters: NDArray[Any], path: Path) -> None:
    for counter, meaning in ONE_OF.items():
        values = np.unique(counters[counter])
        if len(values) > 1:
            raise InputError(
                f"{path} has {len(values)} {meaning}, but a file of the fastMRI layout "
                f"holds one stack of slices: write each into a file of its own"
            )
    places = np.stack([counters[name] for name in PLACE], axis=1)
    found, times = np.unique(places, axis=0, return_counts=True)
    if times.max() > 1:
        z, step, average = found[times.argmax()]
        raise InputError(
            f"{path} has {times.max()} lines of slice {z}, phase encoding {step} and "
            f"average {average}: write each measurement into a file of its own"
        )


def _readout(heads: NDArray[Any], rows: int, path: Path) -> tuple[int, slice, slice]:
    """Return the coils, the samples of a line that count, and the rows they fill."""
    for name in (*READOUT, "center_sample"):
        values = np.unique(heads[name])
        if len(values) > 1:
            raise InputError(
                f"{path} has lines of {name} {values[0]} and {values[-1]}, but all "
                f"must be alike: write them into separate files"
            )
    coils, count, before, after = (int(heads[name][0]) for name in READOUT)
    kept, center = count - before - after, int(heads["center_sample"][0])
    # a line shorter than the readout, a partial echo, is placed by its central sample
    row = 0 if kept == rows else rows // 2 - (center - before)
    if min(coils, kept) < 1 or row < 0 or row + kept > rows:
        raise InputError(
            f"{path} has lines of {kept} samples of {coils} coils, sample {center} in "
            f"the middle, but the header says {rows} rows: correct the header"
        )
    return coils, slice(before, count - after), slice(row, row + kept)


def _slices(counter: NDArray[np.uint16], path: Path) -> NDArray[np.int64]:
    slices = counter.astype(np.int64)
    missing = set(range(slices.min(), slices.max())) - set(slices.tolist())
    if missing:
        raise InputError(
            f"{path} has no lines of slice {min(missing)}, but of slices before and "
            f"behind: copy it again"
        )
    slices -= slices.min()
    return slices


def _columns(
    counter: NDArray[np.uint16], header: Header, path: Path
) -> NDArray[np.int64]:
    steps = counter.astype(np.int64)
    columns = steps + header.padding[0]
    outside = columns.min() < 0 or columns.max() >= header.encoded[1]
    if outside or steps.max() > header.maximum:
        raise InputError(
            f"{path} has phase encodings from {steps.min()} to {steps.max()}, but the "
            f"header says at most {header.maximum}, {header.center} in the middle of "
            f"{header.encoded[1]} columns: correct the header"
        )
    return columns


def _line(data: h5py.Dataset, index: int, path: Path) -> NDArray[np.complex64]:
    try:
        line: NDArray[np.complex64] = Acquisitions(data)[index].data
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: acquisition {index} cannot be read ({error}): copy it again"
        ) from error
    if not np.isfinite(line).all():
        raise InputError(
            f"{path}: acquisition {index} holds NaN or infinite values: remove it"
        )
    return line
