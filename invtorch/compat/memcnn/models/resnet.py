"""The residual networks of memcnn, plain and reversible."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from invtorch.compat.memcnn.models.revop import (
    InvertibleModuleWrapper,
    create_coupling,
)

__all__ = [
    "BasicBlock",
    "BasicBlockSub",
    "Bottleneck",
    "BottleneckSub",
    "ResNet",
    "RevBasicBlock",
    "RevBottleneck",
    "batch_norm",
    "conv3x3",
]


def conv3x3(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size if the stride is 1."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, padding=1, bias=False)


def batch_norm(x: int) -> nn.BatchNorm2d:
    """Return a batch normalization with the constants of the original RevNet."""
    return nn.BatchNorm2d(x, momentum=0.99, eps=0.001)


class BasicBlockSub(nn.Module):
    """The residual function of two 3 x 3 convolutions, activation first.

    Args:
        inplanes: Input channels.
        planes: Output channels.
        stride: Stride of the first convolution.
        noactivation: Whether it begins without normalization and activation.
    """

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, noactivation: bool = False
    ) -> None:
        super().__init__()
        self.noactivation = noactivation
        if not noactivation:
            self.bn1 = batch_norm(inplanes)
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn2 = batch_norm(planes)
        self.conv2 = conv3x3(planes, planes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the function."""
        if not self.noactivation:
            x = self.relu(self.bn1(x))
        x = self.relu(self.bn2(self.conv1(x)))
        out: Tensor = self.conv2(x)
        return out


