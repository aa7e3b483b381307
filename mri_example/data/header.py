"""The part of an ISMRMRD header that the pipeline reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from mri_example.errors import InputError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
STEPS = ("encodingLimits", "kspace_encoding_step_1")
XML = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="{namespace}">
  <acquisitionSystemInformation>
    <systemModel>{scanner}</systemModel>
  </acquisitionSystemInformation>
  <encoding>
    <encodedSpace><matrixSize>{encoded}</matrixSize></encodedSpace>
    <reconSpace><matrixSize>{recon}</matrixSize></reconSpace>
    <trajectory>{trajectory}</trajectory>
    <encodingLimits><kspace_encoding_step_1>
      <minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>
    </kspace_encoding_step_1></encodingLimits>
  </encoding>
</ismrmrdHeader>
"""
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
    """

    encoded: Size
    recon: Size
    center: int
    maximum: int
    scanner: str = ""
    trajectory: str = ""

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
            encoding = root.find(_path("encoding"))
            if encoding is None:
                raise LookupError("it lacks encoding")
            scanner = _path("acquisitionSystemInformation", "systemModel")
            return cls(
                encoded=_size(encoding, "encodedSpace"),
                recon=_size(encoding, "reconSpace"),
                center=_number(encoding, *STEPS, "center"),
                maximum=_number(encoding, *STEPS, "maximum"),
                scanner=(root.findtext(scanner) or "").strip(),
                trajectory=(encoding.findtext(_path("trajectory")) or "").strip(),
            )
        except (ElementTree.ParseError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the ISMRMRD header cannot be read ({error}): remove the data set "
                f"'ismrmrd_header' to have the sizes taken from the k-space"
            ) from error

    def xml(self) -> bytes:
        """Write the header."""
        sizes = {"encoded": self.encoded, "recon": self.recon}
        matrices = {
            name: "<x>{}</x><y>{}</y><z>{}</z>".format(*size)
            for name, size in sizes.items()
        }
        return XML.format(
            namespace=NAMESPACE,
            scanner=escape(self.scanner),
            trajectory=escape(self.trajectory),
            maximum=self.maximum,
            center=self.center,
            **matrices,
        ).encode()


def _path(*names: str) -> str:
    return "/".join(f"{{{NAMESPACE}}}{name}" for name in names)


def _number(encoding: ElementTree.Element, *names: str) -> int:
    text = encoding.findtext(_path(*names))
    if text is None:
        raise LookupError(f"it lacks {'/'.join(names)}")
    if not text.strip().isdecimal():
        raise ValueError(f"{text!r} is not a number of voxels or steps")
    return int(text)


def _size(encoding: ElementTree.Element, space: str) -> Size:
    x, y, z = (_number(encoding, space, "matrixSize", axis) for axis in "xyz")
    if not x * y * z:
        raise ValueError(f"the matrix of the {space} is {x} x {y} x {z}")
    return x, y, z
