"""ISMRMRD headers: the part that the pipeline reads and writes, and square pixels."""

import math
from dataclasses import dataclass
from typing import Self
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from mri_example.errors import require, reworded

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
NAMES = {"": NAMESPACE}
LIMITS = "encoding/encodingLimits"
SYSTEM = "acquisitionSystemInformation"
SIMILAR = 0.02  # relative difference of sizes that are rounded
FARTHEST = 10  # ratio of pixel sizes, and of fields of view, of one unit
UNREADABLE = (ElementTree.ParseError, LookupError, TypeError, ValueError)
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Header:
    """Sizes of a scan.

    Attributes:
        encoded: Matrix of the encoded space: readout, phase encoding, slices.
        recon: Matrix of the reconstructed space, in the same order.
        center: Index of the central phase-encoding step.
        maximum: Highest index of the phase-encoding steps.
        scanner: Its model, for example `Skyra`, or "" where the header does not say it.
        trajectory: For example `cartesian`, or "" likewise.
        coils: Number of receiver channels, or 0 likewise.
        minimum: Lowest index of the phase-encoding steps.
        slices: Number of slices by their limits, 1 where the header does not say it.
        calibration: How calibration lines were measured, for example `embedded`, or "".
    """

    encoded: Size
    recon: Size
    center: int
    maximum: int
    scanner: str = ""
    trajectory: str = ""
    coils: int = 0
    minimum: int = 0
    slices: int = 1
    calibration: str = ""

    @property
    def padding(self) -> tuple[int, int]:
        """Columns from the first to before the second were measured at all."""
        first = self.encoded[1] // 2 - self.center
        return first + self.minimum, first + self.maximum + 1

    @classmethod
    def parse(cls, xml: bytes) -> Self:
        """Read a header.

        Raises:
            InputError: If it is not XML, or a field is missing or not a size.
        """
        text = "the ISMRMRD header cannot be read ({}): remove the data set "
        text += "'ismrmrd_header' to have the sizes taken from the k-space"
        with reworded(text, *UNREADABLE):
            return cls.of(ElementTree.fromstring(xml))

    @classmethod
    def of(cls, root: ElementTree.Element) -> Self:
        """Read the elements of a header."""
        step, ends = f"{LIMITS}/kspace_encoding_step_1", ("minimum", "maximum")
        first, last = (_number(root, f"{LIMITS}/slice/{end}", "0") for end in ends)
        return cls(
            encoded=_size(root, "encoding/encodedSpace"),
            recon=_size(root, "encoding/reconSpace"),
            center=_number(root, f"{step}/center"),
            maximum=_number(root, f"{step}/maximum"),
            scanner=text_of(root, f"{SYSTEM}/systemModel"),
            trajectory=text_of(root, "encoding/trajectory"),
            coils=_number(root, f"{SYSTEM}/receiverChannels", "0"),
            minimum=_number(root, f"{step}/minimum", "0"),
            slices=last - first + 1,
            calibration=text_of(root, "encoding/parallelImaging/calibrationMode"),
        )

    def xml(self) -> bytes:
        """Write the header."""
        matrix = "<matrixSize><x>{}</x><y>{}</y><z>{}</z></matrixSize>"
        return f"""<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="{NAMESPACE}">
  <acquisitionSystemInformation>
    <systemModel>{escape(self.scanner)}</systemModel>
    <receiverChannels>{self.coils}</receiverChannels>
  </acquisitionSystemInformation>
  <encoding>
    <encodedSpace>{matrix.format(*self.encoded)}</encodedSpace>
    <reconSpace>{matrix.format(*self.recon)}</reconSpace>
    <trajectory>{escape(self.trajectory)}</trajectory>
    <encodingLimits><kspace_encoding_step_1>
      <minimum>{self.minimum}</minimum><maximum>{self.maximum}</maximum>
      <center>{self.center}</center>
    </kspace_encoding_step_1></encodingLimits>
  </encoding>
</ismrmrdHeader>
""".encode()


def text_of(root: ElementTree.Element, path: str) -> str:
    """Return what an element says, "" if it is not there."""
    return root.findtext(path, "", NAMES).strip()


def _number(root: ElementTree.Element, path: str, default: str = "") -> int:
    text = text_of(root, path) or default
    require(text, f"it lacks {path}")
    require(text.isdecimal(), f"{text!r} is not a number of voxels or steps")
    return int(text)


def _size(root: ElementTree.Element, space: str) -> Size:
    x, y, z = (_number(root, f"{space}/matrixSize/{axis}") for axis in "xyz")
    require(x * y * z, f"the matrix of {space} is {x} x {y} x {z}")
    return x, y, z


def whole_header(xml: bytes) -> tuple[ElementTree.Element, Header, bytes, int]:
    """Return the header of a raw file of one Cartesian encoding, with square pixels.

    As elements, as what is read of them, and as XML; the number is that of the columns
    before pixels became square.
    """
    spaces = [f"encoding/{name}Space" for name in ("encoded", "recon")]
    places = [f"{space}/fieldOfView_mm/{axis}" for space in spaces for axis in "xy"]
    text = "the header does not say the sizes of the scan ({}): correct it"
    with reworded(text, *UNREADABLE):
        root = ElementTree.fromstring(xml)
        header = Header.of(root)
        views = [float(text_of(root, place) or 0) for place in places]
    count, name = len(root.findall("encoding", NAMES)), header.trajectory
    cure = "write each into a file of its own"
    require(count == 1, f"{count} encodings, but there must be one: {cure}")
    text = f"a trajectory that is {name or 'not named'}, not cartesian: grid the data"
    require(name.lower() == "cartesian", text)
    before = (*header.encoded[:2], *header.recon[:2])
    after = _square(*before, *views)
    if after != before:
        sizes = [f"{space}/matrixSize/{axis}" for space in spaces for axis in "xy"]
        for place, size in zip(sizes, after, strict=True):
            next(root.iterfind(place, NAMES)).text = str(size)
        header, xml = Header.of(root), ElementTree.tostring(root)
    return root, header, xml, before[1]


def _square(
    x: int, y: int, u: int, v: int, wide: float, high: float, seen: float, tall: float
) -> tuple[int, ...]:
    """Enlarge matrices of `(x, y)` encoded and `(u, v)` shown to square pixels.

    By their fields of view in mm, if the header says them.
    """
    if not all(0 < view < math.inf for view in (wide, high, seen, tall)):
        return x, y, u, v
    pixel = wide / x
    ratios = (high / y / pixel, wide / seen, high / tall)
    text = f"{x} x {y} encoded pixels are {wide:g} x {high:g} mm, and {seen:g} x "
    text += f"{tall:g} mm are shown: correct the fields of view in its header"
    require(all(1 / FARTHEST < ratio < FARTHEST for ratio in ratios), text)
    cols = max(y, _near(high / pixel, y))
    return x, cols, _near(seen / pixel, u), _near(tall / high * cols, v)


def _near(size: float, said: int) -> int:
    return said if abs(size - said) <= SIMILAR * said else max(1, round(size))
