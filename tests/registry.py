"""A maker for every invertible module that the package ships.

Every law of `tests/laws/` is stated for all of them. A maker takes the channels of the
state and its number of spatial axes.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from invtorch import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    Conjugation,
    ElementwiseAffine,
    Flatten,
    GatedResidualBlock,
    HaarDownsample,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    Join,
    LeakyReLU,
    LeakyTanh,
    LeapfrogStep,
    Logit,
    LU1x1,
    MomentumStep,
    OnPart,
    Orthogonal1x1,
    OrthogonalCoupling,
    OrthogonalDownsample,
    Parallel,
    Permute,
    PixelUnshuffle,
    Repeat,
    ResidualFlow,
    ReversibleBlock,
    SplineCoupling,
    Split,
    WithoutContext,
)
from invtorch.nets import IRIM, Glow, InvertibleUNet
from tests.parts import Averaging, Conditioner, FromContext, Leapfrog, Scale, known

Maker = Callable[[int, int], InvertibleModule]


def additive(channels: int, dims: int) -> InvertibleModule:
    return AdditiveCoupling(Conditioner(channels // 2, -(-channels // 2), dims))


def uneven(channels: int, dims: int) -> InvertibleModule:
    return AdditiveCoupling(Conditioner(1, channels - 1, dims), split=1)


def known_shift(channels: int, dims: int) -> InvertibleModule:
    conditioner = known(channels // 2, -(-channels // 2), dims)
    return WithoutContext(AdditiveCoupling(conditioner))


def affine(scale: str) -> Maker:
    def make(channels: int, dims: int) -> InvertibleModule:
        conditioner = Conditioner(channels // 2, 2 * -(-channels // 2), dims)
        return AffineCoupling(conditioner, scale=scale, bound=1.5)

    return make


def swapped(channels: int, dims: int) -> InvertibleModule:
    sizes = (channels - 1, 1)
    return AdditiveCoupling(Conditioner(*sizes[::-1], dims), split=sizes, swap=True)


def masked(channels: int, dims: int) -> InvertibleModule:
    mask = torch.arange(channels) % 2 == 1
    conditioner = Conditioner(channels // 2, 2 * -(-channels // 2), dims)
    return AffineCoupling(conditioner, split=mask)


def checkerboard(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(channels, channels, dims)
    return AdditiveCoupling(conditioner, split="checkerboard", swap=True)


def affine_checkerboard(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(channels, 2 * channels, dims)
    return AffineCoupling(conditioner, split="checkerboard", scale=half_arctangent)


def half_arctangent(a: Tensor) -> Tensor:
    """Return a bounded log-scale."""
    return torch.atan(a) / 2 if not a.is_complex() else torch.sin(a.real) / 2 + 0 * a


def volume_preserving(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(-(-channels // 2), 2 * (channels // 2), dims)
    return AffineCoupling(conditioner, swap=True, volume_preserving=True)


def splines(channels: int, dims: int) -> InvertibleModule:
    size = 3 * 4 - 1
    conditioner = Conditioner(channels // 2, size * -(-channels // 2), dims)
    return SplineCoupling(conditioner, bins=4, tail_bound=3.0, bound=2.0)


def circular_splines(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(-(-channels // 2), 9 * (channels // 2), dims)
    options = {"tails": "circular", "tail_bound": 1.0, "bound": 1.5}
    return SplineCoupling(conditioner, bins=3, swap=True, **options)


def spline_checkerboard(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(channels, 8 * channels, dims)
    return SplineCoupling(conditioner, bins=3, split="checkerboard", bound=1.5)


def residual(channels: int, dims: int) -> InvertibleModule:
    return WithoutContext(
        ResidualFlow(known(channels, channels, dims), coefficient=0.5)
    )


def two_sided(channels: int, dims: int) -> InvertibleModule:
    sizes = channels // 2, -(-channels // 2)
    return ReversibleBlock(Conditioner(*sizes[::-1], dims), Conditioner(*sizes, dims))


def known_two_sided(channels: int, dims: int) -> InvertibleModule:
    sizes = channels // 2, -(-channels // 2)
    block = ReversibleBlock(known(*sizes[::-1], dims), known(*sizes, dims))
    return WithoutContext(block)


def two_sided_checkerboard(channels: int, dims: int) -> InvertibleModule:
    f, g = (Conditioner(channels, channels, dims) for _ in range(2))
    return ReversibleBlock(f, g, split="checkerboard")


def conditional(channels: int, dims: int) -> InvertibleModule:
    return ConditionalAffine(FromContext(2 * channels, dims))


def momentum(channels: int, dims: int) -> InvertibleModule:
    return MomentumStep(Conditioner(channels, channels, dims), gamma=0.8)


def hyperbolic(channels: int, dims: int) -> InvertibleModule:
    return LeapfrogStep(Conditioner(channels, channels, dims), step=0.5)


def orthogonal(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(channels // 2, -(-channels // 2), dims)
    return OrthogonalCoupling(
        conditioner, channels=channels, reflections=min(3, channels)
    )


def mapped(channels: int, dims: int) -> InvertibleModule:
    conditioner = Conditioner(channels // 2, -(-channels // 2), dims)
    return OrthogonalCoupling(conditioner, channels=channels, map="cayley")


def gated(channels: int, dims: int) -> InvertibleModule:
    block = GatedResidualBlock(
        channels // 2, -(-channels // 2), hidden=3, stride=2, dims=dims
    )
    coupling = OrthogonalCoupling(block, channels=channels, reflections=1)
    return WithoutContext(coupling)


def known_basis(channels: int, dims: int) -> InvertibleModule:
    conditioner = known(channels // 2, -(-channels // 2), dims)
    coupling = OrthogonalCoupling(conditioner, channels=channels, reflections=2)
    return WithoutContext(coupling)


def householder(channels: int, dims: int) -> InvertibleModule:
    return Householder1x1(channels, reflections=2)


def any_rotation(channels: int, dims: int) -> InvertibleModule:
    return perturbed(Orthogonal1x1(channels, dim=-1 - dims))


def cayley(channels: int, dims: int) -> InvertibleModule:
    return perturbed(Orthogonal1x1(channels, map="cayley"))


def triangles(channels: int, dims: int) -> InvertibleModule:
    return perturbed(LU1x1(channels, dim=-1 - dims))


def permutation(channels: int, dims: int) -> InvertibleModule:
    return Permute(channels)


def per_channel(channels: int, dims: int) -> InvertibleModule:
    return perturbed(ElementwiseAffine(channels))


def normalizing(channels: int, dims: int) -> InvertibleModule:
    layer = ActNorm(channels)
    layer.initialize(torch.randn(8, channels, *(6,) * dims) * 1.02 + 0.1)
    return layer


def perturbed(layer: InvertibleModule, by: float = 0.1) -> InvertibleModule:
    """Move the parameters of a layer away from where they begin."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return layer


