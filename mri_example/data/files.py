"""HDF5 files in the layout of the fastMRI data set: read and written."""

import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_example.data.header import Header
from mri_example.errors import InputError, check_file, files_of, require, reworded

# What h5py raises, by where a file is damaged.
UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError)
TARGETS = SINGLE_COIL, MULTI_COIL = ("reconstruction_esc", "reconstruction_rss")
UNKNOWN = "unknown"
LONGEST_NAME = 200  # bytes; file systems allow 255, and a temporary name is longer
REPEATED = "REPEAT"  # at the end of an acquisition that was done again
CAUSES = {  # by what the message of HDF5 has in it
    "unable to lock file": "is locked by another program, which may be writing it: "
    "try again when that has ended, or set HDF5_USE_FILE_LOCKING=FALSE",
    "Permission denied": "cannot be opened ({}): change its permissions",
    "Unable to allocate": "does not fit into the memory ({}): make its slices or "
    "coils fewer",
    "plugin|not registered": "is compressed by a filter that is not installed here "
    "({}): rewrite it with `h5repack -f GZIP=4` where it is",
    "": "cannot be read as HDF5 ({}): if it is truncated, damaged or of another "
    "format, copy it again",
}
Pair = tuple[int, int]
Real = NDArray[np.float32]


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, and name it in what the block raises.

    Files are opened anew for every access: handles do not survive the start of a worker
    process, and those that stay open make memory grow.

    Raises:
        InputError: If it is missing, locked, truncated, damaged, of another format, or
            compressed in a way that cannot be read here.
    """
    check_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError as error:
        said = str(error)
        named = said if said.startswith(str(path)) else f"{path}: {said}"
        raise InputError(named) from error
    except UNREADABLE as error:
        said = " ".join(str(error).split())
        reason = next(cure for words, cure in CAUSES.items() if re.search(words, said))
        raise InputError(f"{path} {reason.format(said)}") from error


def _optional(file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return one data set, `None` if there is nothing of that name."""
    link, path = file.get(name, getlink=True), Path(file.filename)
    if link is None:
        return None
    found = file.get(name)
    away = [] if found is not None else [getattr(link, "filename", link)]
    if isinstance(found, h5py.Dataset) and found.is_virtual:
        sources = {source.file_name for source in found.virtual_sources()} - {"."}
        away = [source for source in sources if not (path.parent / source).exists()]
    text = f"{path}: the data set {name!r} is a link to {next(iter(away), '')}, which "
    text += "is not there: put that file where the link leads, or write one file"
    require(not away, text)
    return found if isinstance(found, h5py.Dataset) else None


def _required(file: h5py.File, name: str) -> h5py.Dataset:
    """Return one data set, which must be there."""
    found = _optional(file, name)
    if found is not None:
        return found
    groups = [group for group in file.values() if isinstance(group, h5py.Group)]
    there = sorted(set(file) - {name}) + [f"a group {name}"] * (name in file)
    reason = f"holds no data set {name!r} but {there}: name a file in the layout"
    if any("data" in group and "xml" in group for group in groups):
        reason = "is a raw file of ISMRMRD: run `convert` on it first"
    raise InputError(f"{file.filename} {reason}")


def _shape(kspace: h5py.Dataset) -> tuple[int, ...]:
    """Return the shape of k-space, `(slices, [coils,] rows, cols)`.

    Real and imaginary parts may be a complex number, a compound type such as `(r, i)`
    or `(real, imag)`, or a last axis of length 2.
    """
    shape, kind = tuple(kspace.shape or ()), kspace.dtype
    said = f"k-space is {kind} of shape {shape}"
    parts = [n[0].lower() for n in kind.names or () if kind[n].kind in "fiu"]
    if kind.kind != "c" and parts != ["r", "i"]:
        pairs = kind.kind in "fiu" and shape[-1:] == (2,) and len(shape) >= 4
        require(pairs, f"{said}, but must be complex: {_complex_from(kind, shape)}")
        shape = shape[:-1]
    cure = "reorder its axes, or insert that of the slices"
    if len(shape) > 4:
        cure = "write a file for each contrast, repetition or frame"
    text = f"{said}, but must be (slices, rows, cols) or (slices, coils, rows, cols): "
    require(len(shape) in (3, 4) and 0 not in shape, text + cure)
    return shape


