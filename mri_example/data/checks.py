"""Whether the parts of a file agree: header, k-space, mask, target, and its folder.

A file states most things twice. Where two sources contradict each other, none of them
is believed: an error names both, and the way out. A doubt is logged once for all files.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mri_example.data.files import KSpaceFile
from mri_example.errors import InputError, require
from mri_example.progress import shown

LOG = logging.getLogger(__name__)
Image: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = NDArray[np.bool_]

SCATTERED = 0.05  # share of samples, or pixels, that are zero on purpose
EMPTY = 1e-12  # energy of a column that the mask leaves out: single precision rounds
FAINT = 1e-5  # of the brightest pixel: what rounding leaves where there is nothing
BRIGHT = 1e-3  # of it: lines of the image that hold more than noise
FLAT = 3  # times as many lines as after a transform have the energy of k-space
PROMINENT = 10  # a peak of energy, relative to the median of the columns
CLOSE = 0.01  # NMSE after the best scale of a target that is the image of its k-space
OTHER = 0.25  # of one that is not: two heads of different subjects have .3 and more
OTHERWISE = 1.6  # factor of an acceleration; a center on top of it makes up to 1.4
SCALE = 0.02  # by how much the scale may differ from 1 where the images agree
TRANSFORMED = {  # by the axes over which k-space must be transformed to be the target
    (-2, -1): "",
    (-1,): "k-space is hybrid, its rows are positions: transform them with fft",
    (-2,): "k-space is hybrid, its columns are positions: transform them with fft",
    (): "k-space holds images: transform them with fftc",
}
EXCHANGED = "the target has rows and columns exchanged: transpose it"


@dataclass(frozen=True)
class Finding:
    """A contradiction in a file: an error, or a doubt, with its kind and a sentence."""

    kind: str
    text: str
    doubt: bool = False


def findings(file: KSpaceFile, slices: Iterable[int] | None = None) -> list[Finding]:
    """Compare what a file says in several places; at most one finding of a kind.

    The slices are those that are read, by default one alone, which is not the middle
    one: that is the same in slices of reversed order.
    """
    kinds = {finding.kind: finding for finding in _of_layout(file)}
    wrong = {kind for kind, finding in kinds.items() if not finding.doubt}
    read = [(file.slices - 1) // 3] if slices is None else slices
    for index in read if not {"folder", "axes"} & wrong else ():  # axes are known
        try:
            found = [*_of_slice(file, index)]
        except InputError as error:
            said = str(error).removeprefix(f"{file.path}").lstrip(": ")
            found = [Finding("values", said)]
        for finding in found:
            known = kinds.setdefault(finding.kind, finding)
            if known.doubt and not finding.doubt:
                kinds[finding.kind] = finding
    return list(kinds.values())


def checked(
    paths: Iterable[Path],
    failures: dict[Path, str] | None = None,
    usable: Callable[[KSpaceFile], None] = lambda _: None,
) -> list[KSpaceFile]:
    """Return the files that can be used, and log their doubts, a line for each kind.

    `failures` takes up the files that are refused, and why; without it, one that
    contradicts itself raises. So does `usable` for one that cannot be used anyway.
    """
    files: list[KSpaceFile] = []
    doubts: list[tuple[KSpaceFile, Finding]] = []
    for path in shown([*paths], "check", "volume"):
        try:
            file = KSpaceFile.inspect(path)
            found = _doubts(file)
            usable(file)
        except InputError as error:
            if failures is None:
                raise
            failures[path] = str(error)
        else:
            files.append(file)
            doubts += product([file], found)
    for line in summary(doubts):
        LOG.warning(line)
    return files


def _doubts(file: KSpaceFile) -> list[Finding]:
    found = findings(file)
    for finding in found:
        require(finding.doubt, f"{file.path}: {finding.text}")
    return found


def summary(doubts: Iterable[tuple[KSpaceFile, Finding]]) -> list[str]:
    """Return one line for each kind of doubt: its first file, and how many more."""
    kinds: dict[str, list[tuple[Path, str]]] = {}
    for file, finding in doubts:
        kinds.setdefault(finding.kind, []).append((file.path, finding.text))
    return [
        f"{path}{f' and {len(more)} more' if more else ''}: {text}"
        for (path, text), *more in kinds.values()
    ]


def _of_layout(file: KSpaceFile) -> Iterator[Finding]:
    challenge, _, split = file.folder.partition("_")
    axes = {"singlecoil": 3, "multicoil": 4}.get(challenge) if split else None
    if axes not in (None, len(file.shape)):
        text = f"k-space has shape {file.shape}, which does not belong into "
        text += f"{file.folder}: move it"
        if challenge == "multicoil":
            text += ", or insert an axis of slices if its first is that of the coils"
        yield Finding("folder", text)
        return
    found = [*_of_axes(file)]
    yield from found
    if all(finding.doubt for finding in found):
        yield from _of_header(file)
    if file.mask is not None and (stated := file.number("acceleration")) is not None:
        own = 1 / float(file.mask[slice(*file.padding)].mean(dtype=np.float64))
        if not 1 / OTHERWISE < stated / own < OTHERWISE:
            text = f"the attribute 'acceleration' is {stated:.3g}, but the mask has "
            text += f"{own:.3g}: repair the attribute"
            yield Finding("acceleration", text, doubt=True)


def _of_axes(file: KSpaceFile) -> Iterator[Finding]:
    """Find coils, or slices of a single coil, that are another axis than is read."""
    several, (first, middle, last) = len(file.shape) == 4, file.shape[-3:]
    what, axes = ("coils", "slices, coils") if several else ("slices", "slices")
    cure = f"if the {what} are last, use numpy.moveaxis(kspace, -1, {int(several)})"
    encoded = file.header.encoded[:2] if file.header else None
    coils = file.header.coils if file.header else 0
    told_slices = file.header is not None and file.header.slices > 1
    rows, cols = file.target_size or (0, 0)
    told = file.target_size or (encoded and encoded[1] == last)
    if encoded == (first, middle) != (middle, last):
        source = f"the header speaks of {first} x {middle} encoded rows and columns"
    elif last < cols <= middle and rows <= first:
        source = f"the target has {rows} rows and {cols} columns"
    elif not told and first > last:
        source = f"{first} {what} of {last} columns are rare"
    elif coils == file.slices > 1 and several and coils != file.coils:
        source = f"the header speaks of {coils} receiver channels"
        cure = "if the coils are first, use numpy.swapaxes(kspace, 0, 1)"
    elif coils == file.slices > 1 and not (several or told_slices or file.target):
        source = f"the header speaks of {coils} receiver channels, and of one slice"
        cure = "if they are its coils, insert an axis before them"
    else:
        return
    text = f"k-space has shape {file.shape}, read as ({axes}, rows, cols), but {source}"
    sure = (several or bool(encoded)) and "channels" not in source
    yield Finding("axes", f"{text}: {cure}", doubt=not sure)


def _of_header(file: KSpaceFile) -> Iterator[Finding]:
    (rows, cols), header = file.shape[-2:], file.header
    if header is None:
        text = "no ISMRMRD header: all columns are taken as measured, and images are "
        text += f"cropped to {file.crop[0]} x {file.crop[1]}"
        yield Finding("no header", text, doubt=True)
        return
    if header.trajectory.lower() not in ("", "cartesian"):
        text = f"the header says that the trajectory is {header.trajectory}, but "
        text += "k-space is read as Cartesian: grid the data first, or correct it"
        yield Finding("trajectory", text)
    says = f"the header speaks of {header.encoded[1]} encoded columns, but k-space has"
    if rows != cols and header.encoded[:2] == (cols, rows):
        text = f"{says} {cols}, and as many rows: exchange its last two axes"
        yield Finding("encoded", text)
    elif header.encoded[1] != cols:
        text = f"{says} {cols}, so the wrong ones may count as measured: repair it, or "
        text += "remove the data set 'ismrmrd_header'"
        yield Finding("encoded", text, doubt=file.mask is not None)  # says it as well
    elif header.encoded[0] != rows:
        text = f"the header speaks of {header.encoded[0]} encoded rows, but k-space has"
        text += f" {rows}: right if the readout oversampling was removed before"
        yield Finding("encoded rows", text, doubt=True)


def _of_slice(file: KSpaceFile, index: int) -> Iterator[Finding]:
    kspace = file.kspace(index)
    kspace = kspace.reshape(-1, *kspace.shape[-2:])
    power = np.square(np.abs(kspace), dtype=np.float64).sum(axis=0)
    found: list[Finding] = []
    if power.any():
        found = [*_of_rows(kspace, power, index), *_of_columns(file, kspace, index)]
        found += [*_of_center(power), *_of_hybrid(kspace)]
    else:
        text = f"k-space of slice {index} is zero everywhere: leave it out"
        yield Finding("nothing", text, doubt=True)
    yield from found
    whole = file.mask is None or bool(file.mask[slice(*file.padding)].all())
    if file.target is not None and whole and all(finding.doubt for finding in found):
        yield from _of_target(file, kspace, index)


def _of_rows(kspace: NDArray[Any], power: Image, index: int) -> Iterator[Finding]:
    """Find rows, or samples, of nothing among others, which no readout leaves out."""
    there = power > 0
    between = _between(there)
    filled = np.flatnonzero(there.any(axis=1))
    lost = float((between & ~there).sum() / between.sum())
    if zeros := np.ptp(filled) + 1 - len(filled):
        text = f"{zeros} of {len(power)} rows of k-space are zero in slice {index}, "
        text += "but masks run along the columns: exchange the last two axes"
        yield _unless_noiseless("rows", text, kspace, 0)
    elif lost > SCATTERED:
        text = f"{lost:.0%} of the samples of k-space are zero in slice {index}, but "
        text += "masks are of whole columns: take full or Cartesian data"
        yield _unless_noiseless("rows", text, kspace, 0, doubt=lost < 1 / 4)


def _unless_noiseless(
    kind: str, text: str, kspace: NDArray[Any], axis: int, *, doubt: bool = False
) -> Finding:
    """Return an error, or a doubt of lines that phantoms without noise have, too.

    Their image is empty beside the object, for example a box, and some lines of its
    k-space are zero. Those that a mask leaves out spread the object along the axis.
    """
    image = _image(kspace, (-2, -1))
    lines = image.T if axis == 0 else image
    bright = lines[lines.max(axis=1) > BRIGHT * image.max()]
    phantom = bool((bright < FAINT * image.max()).mean() > SCATTERED)
    text += ", unless it is a phantom without noise" * phantom
    return Finding(kind, text, doubt or phantom)


def _energies(kspace: NDArray[Any]) -> Image:
    power = np.square(np.abs(kspace), dtype=np.float64)
    columns: Image = power.reshape(-1, kspace.shape[-1]).sum(axis=0)
    return columns


def _measured(kspace: NDArray[Any]) -> Columns:
    """Return which columns of a slice were measured.

    Not those of zeros, nor between others those of what rounding leaves of zeros.
    """
    energies = _energies(kspace)
    loud = energies > EMPTY * energies.max()
    measured: Columns = np.where(_between(loud), loud, energies > 0)
    return measured


def _between(there: Columns) -> Columns:
    """Return what lies between the first and the last along the first axis."""
    first, last = (np.maximum.accumulate(one, 0) for one in (there, there[::-1]))
    return first & last[::-1]


def _of_columns(file: KSpaceFile, kspace: Any, index: int) -> Iterator[Finding]:
    """Compare the columns that are not zero with those that should not be."""
    (left, right), columns = file.padding, np.arange(file.shape[-1])
    energies = _energies(kspace)
    loud = energies > EMPTY * energies.max()
    encoded = (columns >= left) & (columns < right)
    inside = encoded if file.mask is None else file.mask.astype(bool)
    outside = np.flatnonzero(loud & ~encoded)
    if len(outside) and file.header:
        text = f"the header limits the encoding to columns {left} to {right - 1} "
        text += f"(center {file.header.center}, maximum {file.header.maximum}, minimum "
        text += f"{file.header.minimum}), but k-space has values in {outside[0]} to "
        yield Finding("limits", f"{text}{outside[-1]} of {len(columns)}: repair it")
    elif (loud & ~inside).any():
        text = f"k-space of slice {index} is not zero where the mask is: one of them "
        yield Finding("mask", f"{text}belongs to another file")
    else:
        yield from _of_zeros(file, kspace, inside, index)


def _of_zeros(
    file: KSpaceFile, kspace: NDArray[Any], inside: Columns, index: int
) -> Iterator[Finding]:
    measured = _measured(kspace)
    here = inside & ~measured
    missing = _missing(file, here)
    if lost := int(here.sum() - missing.sum()):
        text = f"{lost} columns of k-space of slice {index} are zero, but not in all "
        text += "slices: repair what was lost, or write a file for each mask"
        yield Finding("some zeros", text, doubt=lost <= len(measured) // 4)
    zeros = np.flatnonzero(missing)
    within = bool((missing & _between(measured)).any())
    if within and file.mask is None:
        text = f"{len(zeros)} of {len(measured)} columns of k-space are zero in every "
        text += "slice, but there is no data set 'mask': add it; no model can be "
        text += "trained on undersampled data"
        yield _unless_noiseless("undersampled", text, kspace, 1)
    elif len(zeros):
        source = "nothing says so: add a header or a mask"
        if file.mask is not None or file.header is not None:
            name = "header" if file.mask is None else "mask"
            source = f"the {name} says that they were measured: correct it"
        runs = np.split(zeros, np.flatnonzero(np.diff(zeros) > 1) + 1)
        ends = [runs[0], *runs[1:][-1:]]  # however many lie between
        named = " and ".join(f"{run[0]} to {run[-1]}" for run in ends)
        text = f"columns {named} of k-space are zero in every slice, {len(zeros)} of "
        yield Finding("zeros", f"{text}them, but {source}", doubt=not within)


def _missing(file: KSpaceFile, columns: Columns) -> Columns:
    """Return those of the columns that are zero in every slice."""
    for other in range(file.slices):
        if not columns.any():
            break
        columns = columns & ~_measured(file.kspace(other))
    return columns


def _of_center(power: Image) -> Iterator[Finding]:
    for axis, name in enumerate(("row", "column")):
        energy = power.sum(axis=1 - axis)
        peak, middle = int(energy.argmax()), len(energy) // 2
        away = abs(peak - middle)
        flat = energy[peak] < PROMINENT * np.median(energy[energy > 0])
        if len(energy) < 8 or flat or away <= len(energy) // 8:
            continue
        text = f"most energy of k-space is in {name} {peak} of {len(energy)}, but the "
        text += f"center of masks and transforms is {middle}: apply "
        text += "numpy.fft.fftshift, or pad what is partial"
        doubt = axis == 0 or away <= len(energy) // 4
        yield Finding(f"center {name}", text, doubt=doubt)


def _of_hybrid(kspace: NDArray[Any]) -> Iterator[Finding]:
    """Find axes along which the transform of k-space looks more like k-space."""
    for axis, name in ((-2, "rows"), (-1, "columns")):
        before, after = (
            _spread(k, axis) for k in (kspace, fft.ifft(kspace, axis=axis))
        )
        if before > max(FLAT * after, kspace.shape[axis] / 8):
            text = f"the energy of k-space is spread over {before:.0f} {name}, but over"
            text += f" {after:.0f} after a transform along them: if it is hybrid, "
            text += "transform them with fft"
            yield Finding(f"hybrid {name}", text, doubt=True)


def _spread(kspace: NDArray[Any], axis: int) -> float:
    """Return over how many lines energy is spread, as if all had the same."""
    energy = _energies(kspace.swapaxes(axis, -1))
    return float(energy.sum() ** 2 / np.square(energy).sum())


def _of_target(file: KSpaceFile, kspace: NDArray[Any], index: int) -> Iterator[Finding]:
    """Transform k-space and compare it with the target, in the same and other ways."""
    target = file.target_volume(index).astype(np.float64)
    name, largest, stated = f"{file.target}", float(target.max()), file.number("max")
    place = f"slice {index} of {name}"
    if stated is not None and stated > 2 * largest:  # does any other slice have that?
        largest, place = float(file.target_volume().max()), name
    wrong = largest > (1 + CLOSE) * (stated or 0) or (stated or 0) > 2 * largest
    if stated is not None and wrong:
        text = f"the attribute 'max' is {stated:.6g}, but {place} has {largest:.6g}: "
        yield Finding("max", f"{text}repair the attribute")
    plane = kspace.shape[-2:]
    same = all(n <= m for n, m in zip(target.shape, plane, strict=True))
    same = same or target.shape == plane[::-1]
    if same and target.any():  # else it is another field of view, or air
        yield from _of_ways(name, index, *min(_ways(kspace, target)))


def _of_ways(
    name: str, index: int, error: float, scale: float, cure: str
) -> Iterator[Finding]:
    """Judge the best way to transform k-space to its target."""
    if cure:
        text = f"k-space of slice {index} is not transformed to {name} by the centered "
        yield Finding("target", f"{text}transform, but otherwise: {cure}")
    elif error > OTHER:
        text = f"{name} of slice {index} is no image of its k-space, whatever the scale"
        text += f" (NMSE {error:.2g}), shift or flip: one is of another file or slice"
        yield Finding("target", text)
    elif abs(np.log(scale)) > (SCALE if error <= CLOSE else np.log(2)):
        text = f"{name} is {scale:.5g} times the orthonormal transform of k-space: "
        yield Finding("scale", f"{text}scale one of them, for example by norm='ortho'")
    elif error > CLOSE:
        text = f"{name} differs from the transform of k-space by an NMSE of "
        text += f"{error:.2g}: it may be filtered, or of other coils"
        yield Finding("target", text, doubt=True)


def _ways(kspace: NDArray[Any], target: Image) -> Iterator[tuple[float, float, str]]:
    """Yield NMSE, best scale and cure of the ways to transform k-space to the target.

    The first is the right one, without a cure; others follow if it is not the one.
    """
    error, scale = _fit(target, _image(kspace, (-2, -1)))
    yield error, scale, ""
    if error <= CLOSE:
        return
    turns = list(product(("", "shift"), ("", "flip", "conjugate")))
    for axes, hybrid in TRANSFORMED.items():
        whole = _image(kspace, axes)
        for exchanged, *turn in product(("", EXCHANGED), turns, turns):
            image = whole.T if exchanged else whole
            for axis, (shift, flip) in enumerate(turn):
                image = _turned(image, axis, shift, flip)
            way = _fit(target, image)
            if way[0] <= min(CLOSE, error / 4):
                cures = (hybrid, exchanged, *_cures(*turn))
                yield *way, "; ".join(filter(None, cures))


def _turned(image: Image, axis: int, shift: str, flip: str) -> Image:
    size = image.shape[axis]
    if flip:
        image = np.flip(image, axis)
    if flip == "conjugate" and size % 2 == 0:  # about the pixel at size // 2
        image = np.roll(image, 1, axis)
    return np.roll(image, size // 2, axis) if shift else image


def _cures(rows: tuple[str, str], cols: tuple[str, str]) -> Iterator[str]:
    along = {"rows": rows, "columns": cols}
    if shifted := " and ".join(name for name, (shift, _) in along.items() if shift):
        text = f"images are shifted by half along {shifted}: multiply every second "
        yield f"{text}sample along them by -1, or apply ifftshift before the fft"
    if rows[1] == cols[1] == "conjugate":
        yield "k-space is conjugated: take its numpy.conj"
    elif flipped := " and ".join(name for name, (_, flip) in along.items() if flip):
        yield f"the target is flipped along {flipped}: flip it back"


def _image(kspace: NDArray[Any], axes: tuple[int, ...]) -> Image:
    """Return the root-sum-of-squares of the coils, transformed over some axes."""
    images = fft.fftshift(fft.ifftn(kspace, axes=axes, norm="ortho"), axes=axes)
    combined: Image = np.linalg.norm(images.astype(np.complex128), axis=0)
    return combined


def _fit(target: Image, image: Image) -> tuple[float, float]:
    """Return the NMSE after the best scale of an image, cropped, and this scale."""
    (rows, cols), (height, width) = image.shape, target.shape
    if height > rows or width > cols:
        return 1.0, 1.0
    top, left = (rows - height) // 2, (cols - width) // 2
    image = image[top : top + height, left : left + width]
    both, own = float((target * image).sum()), float(np.square(image).sum())
    if not both > 0:
        return 1.0, 1.0
    scale = both / own
    return max(0.0, 1 - scale * both / float(np.square(target).sum())), scale