def resampled(make: Callable[..., InvertibleModule]) -> Maker:
    """Return couplings between a downsampling layer and its inverse."""

    def maker(channels: int, dims: int) -> InvertibleModule:
        stride = [1] * (dims - 1) + [2]
        down = make(channels, stride)
        inner = AdditiveCoupling(Conditioner(channels, channels, dims))
        # the context of the laws has the sizes of the state outside
        return InvertibleSequential(down, WithoutContext(inner), down.inv)

    return maker


def learned_down(channels: int, stride: list[int]) -> InvertibleModule:
    return perturbed(OrthogonalDownsample(channels, stride, init="random"))


def between_zero_and_one(channels: int, dims: int) -> InvertibleModule:
    return Conjugation(Logit(0.05).inv, Permute(channels))


def slopes(channels: int, dims: int) -> InvertibleModule:
    return LeakyReLU(0.6)


def bent(channels: int, dims: int) -> InvertibleModule:
    return InvertibleSequential(LeakyTanh(1.5), householder(channels, dims))


def repeated(channels: int, dims: int) -> InvertibleModule:
    return Repeat(orthogonal(channels, dims), 2)


def on_part(channels: int, dims: int) -> InvertibleModule:
    inner = InvertibleSequential(
        affine("tanh")(channels, dims),
        orthogonal(channels, dims).inv,
        WithoutContext(householder(channels, dims)),
        two_sided(channels, dims),
    )
    return InvertibleSequential(OnPart(inner, 1), momentum(channels, dims))


def parallel(channels: int, dims: int) -> InvertibleModule:
    first, second = affine("tanh")(channels, dims), two_sided(channels, dims)
    return InvertibleSequential(
        Parallel(first, second), hyperbolic(channels, dims), Parallel(None, second.inv)
    )


def conjugation(channels: int, dims: int) -> InvertibleModule:
    return Conjugation(householder(channels, dims), additive(channels, dims))


def sequential(channels: int, dims: int) -> InvertibleModule:
    return InvertibleSequential(additive(channels, dims), orthogonal(channels, dims))


def in_parts(channels: int, dims: int) -> InvertibleModule:
    first = channels // 2
    inner = orthogonal(first, dims) if first > 1 else Scale(first, dims)
    parts = OnPart(inner, 0)
    return InvertibleSequential(Split(), parts, Join())


