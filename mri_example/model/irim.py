"""The invertible recurrent inference machine, for any inverse problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from invtorch import (
    Composite,
    InvertibleModule,
    InvertibleSequential,
    Step,
    WithoutContext,
)
from mri_example.model.gradient_update import GradientUpdate


class IRIM(Composite):
    r"""Learn to invert a measurement $d = A(p) + n$ with an invertible network.

    The machine state holds the estimate $\eta$ and a memory $s$. Step $t$ writes the
    gradient of the data term into the memory and mixes both with an invertible network
    $h_t$ (eq. 10):

    $$ s_t' = s_t + (\nabla D(d, A\eta_t),\, 0), \qquad
       (\eta_{t+1}, s_{t+1}) = h_t(\eta_t, s_t') $$

    Nothing here knows the problem: it is all in `gradient`.

    Args:
        step_networks: The $h_t$, one for each step. They see the state alone. The same
            module may appear more than once.
        gradient: A function of the estimate and the data, or a module, that returns the
            gradient of the data term, of the shape of the estimate.
        estimate_channels: Channels of the state that hold the estimate; they come
            first.
        final_update: Write the gradient once more after the last step, as the authors'
            implementation does. It matters to who reads the memory too.
        memory: Memory strategy of the container; see `invtorch.InvertibleSequential`.
        anchors: States that are kept exactly; see `invtorch.InvertibleSequential`.
        guard: What is done if rebuilt states drift; see the same.

    Shape:
        `(batch, channels, *space)`; the output has the same shape. What the data look
        like is between caller and gradient.

    Raises:
        ValueError: If there is no step network.

    Examples:
        >>> from torch import nn
        >>> from invtorch import OrthogonalCoupling
        >>> def gradient(estimate, measured):  # of 1/2 |estimate - measured|^2
        ...     return estimate - measured
        >>> h = OrthogonalCoupling(nn.Conv1d(4, 4, 3, padding=1), channels=8)
        >>> irim = IRIM([h, h], gradient)
        >>> state, measured = torch.zeros(1, 8, 32), torch.ones(1, 2, 32)
        >>> out = irim(state, measured)
        >>> torch.allclose(irim.inverse(out, measured), state, atol=1e-5)
        True

    References:
        Putzky and Welling, *Invert to learn to invert*, 2019. arXiv:1911.10914
    """

    def __init__(
        self,
        step_networks: Iterable[InvertibleModule],
        gradient: Callable[..., Tensor],
        *,
        estimate_channels: int = 2,
        final_update: bool = False,
        memory: str = "invert",
        anchors: int | Sequence[int] | str = 8,
        guard: str | None = "raise",
    ) -> None:
        super().__init__()
        members: list[InvertibleModule] = []
        for network in step_networks:
            members.append(GradientUpdate(gradient, estimate_channels))
            members.append(WithoutContext(network))
        if not members:
            raise ValueError(
                "step_networks is empty, but an i-RIM takes at least 1 step"
            )
        if final_update:
            members.append(GradientUpdate(gradient, estimate_channels))
        self.steps = InvertibleSequential(
            *members, memory=memory, anchors=anchors, guard=guard
        )

    def chain(self) -> Sequence[Step]:
        """Run all steps."""
        return [Step(self.steps)]
