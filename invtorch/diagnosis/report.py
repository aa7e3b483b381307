"""The result of a diagnosis, as a table and as a figure."""

from __future__ import annotations

from typing import Any, NamedTuple


class LayerDiagnosis(NamedTuple):
    """The measurements of one layer; all errors are relative.

    Attributes:
        label: Index and class of the layer.
        round_trip: Distance of `inverse(forward(x))` from `x`.
        size: Norm of the layer's output, relative to that of the model's input.
        gain: Factor by which the layer's inverse multiplies the relative error that
            comes from the layers above.
        gradient: Error of the gradients of the parameters, compared with float64, with
            the options of the model.
        plain: The same error with plain autograd.
        difference: Distance of the gradients from those of plain autograd.
    """

    label: str
    round_trip: float
    size: float
    gain: float
    gradient: float
    plain: float
    difference: float


class Diagnosis(NamedTuple):
    """The result of `diagnose`; `print` shows it as a table.

    Attributes:
        layers: The measurements of each layer.
        gradient: Relative error of all gradients, compared with float64, with the
            options of the model.
        plain: The same error with plain autograd.
        growth: The largest norm of a state divided by the smallest.
        gain: Factor by which the model's inverse multiplies a relative error.
        refusals: The messages of the guard.
        recommendation: Which options or layers to change, as text.
    """

    layers: list[LayerDiagnosis]
    gradient: float
    plain: float
    growth: float
    gain: float
    refusals: list[str]
    recommendation: str

    def __str__(self) -> str:
        """Return the table and the recommendation."""
        width = max([len("layer"), *(len(layer.label) for layer in self.layers)])
        head = ("round trip", "size", "gain", "gradient", "plain", "difference")
        rows = [f"{'layer':{width}}" + "".join(f"{name:>12}" for name in head)]
        for label, *values in self.layers:
            numbers = "".join(f"{value:12.2g}" for value in values)
            rows.append(f"{label:{width}}{numbers}")
        rows.append(
            f"all gradients are {self.gradient:.2g} off, those of plain autograd "
            f"{self.plain:.2g} (both against float64; difference: of one from the "
            f"other)"
        )
        rows.append(
            f"the state grows {self.growth:.2g} times; inversion multiplies an error "
            f"by {self.gain:.2g}"
        )
        return "\n".join([*rows, self.recommendation])

    def plot(self) -> Any:
        """Plot errors, sizes and gains against the layers.

        Returns:
            A `matplotlib` figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "the picture of a diagnosis needs matplotlib: pip install matplotlib"
            ) from error
        figure = Figure(figsize=(8, 6), layout="constrained")
        errors, sizes = figure.subplots(2, sharex=True)
        for name, label in (
            ("gradient", "gradients, as configured"),
            ("plain", "gradients, plain autograd"),
            ("round_trip", "round trip of the layer"),
        ):
            errors.semilogy(
                [getattr(layer, name) for layer in self.layers], label=label
            )
        errors.set_ylabel("relative error")
        errors.legend()
        growths, product = [], 1.0
        for layer in reversed(self.layers):
            product *= layer.gain
            growths.append(product)
        sizes.semilogy([layer.size for layer in self.layers], label="size of the state")
        sizes.semilogy(growths[::-1], label="growth of an error, from the top")
        sizes.set_xlabel("layer")
        sizes.set_ylabel("times")
        sizes.legend()
        return figure
