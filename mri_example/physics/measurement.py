"""What every measurement of accelerated MRI is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mri_example.sampling import undersample


class Measurement(ABC):
    r"""Measure images: $d = A\eta + n$ with $A = P E$.

    The encoding $E$ is linear and leads from an image to full k-space, $P$ keeps the
    measured part of it, and $n$ is white noise. All that belongs to one measurement is
    handed to the constructor.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        r"""Return the full k-space $E \eta$."""

    @abstractmethod
    def decode(self, kspace: Tensor) -> Tensor:
        r"""Return $E^* k$, the adjoint of `encode`."""

    def forward(self, image: Tensor) -> Tensor:
        r"""Return the noiseless k-space $P E \eta$."""
        return undersample(self.encode(image), self.mask)

    def adjoint(self, kspace: Tensor) -> Tensor:
        r"""Return $E^* P\, k$, the zero-filled image of measured k-space."""
        return self.decode(undersample(kspace, self.mask))

    def likelihood_gradient(self, image: Tensor, zero_filled: Tensor) -> Tensor:
        r"""Return the gradient of $\tfrac12 \lVert P E \eta - d \rVert^2$.

        Args:
            image: The estimate $\eta$.
            zero_filled: The measured data as an image, $E^* d$.

        Returns:
            $E^* P E \eta - E^* d$.
        """
        return self.adjoint(self.encode(image)) - zero_filled
