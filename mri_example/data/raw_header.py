"""What the header of an ISMRMRD raw file says of the scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mri_example.data.header import NAMESPACE, Header
from mri_example.errors import InputError


@dataclass(frozen=True)
class RawHeader:
    """A scan with one Cartesian encoding of slices.

    Attributes:
        xml: The whole header.
        sizes: Matrices, and limits of the phase encoding.
        acquisition: Name of the protocol, or "UNKNOWN".
        patient: Identifier of the patient, or the name of the file.
    """

    xml: bytes
    sizes: Header
    acquisition: str
    patient: str

    @classmethod
    def parse(cls, xml: bytes, path: Path) -> RawHeader:
        """Read a header.

        Args:
            xml: The header.
            path: The file that it stands in.

        Raises:
            InputError: If it cannot be read, lacks the sizes, has several encodings, or
                the trajectory is not Cartesian.
        """
        root = _parsed(xml, path)
        _check_encodings(root, path)
        try:
            sizes = Header.parse(xml)
        except InputError as error:
            raise _without_sizes(path, error.__cause__) from error
        protocol = _text(root, "measurementInformation", "protocolName")
        patient = _text(root, "subjectInformation", "patientID")
        return cls(xml, sizes, protocol or "UNKNOWN", patient or path.stem)


def _parsed(xml: bytes, path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise _without_sizes(path, error) from error


def _without_sizes(path: Path, reason: BaseException | None) -> InputError:
    return InputError(
        f"{path}: its XML header does not say the sizes of the scan ({reason}): "
        f"convert the scanner's file again"
    )


def _check_encodings(root: ElementTree.Element, path: Path) -> None:
    encodings = root.findall(_path("encoding"))
    if len(encodings) != 1:
        raise InputError(
            f"{path} has {len(encodings)} encodings, but must have one: write each "
            f"into a file of its own"
        )
    trajectory = _text(encodings[0], "trajectory")
    if trajectory.lower() != "cartesian":
        raise InputError(
            f"{path} has a trajectory that is {trajectory or 'not named'}, but must "
            f"be cartesian: grid its data first"
        )


def _path(*names: str) -> str:
    return "/".join(f"{{{NAMESPACE}}}{name}" for name in names)


def _text(element: ElementTree.Element, *names: str) -> str:
    return (element.findtext(_path(*names)) or "").strip()
