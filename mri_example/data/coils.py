"""Receive coils of simulated data: what each sees, and how their noise agrees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RADIUS = 1.3  # of the ring of coils, in half widths of the image
REACH = 0.9  # distance at which a coil sees half of its largest signal, likewise


def coil_maps(
    coils: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> NDArray[np.complex128]:
    r"""Simulate smooth sensitivity maps of coils on a ring around the head.

    $$ S_c(r) \propto \frac{e^{i (\varphi_c + \kappa_c \cdot r)}}
                           {1 + \lVert r - r_c \rVert^2 / w^2},
       \qquad \sum_c |S_c(r)|^2 = 1 $$

    The phase $\varphi_c$ is the angle of the coil plus a random one, and turns slowly
    along a random direction $\kappa_c$.

    Args:
        coils: How many.
        shape: Slices, rows and columns.
        rng: What positions and phases follow from.

    Returns:
        `(coils, slices, rows, cols)`.
    """
    lines = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    z, y, x = np.meshgrid(*lines, indexing="ij", sparse=True)
    maps = np.empty((coils, *shape), dtype=np.complex128)
    for coil, one in enumerate(maps):
        angle = 2 * np.pi * (coil + rng.uniform(-0.2, 0.2)) / coils
        height = rng.uniform(-0.5, 0.5)
        away = (
            (x - RADIUS * np.cos(angle)) ** 2
            + (y - RADIUS * np.sin(angle)) ** 2
            + (z - height) ** 2
        )
        right, down, along = rng.uniform(-0.5, 0.5, 3)
        phase = angle + rng.uniform(0, 2 * np.pi) + right * x + down * y + along * z
        one[:] = np.exp(1j * phase) / (1 + away / REACH**2)
    sees = np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    normalized: NDArray[np.complex128] = maps / sees
    return normalized


def noise_covariance(coils: int, correlation: float) -> NDArray[np.float64]:
    r"""Return the covariance of the noise of coils on a ring, $\rho^{d}$.

    Args:
        coils: How many.
        correlation: That of neighbours, $\rho$, in [0, 1).

    Returns:
        `(coils, coils)` with a unit diagonal; $d$ is the distance along the ring.

    Examples:
        >>> noise_covariance(3, 0.5)
        array([[1. , 0.5, 0.5],
               [0.5, 1. , 0.5],
               [0.5, 0.5, 1. ]])
    """
    apart = np.abs(np.subtract.outer(np.arange(coils), np.arange(coils)))
    ring = np.minimum(apart, coils - apart)
    covariance: NDArray[np.float64] = np.power(float(correlation), ring)
    return covariance