class BottleneckSub(nn.Module):
    """The residual function of a 3 x 3 between two 1 x 1 convolutions.

    Args:
        inplanes: Input channels.
        planes: Inner channels; the output has four times as many.
        stride: Stride of the second convolution.
        noactivation: Whether it begins without normalization and activation.
    """

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, noactivation: bool = False
    ) -> None:
        super().__init__()
        self.noactivation = noactivation
        if not noactivation:
            self.bn1 = batch_norm(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn2 = batch_norm(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = batch_norm(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the function."""
        if not self.noactivation:
            x = self.relu(self.bn1(x))
        x = self.relu(self.bn2(self.conv1(x)))
        x = self.relu(self.bn3(self.conv2(x)))
        out: Tensor = self.conv3(x)
        return out


class _Block(nn.Module):
    """A residual block: a function, and a projection where the shape changes.

    The name of the function's submodule is a part of the `state_dict` keys.
    """

    expansion: int
    sub: type[nn.Module]
    name: str

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        noactivation: bool = False,
    ) -> None:
        super().__init__()
        self._add_function(inplanes, planes, stride, downsample, noactivation)
        self.downsample = downsample
        self.stride = stride

    def _add_function(
        self, inplanes: int, planes: int, stride: int, *rest: Any
    ) -> None:
        _, noactivation = rest
        function = self.sub(inplanes, planes, stride, noactivation)
        self.add_module(self.name, function)

    def forward(self, x: Tensor) -> Tensor:
        """Add the function, or its projection, to the input."""
        skip = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.get_submodule(self.name)(x) + skip
        return out


class BasicBlock(_Block):
    """A residual block of two 3 x 3 convolutions."""

    expansion, sub, name = 1, BasicBlockSub, "basicblock_sub"


class Bottleneck(_Block):
    """A residual block of a 3 x 3 between two 1 x 1 convolutions."""

    expansion, sub, name = 4, BottleneckSub, "bottleneck_sub"


class _RevBlock(_Block):
    """A residual block that is an additive coupling, where the shape is kept."""

    def _add_function(
        self, inplanes: int, planes: int, stride: int, *rest: Any
    ) -> None:
        downsample, noactivation = rest
        if downsample is not None or stride != 1:
            super()._add_function(inplanes, planes, stride, *rest)
            return
        halves = inplanes // 2, planes // 2, stride, noactivation
        gm, fm = self.sub(*halves), self.sub(*halves)
        self.revblock = InvertibleModuleWrapper(create_coupling(fm, gm, "additive"))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the coupling, or the residual block."""
        if self.downsample is not None:
            return super().forward(x)
        out: Tensor = self.revblock(x)
        return out


class RevBasicBlock(_RevBlock):
    """A reversible block of two 3 x 3 convolutions."""

    expansion, sub, name = 1, BasicBlockSub, "basicblock_sub"


class RevBottleneck(_RevBlock):
    """A reversible block of a 3 x 3 between two 1 x 1 convolutions."""

    expansion, sub, name = 4, BottleneckSub, "bottleneck_sub"


class ResNet(nn.Module):
    """A residual network for images, with any of the blocks of this module.

    Args:
        block: The class of the blocks.
        layers: The number of blocks in each stage, three or four numbers.
        num_classes: The number of classes.
        channels_per_layer: The channels of the stem and of each stage.
        strides: The strides of the stem and of each stage.
        init_max_pool: Whether the stem ends with a pooling.
        init_kernel_size: The kernel size of the stem.
        batch_norm_fix: Whether the constants of batch normalization are those of the
            original RevNet, or those of PyTorch.
        implementation: No effect.

    References:
        Gomez et al., *The reversible residual network*, 2017. arXiv:1707.04585
    """

    def __init__(
        self,
        block: Any,
        layers: list[int],
        num_classes: int = 1000,
        channels_per_layer: list[int] | None = None,
        strides: list[int] | None = None,
        init_max_pool: bool = False,
        init_kernel_size: int = 7,
        batch_norm_fix: bool = True,
        implementation: int = 0,
    ) -> None:
        super().__init__()
        if channels_per_layer is None:
            channels = [2 ** (i + 6) for i in range(len(layers))]
            channels_per_layer = [channels[0], *channels]
        if len(channels_per_layer) != len(layers) + 1:
            raise ValueError(
                f"channels_per_layer has {len(channels_per_layer)} numbers, but needs "
                f"{len(layers) + 1}: one for the stem and one for each stage"
            )
        strides = [2] * len(channels_per_layer) if strides is None else strides
        self.channels_per_layer = channels_per_layer
        self.strides = strides
        self.init_max_pool = init_max_pool
        self.batch_norm_fix = batch_norm_fix
        self.implementation = implementation
        self.inplanes = channels_per_layer[0]
        padding = (init_kernel_size - 1) // 2
        self.conv1 = nn.Conv2d(
            3, self.inplanes, init_kernel_size, strides[0], padding, bias=False
        )
        self.bn1 = batch_norm(self.inplanes)
        self.relu = nn.ReLU(inplace=False)
        if init_max_pool:
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for i, count in enumerate(layers, 1):
            planes, stride = channels_per_layer[i], strides[i]
            stage = self._make_layer(block, planes, count, stride, noactivation=i == 1)
            self.add_module(f"layer{i}", stage)
        self.stages = [f"layer{i}" for i in range(1, len(layers) + 1)]
        self.has_4_layers = len(layers) >= 4
        self.bn_final = batch_norm(self.inplanes)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels_per_layer[-1] * block.expansion, num_classes)
        self.configure()
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize convolutions after He et al."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def configure(self) -> None:
        """Set the constants of batch normalization."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.99 if self.batch_norm_fix else 0.1
                module.eps = 0.001 if self.batch_norm_fix else 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.init_max_pool:
            x = self.maxpool(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = self.avgpool(self.relu(self.bn_final(x)))
        scores: Tensor = self.fc(torch.flatten(x, 1))
        return scores

    def _make_layer(
        self,
        block: Any,
        planes: int,
        blocks: int,
        stride: int = 1,
        noactivation: bool = False,
    ) -> nn.Sequential:
        outputs = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outputs:
            projection = nn.Conv2d(self.inplanes, outputs, 1, stride, bias=False)
            downsample = nn.Sequential(projection, batch_norm(outputs))
        first = block(self.inplanes, planes, stride, downsample, noactivation)
        self.inplanes = outputs
        rest = [block(self.inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(first, *rest)
