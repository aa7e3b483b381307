"""Arrays to and from BART, the Berkeley Advanced Reconstruction Toolbox.

BART is a program: arrays reach it as files. Its axes are readout, two phase encodings
and coils, in this order, and the first varies fastest.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from mri_example.errors import InputError

Array = NDArray[np.complex64]


def bart(command: str, *inputs: Array) -> Array:
    """Run a command of BART.

    Args:
        command: For example `fft -u 7`.
        inputs: Complex arrays, in the order in which BART counts axes.

    Returns:
        The result, without axes of length one at the end.

    Raises:
        InputError: If BART is not installed or the command fails.

    References:
        Uecker et al., *Berkeley Advanced Reconstruction Toolbox*, 2015.
        https://mrirecon.github.io/bart/
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        for i, array in enumerate(inputs):
            _write(folder / f"in{i}", array)
        files = [str(folder / f"in{i}") for i in range(len(inputs))]
        _run(["bart", *command.split(), *files, str(folder / "out")])
        return _read(folder / "out")


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InputError("BART is not installed: apt install bart") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip() or f"exit code {error.returncode}"
        raise InputError(
            f"`{' '.join(command[:-1])}` failed ({said}): check shape and options"
        ) from error


def _write(path: Path, array: Array) -> None:
    sizes = " ".join(str(n) for n in array.shape)
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{sizes}\n")
    path.with_suffix(".cfl").write_bytes(array.astype("<c8").tobytes(order="F"))


def _read(path: Path) -> Array:
    lines = path.with_suffix(".hdr").read_text().splitlines()
    sizes = [int(n) for n in lines[lines.index("# Dimensions") + 1].split()]
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    flat = np.fromfile(path.with_suffix(".cfl"), dtype="<c8")
    return flat.reshape(sizes, order="F")