def _complex_from(kind: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """Return how what is not complex may become so."""
    if kind.names:
        return "name its fields real and imag, in this order, and make both numbers"
    if kind.kind not in "fiu":
        return "write it as complex64"
    if shape[-1:] == (2,):
        parts = "if the last axis holds real and imaginary parts"
        return f"{parts}, insert one of slices before the first"
    if 2 in shape:
        axis = shape.index(2)
        return f"if axis {axis} holds real and imaginary parts, move it last"
    if len(shape) > 3 and shape[-1] % 2 == 0 and shape[-1] < min(shape[-3:-1]):
        parts = "if real and imaginary parts alternate along the last axis, combine"
        parts += " them as kspace[..., ::2] + 1j * kspace[..., 1::2]"
        return f"{parts}, coils second"
    return "if these are magnitude images, give them to `simulate` as NIfTI"


def _as_complex(stored: NDArray[Any]) -> NDArray[np.complex64]:
    if stored.dtype.names:
        real, imaginary = (stored[name] for name in stored.dtype.names)
    elif stored.dtype.kind == "c":
        real, imaginary = stored.real, stored.imag
    else:
        real, imaginary = stored[..., 0], stored[..., 1]
    kspace = np.empty(real.shape, np.complex64)
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        kspace.real, kspace.imag = real, imaginary
    return kspace


def _target(file: h5py.File, shape: tuple[int, ...]) -> tuple[str | None, Pair | None]:
    """Return name and size of the target, real `(slices, H, W)`, if there is one.

    Single-coil files may hold that of all coils too, which then is not their target.
    """
    for name in TARGETS if len(shape) == 3 else reversed(TARGETS):
        target = _optional(file, name)
        if target is None:
            continue
        cure = "repair it"
        if target.ndim and target.shape[:1] == shape[1:-2]:
            cure = f"if the coils are first in {shape}, use numpy.swapaxes"
        text = f"{name} is {target.dtype} of shape {target.shape}, but must hold real "
        text += f"images (slices, H, W) of all {shape[0]} slices of k-space: {cure}"
        fits = target.ndim == 3 and len(target) == shape[0] and target.size
        require(fits and target.dtype.kind in "fiu", text)
        return name, (target.shape[1], target.shape[2])
    return None, None


def plain(value: Any) -> Any:
    """Return an attribute of one entry as what is in it, whatever its shape."""
    if isinstance(value, h5py.Empty):
        return None
    return value.item() if getattr(value, "size", None) == 1 else value


def _mask(file: h5py.File, shape: tuple[int, ...], encoded: Pair) -> Real | None:
    """Return the mask along the encoded columns, if the file is undersampled."""
    stored = _optional(file, "mask")
    if stored is None:
        return None
    numbers = stored.shape and stored.dtype.kind in "biuf"
    mask: Real = np.asarray(stored if numbers else [np.nan], dtype=np.float32)
    squeezed, said = np.atleast_1d(mask.squeeze()), f"the mask of shape {mask.shape}"
    text = "the mask has values other than 0 and 1, so it leaves open which columns"
    require(np.isin(mask, (0, 1)).all(), f"{text} were measured: repair the file")
    text = f"{said} has {int(mask.sum())} entries of it measured, but k-space has"
    fits = mask.any() and squeezed.shape[-1:] == shape[-1:]
    require(fits, f"{text} {shape[-1]} columns: repair the file")
    lines = squeezed.reshape(-1, shape[-1])
    text = f"{said} is not the same for all rows and slices of k-space of shape {shape}"
    same = (lines == lines[0]).all()
    require(same, f"{text}, but must be one along the columns: split the file")
    columns: Real = lines[0].copy()
    columns[: encoded[0]] = columns[encoded[1] :] = 0
    text = f"the mask has no column of the {encoded} that the header says were "
    require(columns.any(), f"{text}encoded: one of them belongs to another file")
    return columns


def _padding(header: Header | None, cols: int) -> Pair:
    left, right = header.padding if header else (0, cols)
    left, right = max(left, 0), min(right, cols)
    said = f"according to the header none of the {cols} columns of k-space is "
    require(left < right, f"{said}measured: remove the data set 'ismrmrd_header'")
    return (left, right) if header and header.encoded[1] == cols else (0, cols)


def crop_of(target: Pair | None, header: Header | None, plane: Pair) -> Pair:
    """Return rows and columns of the reconstruction: of target, header, or a square."""
    rows, cols = plane
    height, width = target or (header.recon[:2] if header else (min(plane),) * 2)
    return (min(height, rows), width) if width <= cols else (min(cols, rows), cols)


@dataclass(frozen=True, eq=False)
class KSpaceFile:
    """What one file holds, short of the k-space itself.

    Attributes:
        path: Where it is.
        shape: Shape of the k-space, `(slices, [coils,] rows, cols)`.
        target: Name of the data set with the target, if there is one.
        target_size: Rows and columns of it.
        crop: Rows and columns of the reconstruction.
        padding: First measured column, and the one after the last.
        header: The ISMRMRD header, if there is one.
        mask: The mask that a file of undersampled k-space brings along, `(cols,)`, 0
            outside of the padding.
        attributes: Acquisition, maximum of the target volume and the like.
    """

    path: Path
    shape: tuple[int, ...]
    target: str | None
    target_size: Pair | None
    crop: Pair
    padding: Pair
    header: Header | None
    mask: Real | None
    attributes: Mapping[str, Any]

    @classmethod
    def inspect(cls, path: Path) -> Self:
        """Look at a file, which must be HDF5 in the layout."""
        with opened(path) as file:
            shape = _shape(_required(file, "kspace"))
            target, size = _target(file, shape)
            stored = _optional(file, "ismrmrd_header")
            header = None if stored is None else Header.parse(plain(stored[()]))
            padding = _padding(header, shape[-1])
            crop = crop_of(size, header, (shape[-2], shape[-1]))
            mask = _mask(file, shape, padding)
            said = {name: plain(value) for name, value in file.attrs.items()}
        return cls(path, shape, target, size, crop, padding, header, mask, said)

    @property
    def slices(self) -> int:
        """Number of slices; the first axis of the data, whatever the header says."""
        return self.shape[0]

    @property
    def coils(self) -> int:
        """Number of coils, 1 for single-coil data."""
        return self.shape[1] if len(self.shape) == 4 else 1

    @property
    def folder(self) -> str:
        """Name of the folder that it lies in."""
        return self.path.absolute().parent.name

    @property
    def scan(self) -> str:
        """Acquisition and scanner, as far as known, for example `CORPD_FBK/Skyra`."""
        kind = self.attributes.get("acquisition")
        text = kind.decode(errors="replace") if isinstance(kind, bytes) else kind
        scanner = self.header.scanner if self.header else ""
        known = UNKNOWN if text is None or not np.size(text) else str(text) or UNKNOWN
        return f"{known.removesuffix(REPEATED)}/{scanner or UNKNOWN}"

    def kspace(self, index: int) -> NDArray[np.complex64]:
        """Read the k-space of one slice, `([coils,] rows, cols)`, which is finite."""
        with opened(self.path) as file:
            kspace = _as_complex(file["kspace"][index])
        self._finite(kspace, f"the k-space of slice {index}")
        return kspace

    def _finite(self, values: NDArray[Any], name: str) -> None:
        reason = "holds NaN or infinite values: repair or remove the file"
        require(np.isfinite(values).all(), f"{self.path}: {name} {reason}")

    def number(self, name: str) -> float | None:
        """Return an attribute, one finite number, or `None` if there is no such."""
        value = self.attributes.get(name)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        text = f"{self.path}: the attribute {name!r} is {value!r}, but must be a number"
        require(math.isfinite(number), f"{text}: repair or remove it")
        return number

    @cached_property
    def digest(self) -> list[Any]:
        """What tells it from other files: size, shape, and a hash of some content."""
        with opened(self.path) as file:
            coils = [slice(None)] * (len(self.shape) - 3)
            row = file["kspace"][self.slices // 2, *coils, self.shape[-2] // 2]
        content = repr(sorted(self.attributes.items())).encode() + row.tobytes()
        size = self.path.stat().st_size
        return [size, list(self.shape), sha256(content).hexdigest()]

    @cached_property
    def maximum(self) -> float | None:
        """Maximum of the target volume, as it is said or read; `None` without one."""
        said = self.number("max")
        if said is not None or self.target is None:
            return said
        return float(self.target_volume().max())

    def target_volume(self, index: int | None = None) -> Real:
        """Read the target of all slices, or of one, which is finite."""
        name = self.target or ""
        text = f"{self.path} has no target ({' or '.join(TARGETS)}), so nothing can be "
        require(name, f"{text}compared with it: evaluate on fully sampled files")
        target = _volume(self.path, name, index)
        self._finite(target, name)
        return target


def volume_paths(folder: Path) -> list[Path]:
    """List the HDF5 files of a folder, sorted by name; see `files_of`."""
    return files_of(folder, (".h5", ".hdf5"))


def read_reconstruction(path: Path) -> Real:
    """Read a reconstruction, real `(slices, H, W)`."""
    return _volume(path, "reconstruction")


def _volume(path: Path, name: str, index: int | None = None) -> Real:
    with opened(path) as file:
        stored = _required(file, name)
        require(stored.shape is not None, f"{name} is empty: write it again")
        text = f"{name} is {stored.dtype}, but must be real magnitudes: write their "
        require(stored.dtype.kind in "fiu", f"{text}absolute values")
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            part = stored[()] if index is None else stored[index]
            volume: Real = part.astype(np.float32)
    return volume


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Offer a temporary name beside `path`, and rename it into place at the end.

    After an exception the temporary file is removed and `path` is what it was. Its
    folder is made.
    """
    long = len(os.fsencode(path.name)) > LONGEST_NAME
    name = sha256(os.fsencode(path.name)).hexdigest() if long else path.name
    partial = path.with_name(f".{name}.{os.getpid()}.partial")
    text = f"{path} cannot be written ({{}}): choose another folder or make room"
    try:
        with reworded(text, OSError, RuntimeError):  # PyTorch's, where a disk is full
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
    finally:
        if partial.exists():
            partial.unlink()


@contextmanager
def _new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Offer a file in memory, and write it at the end, whole or not at all.

    HDF5 itself prints tracebacks where a disk is full.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    with whole_file(path) as partial:
        partial.write_bytes(content.getbuffer())


def write_kspace(
    path: Path,
    kspace: NDArray[np.complex64],
    target: Real | None,
    header: Header | bytes,
    attributes: Mapping[str, Any],
    mask: Real | None = None,
) -> None:
    """Write a file in the layout of the fastMRI data set.

    Args:
        path: The file.
        kspace: `(slices, rows, cols)`, or `(slices, coils, rows, cols)`.
        target: Magnitudes, `(slices, H, W)`; the attributes `max` and `norm` are its
            maximum and its Euclidean norm. Undersampled k-space has none.
        header: Sizes of the scan, or the whole ISMRMRD header.
        attributes: Further attributes.
        mask: Which columns were measured, of undersampled k-space, `(cols,)`.
    """
    with _new_hdf5(path) as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header.xml() if isinstance(header, Header) else header
        if target is not None:
            file[SINGLE_COIL if kspace.ndim == 3 else MULTI_COIL] = target
            file.attrs["max"] = float(target.max())
            file.attrs["norm"] = float(np.linalg.norm(target))
        if mask is not None:
            file["mask"] = mask
        file.attrs.update(attributes)


def write_reconstruction(
    path: Path, volume: Real, attributes: Mapping[str, Any] | None = None
) -> None:
    """Write a reconstruction `(slices, H, W)` as the leaderboard takes it."""
    with _new_hdf5(path) as file:
        file["reconstruction"] = volume.astype(np.float32)
        file.attrs.update(attributes or {})
