"""Where it is computed."""

from __future__ import annotations

import torch

from mri_example.errors import InputError


def check_device(device: str) -> None:
    """Make sure that tensors can be put on a device.

    Raises:
        InputError: If there is no such device here.

    Examples:
        >>> check_device("cpu")
        >>> check_device("toaster")
        Traceback (most recent call last):
            ...
        mri_example.errors.InputError: device is 'toaster', which cannot be used here...
    """
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"device is {device!r}, which cannot be used here ({first}): name another, "
            f"for example cpu or cuda:0"
        ) from error
