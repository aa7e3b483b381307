"""The invertible recurrent inference machine (i-RIM) for inverse problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invtorch import (
    Composite,
    InvertibleModule,
    InvertibleSequential,
    Step,
    VolumePreserving,
    WithoutContext,
)
from invtorch._checks import check_count, check_function
from invtorch.containers.sequential import MemoryArgument
from invtorch.engine import GuardPolicy
from invtorch.keywords import keywords_of
from invtorch.recording import Context, evaluated


class IRIM(Composite):
    r"""Solve an inverse problem $d = A(p) + n$ with an unrolled, invertible network.

    The machine state has two parts along the channels: the current estimate $\eta$ of
    $p$, and a memory $s$. Step $t$ adds the gradient of the data term to the memory
    and mixes both with an invertible network $h_t$ (eq. 10):

    $$ s_t' = s_t + (\nabla_\eta D(d, A\eta_t),\, 0), \qquad
       (\eta_{t+1}, s_{t+1}) = h_t(\eta_t, s_t') $$

    Both operations are invertible, so training needs the memory of one layer for any
    number of steps. The forward operator $A$ and the data term $D$ appear in
    `gradient` only.

    Args:
        step_networks: The $h_t$, one for each step. They receive only the state. If
            the same module appears more than once, its weights are shared.
        gradient: A function or module. It takes the estimate and the data, and returns
            $\nabla_\eta D(d, A\eta)$, a tensor of the shape of the estimate.
        estimate_channels: Number of channels of the estimate, which come first. One
            complex image has 2: its real and imaginary part.
        final_update: Add the gradient once more after the last step, as the authors'
            implementation does. It changes the memory, not the estimate.
        memory: Memory strategy of the container.
        anchors: States that the container keeps exactly.
        guard: What the container does if rebuilt states drift. All three are described
            in `invtorch.InvertibleSequential`.

    Shape:
        `(batch, channels, *space)` with at least `2 * estimate_channels` channels; the
        output has the same shape. The data are passed to `gradient` unchanged.

    Raises:
        TypeError: If a step network is not an `InvertibleModule`, or the gradient not a
            function that returns a tensor.
        ValueError: If there is no step network, a step network does not define its
            inverse, the state has too few channels, or the gradient does not have
            the shape of the estimate.

    Examples:
        Deblurring: `blurred` is a signal `sharp`, convolved with a known kernel. The
        data term is $\frac12 \lVert A\eta - d \rVert^2$, its gradient
        $A^\top(A\eta - d)$.

        >>> from torch.nn import functional as F
        >>> kernel = torch.tensor([[[0.25, 0.5, 0.25]]])
        >>> def gradient(estimate, blurred):
        ...     residual = F.conv1d(estimate, kernel, padding=1) - blurred
        ...     return F.conv_transpose1d(residual, kernel, padding=1)
        >>> def step_network():
        ...     conditioner = nn.Conv1d(4, 4, 3, padding=1)
        ...     return OrthogonalCoupling(conditioner, channels=8)
        >>> networks = [step_network() for _ in range(4)]
        >>> irim = IRIM(networks, gradient, estimate_channels=1)
        >>> sharp = torch.randn(1, 1, 32)
        >>> blurred = F.conv1d(sharp, kernel, padding=1)
        >>> state = torch.cat([blurred, torch.zeros(1, 7, 32)], dim=1)
        >>> out = irim(state, blurred)
        >>> loss = (out[:, :1] - sharp).square().mean()
        >>> loss.backward()
        >>> torch.allclose(irim.inverse(out, blurred), state, atol=1e-5)
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
        memory: MemoryArgument = "invert",
        anchors: int | Sequence[int] | str = 8,
        guard: GuardPolicy | None = "raise",
    ) -> None:
        super().__init__()
        if not isinstance(step_networks, Iterable):
            raise TypeError(
                f"step_networks is a {type(step_networks).__name__}, but must be a "
                f"list of invertible modules, one for each step"
            )
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