def data_gradient(estimate: Tensor, *measured: Tensor) -> Tensor:
    """Return the gradient of a robust data term, `log(1 + |residual|^2) / 2`."""
    residual = estimate - sum(measured)
    return residual / (1 + (residual * residual.conj()).real)


def irim(channels: int, dims: int) -> InvertibleModule:
    steps = [known_basis(channels, dims) for _ in range(2)]
    return IRIM(steps, data_gradient, estimate_channels=channels // 2)


def unet(channels: int, dims: int) -> InvertibleModule:
    numbers = [channels, 2**dims]
    return perturbed(InvertibleUNet(numbers, blocks=1, hidden=2, dims=dims))


def unet_of_couplings(channels: int, dims: int) -> InvertibleModule:
    def block(channels: int) -> InvertibleModule:
        half = channels // 2
        conditioner = Averaging(half, 2 * (channels - half), dims)
        turned = Permute(channels, "reverse")
        return InvertibleSequential(AffineCoupling(conditioner, bound=1.1), turned)

    stride = [1] * (dims - 1) + [2]
    options = {"resampling": "haar", "stride": stride, "dims": dims}
    return InvertibleUNet([channels, 2], blocks=1, block=block, **options)


def glow(channels: int, dims: int) -> Glow:
    def conditioner(inputs: int, outputs: int) -> Averaging:
        return Averaging(inputs, outputs, dims)

    net = Glow(channels, levels=2, steps=1, dims=dims, conditioner=conditioner)
    net(torch.randn(4, channels, *(8,) * dims) * 1.02 + 0.1)
    for module in net.modules():  # what initialized is not counted
        if isinstance(module, Averaging):
            module.calls.clear()
    return net


def there_and_back(channels: int, dims: int) -> InvertibleModule:
    """Return a Glow and the inverse of another one: a state has one shape again."""
    net = glow(channels, dims)
    # matrices of many channels: forty such pairs must not amplify rounding too much
    return InvertibleSequential(net, perturbed(copy.deepcopy(net), by=0.002).inv)


def inverse(channels: int, dims: int) -> InvertibleModule:
    return orthogonal(channels, dims).inv


def newcomer(channels: int, dims: int) -> InvertibleModule:
    return Scale(channels, dims)


def leapfrog(channels: int, dims: int) -> InvertibleModule:
    return Leapfrog(channels, dims)


def conjugated_pair(channels: int, dims: int) -> InvertibleModule:
    return Conjugation(leapfrog(channels, dims), leapfrog(channels, dims).inv)


MAKERS: dict[str, Maker] = {
    "AdditiveCoupling": additive,
    "AdditiveCoupling(split=1)": uneven,
    "AdditiveCoupling(Sequential)": known_shift,
    "AffineCoupling": affine("tanh"),
    "AffineCoupling(scale=sigmoid)": affine("sigmoid"),
    "AffineCoupling(scale=exp)": affine("exp"),
    "AdditiveCoupling(split=sizes, swap)": swapped,
    "AdditiveCoupling(split=checkerboard)": checkerboard,
    "AffineCoupling(split=mask)": masked,
    "AffineCoupling(split=checkerboard)": affine_checkerboard,
    "AffineCoupling(volume_preserving)": volume_preserving,
    "SplineCoupling": splines,
    "SplineCoupling(tails=circular)": circular_splines,
    "SplineCoupling(split=checkerboard)": spline_checkerboard,
    "ResidualFlow": residual,
    "ReversibleBlock": two_sided,
    "ReversibleBlock(Sequential)": known_two_sided,
    "ReversibleBlock(split=checkerboard)": two_sided_checkerboard,
    "ConditionalAffine": conditional,
    "OrthogonalCoupling": orthogonal,
    "OrthogonalCoupling(map=cayley)": mapped,
    "OrthogonalCoupling(GatedResidualBlock)": gated,
    "OrthogonalCoupling(Sequential)": known_basis,
    "Householder1x1": householder,
    "Orthogonal1x1": any_rotation,
    "Orthogonal1x1(map=cayley)": cayley,
    "LU1x1": triangles,
    "Permute": permutation,
    "ElementwiseAffine": per_channel,
    "ActNorm": normalizing,
    "PixelUnshuffle": resampled(lambda _, stride: PixelUnshuffle(stride)),
    "HaarDownsample": resampled(lambda _, stride: HaarDownsample(stride)),
    "OrthogonalDownsample": resampled(learned_down),
    "LeakyReLU": slopes,
    "LeakyTanh": bent,
    "Logit": between_zero_and_one,
    "Repeat": repeated,
    "Conjugation": conjugation,
    "InvertibleSequential": sequential,
    "Split and Join": in_parts,
    "IRIM": irim,
    "InvertibleUNet": unet,
    "InvertibleUNet(resampling=haar)": unet_of_couplings,
    "Glow": there_and_back,
    "Inverse": inverse,
    "a module with forward and inverse": newcomer,
}
PAIR_MAKERS: dict[str, Maker] = {  # their state is a tuple of two tensors
    "MomentumStep": momentum,
    "LeapfrogStep": hyperbolic,
    "OnPart": on_part,
    "Parallel": parallel,
    "a module with a tuple state": leapfrog,
    "Conjugation of tuple states": conjugated_pair,
}
# layers that take states of one shape, with values between 0 and 1
FIXED: dict[str, tuple[Callable[[], InvertibleModule], tuple[int, ...]]] = {
    "Flatten": (lambda: Flatten((2, 3, 4)), (2, 2, 3, 4)),
    "Logit alone": (lambda: Logit(0.1), (2, 3, 4)),
    "PixelUnshuffle in 1-D": (lambda: PixelUnshuffle(3, dims=1), (2, 2, 6)),
    "PixelUnshuffle in 3-D": (lambda: PixelUnshuffle((1, 2, 3)), (2, 2, 1, 2, 3)),
    "HaarDownsample in 2-D": (HaarDownsample, (2, 2, 4, 2)),
    "HaarDownsample in 3-D": (lambda: HaarDownsample(dims=3), (1, 2, 2, 2, 4)),
    "OrthogonalDownsample in 2-D": (
        lambda: perturbed(OrthogonalDownsample(2, (3, 2), init="pixel_shuffle")),
        (2, 2, 3, 4),
    ),
    "Glow in 1-D": (lambda: glow(2, 1), (2, 2, 8)),
    "Glow in 2-D": (lambda: glow(1, 2), (2, 1, 4, 8)),
    "InvertibleUNet with three levels": (
        lambda: perturbed(InvertibleUNet([3, 2, 2], blocks=[1, 2, 1], dims=1)),
        (2, 3, 7),
    ),
    "ElementwiseAffine of entries": (
        lambda: perturbed(ElementwiseAffine((3, 4))),
        (2, 3, 4),
    ),
}
# the sizes of space must be multiples of these numbers
MULTIPLES = {
    "PixelUnshuffle": 2,
    "HaarDownsample": 2,
    "OrthogonalDownsample": 2,
    "Glow": 4,
}
# their own `memory` keeps a state for each layer
KEEPING = {"ResidualFlow"}
# formulas for real numbers, or modules without complex numbers
REAL_ONLY = {
    "OrthogonalCoupling(GatedResidualBlock)",  # a ReLU knows no complex numbers
    "InvertibleUNet",  # the same
    "LeakyReLU",
    "LeakyTanh",
    "Logit",
    "ResidualFlow",
    "SplineCoupling",
    "SplineCoupling(tails=circular)",
    "SplineCoupling(split=checkerboard)",
}


def fitted(name: str, *space: int) -> tuple[int, ...]:
    """Return spatial sizes that a layer takes: rounded up where it needs that."""
    multiple = MULTIPLES.get(name, 1)
    return tuple(n + -n % multiple for n in space)


SHIPPED = {
    ResidualFlow: "ResidualFlow",
    SplineCoupling: "SplineCoupling",
    Flatten: "Flatten",
    Parallel: "Parallel",
    OnPart: "OnPart",
    Repeat: "Repeat",
    Logit: "Logit",
    LeakyTanh: "LeakyTanh",
    LeakyReLU: "LeakyReLU",
    OrthogonalDownsample: "OrthogonalDownsample",
    HaarDownsample: "HaarDownsample",
    PixelUnshuffle: "PixelUnshuffle",
    Permute: "Permute",
    Orthogonal1x1: "Orthogonal1x1",
    LU1x1: "LU1x1",
    ElementwiseAffine: "ElementwiseAffine",
    ActNorm: "ActNorm",
    LeapfrogStep: "LeapfrogStep",
    MomentumStep: "MomentumStep",
    ReversibleBlock: "ReversibleBlock",
    ConditionalAffine: "ConditionalAffine",
    AdditiveCoupling: "AdditiveCoupling",
    AffineCoupling: "AffineCoupling",
    Conjugation: "Conjugation",
    Householder1x1: "Householder1x1",
    Glow: "Glow",
    InvertibleUNet: "InvertibleUNet",
    IRIM: "IRIM",
    Join: "Split and Join",
    Split: "Split and Join",
    InvertibleSequential: "InvertibleSequential",
    OrthogonalCoupling: "OrthogonalCoupling",
    WithoutContext: "OrthogonalCoupling(GatedResidualBlock)",
}
