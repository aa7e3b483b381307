"""What kind of scan a file holds, for models that know some kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

UNKNOWN = "unknown"
REPEATED = "REPEAT"  # at the end of an acquisition that was done again


def scan_name(acquisition: Any, scanner: str) -> str:
    """Return the acquisition and the scanner it was done on.

    Args:
        acquisition: The attribute of a file, or `None`.
        scanner: The model that its header names, or "".

    Examples:
        >>> scan_name("CORPDFS_FBKREPEAT", "Skyra")
        'CORPDFS_FBK/Skyra'
        >>> scan_name(None, "")
        'unknown/unknown'
    """
    told = acquisition
    if isinstance(acquisition, bytes):
        told = acquisition.decode(errors="replace")
    kind = str(told or UNKNOWN).removesuffix(REPEATED)
    return f"{kind}/{scanner or UNKNOWN}"


def one_hot(scan: str, known: Sequence[str]) -> Tensor:
    """Return 1 at the place of a scan among the known ones, and 0 elsewhere.

    A scan that is none of them has zeros only: that is how unknown scanners look.

    Args:
        scan: What `scan_name` returned.
        known: The scans that a model knows.

    Returns:
        As many entries as there are known scans.

    Examples:
        >>> one_hot("AXT2/Aera", ["AXT1/Aera", "AXT2/Aera"]), one_hot("?/?", ["a/b"])
        (tensor([0., 1.]), tensor([0.]))
    """
    return torch.tensor([float(scan == name) for name in known])
