"""Under which conditions a volume was acquired and undersampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNKNOWN = "unknown"


@dataclass(frozen=True, order=True)
class Condition:
    """What volumes are grouped by.

    Attributes:
        acquisition: For example `CORPD_FBK`, or `unknown`.
        acceleration: For example `4`, or `unknown`.

    Examples:
        >>> print(Condition.of({"acquisition": "AXT2"}, {"acceleration": 4.0}))
        AXT2, 4x
        >>> print(Condition.of({}, {}))
        unknown, unknown
    """

    acquisition: str
    acceleration: str

    @classmethod
    def of(
        cls, target: Mapping[str, Any], reconstruction: Mapping[str, Any]
    ) -> Condition:
        """Read the condition from the attributes of two files.

        The acceleration is that of the reconstruction, or where it does not say it, as
        those of others may not, that of the file with the target.
        """
        told = reconstruction.get("acceleration", target.get("acceleration"))
        return cls(attribute_text(target.get("acquisition")), attribute_text(told))

    def __str__(self) -> str:
        known = self.acceleration != UNKNOWN
        return f"{self.acquisition}, {self.acceleration}{'x' if known else ''}"


def attribute_text(value: Any) -> str:
    """Return an attribute as it is compared and shown, numbers without their type.

    Examples:
        >>> attribute_text(4.0), attribute_text(b"8"), attribute_text("AXT2")
        ('4', '8', 'AXT2')
        >>> attribute_text(None)
        'unknown'
    """
    if value is None:
        return UNKNOWN
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
