"""ISMRMRD headers: the part that the pipeline reads and writes, and square pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from mri_example.errors import InputError, require

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
LIMITS = "encoding/encodingLimits/kspace_encoding_step_1"
SYSTEM = "acquisitionSystemInformation"
SIMILAR = 0.02  # relative difference of sizes that are rounded
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
    """

    encoded: Size
    recon: Size
    center: int
    maximum: int
    scanner: str = ""
    trajectory: str = ""
    coils: int = 0

    @property
    def padding(self) -> tuple[int, int]:
        """Columns from the first to before the second were measured at all."""
        left = self.encoded[1] // 2 - self.center
        return left, left + self.maximum + 1

    @classmethod
    def parse(cls, xml: bytes) -> Header:
        """Read a header.

        Raises:
            InputError: If it is not XML, or a field is missing or not a size.
        """
        try:
            root = ElementTree.fromstring(xml)
            return cls(
                encoded=_size(root, "encoding/encodedSpace"),
                recon=_size(root, "encoding/reconSpace"),
                center=_number(root, f"{LIMITS}/center"),
                maximum=_number(root, f"{LIMITS}/maximum"),
                scanner=_text(root, f"{SYSTEM}/systemModel") or "",
                trajectory=_text(root, "encoding/trajectory") or "",
                coils=_number(root, f"{SYSTEM}/receiverChannels", "0"),
            )
        except (ElementTree.ParseError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the ISMRMRD header cannot be read ({error}): remove the data set "
                f"'ismrmrd_header' to have the sizes taken from the k-space"
            ) from error

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
      <minimum>0</minimum><maximum>{self.maximum}</maximum>
      <center>{self.center}</center>
    </kspace_encoding_step_1></encodingLimits>
  </encoding>
</ismrmrdHeader>
""".encode()


def _text(root: ElementTree.Element, path: str) -> str | None:
    text = root.findtext(path, namespaces={"": NAMESPACE})
    return None if text is None else text.strip()


def _number(root: ElementTree.Element, path: str, default: str | None = None) -> int:
    text = _text(root, path) or default
    if text is None:
        raise LookupError(f"it lacks {path}")
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of voxels or steps")
    return int(text)


def _size(root: ElementTree.Element, space: str) -> Size:
    x, y, z = (_number(root, f"{space}/matrixSize/{axis}") for axis in "xyz")
    if not x * y * z:
        raise ValueError(f"the matrix of {space} is {x} x {y} x {z}")
    return x, y, z


def whole_header(xml: bytes) -> tuple[Any, bytes, int]:
    """Return the header of a raw file of one Cartesian encoding, with square pixels.

    As the classes of `ismrmrd` and as XML; the number is that of the columns before
    pixels became square.
    """
    from ismrmrd import xsd  # which only `convert` needs

    try:
        document, header = xsd.CreateFromDocument(xml), Header.parse(xml)
    except (ValueError, TypeError, SyntaxError, LookupError) as error:
        said = error.__cause__ or error
        text = f"the header does not say the sizes of the scan ({said}): correct it"
        raise InputError(text) from error
    count, name = len(document.encoding), header.trajectory
    cure = "write each into a file of its own"
    require(count == 1, f"{count} encodings, but there must be one: {cure}")
    text = f"a trajectory that is {name or 'not named'}, not cartesian: grid the data"
    require(name.lower() == "cartesian", text)
    if _make_square(document.encoding[0]):
        xml = xsd.ToXML(document).encode()
    return document, xml, header.encoded[1]


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