class GradientUpdate(VolumePreserving):
    r"""An additive coupling whose conditioner is the gradient of the data term.

    The channels of the machine state are split into the estimate $\eta$, as many
    channels $s_1$ of the memory, and the rest $s_2$ of the memory. The estimate shifts
    $s_1$ (eq. 10 and 19):

    $$ \eta' = \eta, \qquad s_1' = s_1 + \nabla_\eta D(d, A\eta), \qquad s_2' = s_2 $$

    The inverse subtracts the same gradient, since the estimate is unchanged. The map
    preserves volume: its log-determinant is 0.

    Args:
        gradient: A function or module. It takes the estimate $\eta$ and the data $d$,
            and returns a tensor of the shape of the estimate.
        estimate_channels: Number of channels of $\eta$.

    Shape:
        `(batch, channels, *space)` with at least `2 * estimate_channels` channels; the
        output has the same shape.

    Raises:
        TypeError: If the gradient is not a function that returns a tensor.
        ValueError: If the state has too few channels, or the gradient does not
            have the shape of the estimate.

    Examples:
        >>> def gradient(estimate, measured):  # of 1/2 |estimate - measured|^2
        ...     return estimate - measured
        >>> update = GradientUpdate(gradient, estimate_channels=1)
        >>> state, measured = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[5.0]])
        >>> update(state, measured)
        tensor([[ 2., -3.,  0.]])

    References:
        Putzky and Welling, *Invert to learn to invert*, 2019. arXiv:1911.10914
    """

    def __init__(self, gradient: Callable[..., Tensor], estimate_channels: int) -> None:
        super().__init__()
        check_function("gradient", gradient)
        check_count("estimate_channels", estimate_channels)
        self.gradient = gradient
        self.estimate_channels = estimate_channels

    def forward(self, x: Tensor, *data: Any, **named: Any) -> Tensor:
        """Add the gradient."""
        return self._add_to_memory(x, self._gradient(x, Context(data, named)))

    def inverse(self, y: Tensor, *data: Any, **named: Any) -> Tensor:
        """Subtract the gradient."""
        return self._add_to_memory(y, -self._gradient(y, Context(data, named)))

    def replay(self, y: Tensor, *data: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and compute `y` from it, in one evaluation of the gradient."""
        return self._replay(y, Context(data, named), sign=1)

    def replay_inverse(
        self, x: Tensor, *data: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and compute `x` from it, in one evaluation of the gradient."""
        return self._replay(x, Context(data, named), sign=-1)

    def unchanged(self, mask: Tensor, direction: str) -> Tensor:
        """All channels but those that the gradient is added to."""
        del direction
        estimate, moved, rest = self._parts(mask)
        return torch.cat([estimate, torch.zeros_like(moved), rest], dim=1)

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.gradient)

    def extra_repr(self) -> str:
        """Show the number of estimate channels, and the name of the function."""
        channels = f"estimate_channels={self.estimate_channels}"
        if isinstance(self.gradient, nn.Module):
            return channels
        name = getattr(self.gradient, "__name__", type(self.gradient).__name__)
        return f"{channels}, gradient={name}"

    def _replay(
        self, output: Tensor, data: Context, sign: int
    ) -> tuple[Tensor, Tensor]:
        state = output.detach().clone().requires_grad_()
        shift = sign * self._gradient(state, data)
        _, moved, _ = self._parts(state.data)
        moved -= shift.detach()
        return state, self._add_to_memory(state, shift)

    def _gradient(self, state: Tensor, data: Context) -> Tensor:
        estimate, _, _ = self._parts(state)
        grad: Tensor = evaluated(self.gradient, data, estimate)
        if not isinstance(grad, Tensor):
            raise TypeError(
                f"the gradient is a {type(grad).__name__}, but must be a tensor of the "
                f"shape of the estimate"
            )
        if grad.shape != estimate.shape:
            raise ValueError(
                f"the gradient has shape {tuple(grad.shape)}, but the estimate "
                f"{tuple(estimate.shape)}: return one number for each of its entries"
            )
        return grad

    def _add_to_memory(self, state: Tensor, shift: Tensor) -> Tensor:
        estimate, moved, rest = self._parts(state)
        return torch.cat([estimate, moved + shift, rest], dim=1)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if state.ndim < 2:
            raise ValueError(
                f"a state of shape {tuple(state.shape)} has no channels: give it "
                f"(batch, channels, ...)"
            )
        k, channels = self.estimate_channels, state.shape[1]
        if channels < 2 * k:
            raise ValueError(
                f"the state has {channels} channels, but {k} for the estimate and as "
                f"many for its gradient need at least {2 * k}"
            )
        estimate, moved, rest = state.tensor_split((k, 2 * k), dim=1)
        return estimate, moved, rest
