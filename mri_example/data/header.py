"""The part of an ISMRMRD header that the pipeline reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from mri_example.errors import InputError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
SCANNER = ("acquisitionSystemInformation", "systemModel")
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Header:
    """Sizes of a scan.

    An ISMRMRD header says much more; what is written here is what the pipeline reads.

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
        """Columns from the first to before the second were measured at all.

        The first is `encoded y // 2 - center`; there are `maximum + 1` of them.
        """
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
            step = _path("encodingLimits", "kspace_encoding_step_1")
            return cls(
                encoded=_size(encoding, "encodedSpace"),
                recon=_size(encoding, "reconSpace"),
                center=_number(encoding, f"{step}/{_path('center')}"),
                maximum=_number(encoding, f"{step}/{_path('maximum')}"),
                scanner=(root.findtext(_path(*SCANNER)) or "").strip(),
                trajectory=(encoding.findtext(_path("trajectory")) or "").strip(),
            )
        except (ElementTree.ParseError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the ISMRMRD header cannot be read ({error}): remove the data set "
                f"'ismrmrd_header' to have the sizes taken from the k-space"
            ) from error

    def xml(self) -> bytes:
        """Write the header."""
        ElementTree.register_namespace("", NAMESPACE)
        root = ElementTree.Element(_path("ismrmrdHeader"))
        if self.scanner:
            _nested(root, *SCANNER).text = self.scanner
        encoding = ElementTree.SubElement(root, _path("encoding"))
        for name, size in (("encodedSpace", self.encoded), ("reconSpace", self.recon)):
            matrix = _nested(encoding, name, "matrixSize")
            for axis, value in zip("xyz", size, strict=True):
                _nested(matrix, axis).text = str(value)
        if self.trajectory:
            _nested(encoding, "trajectory").text = self.trajectory
        limits = _nested(encoding, "encodingLimits", "kspace_encoding_step_1")
        steps = {"minimum": 0, "maximum": self.maximum, "center": self.center}
        for name, value in steps.items():
            _nested(limits, name).text = str(value)
        xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
        return xml


def _path(*names: str) -> str:
    return "/".join(f"{{{NAMESPACE}}}{name}" for name in names)


def _nested(parent: ElementTree.Element, *names: str) -> ElementTree.Element:
    for name in names:
        parent = ElementTree.SubElement(parent, _path(name))
    return parent


def _number(element: ElementTree.Element, path: str) -> int:
    text = element.findtext(path)
    if text is None:
        raise LookupError(f"it lacks {path.replace(f'{{{NAMESPACE}}}', '')}")
    if not text.strip().isdecimal():
        raise ValueError(f"{text!r} is not a number of voxels or steps")
    return int(text)


def _size(encoding: ElementTree.Element, space: str) -> Size:
    x, y, z = (_number(encoding, _path(space, "matrixSize", axis)) for axis in "xyz")
    if not x * y * z:
        raise ValueError(f"the matrix of the {space} is {x} x {y} x {z}")
    return x, y, z
