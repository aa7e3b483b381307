"""Each marked line is a mistake that a type checker must find."""

import torch

from invtorch import Householder1x1, InvertibleSequential

net = InvertibleSequential(Householder1x1(4))
InvertibleSequential(Householder1x1(4), memory="inverse")  # wrong
InvertibleSequential(Householder1x1(4), guard="raises")  # wrong
net.memory = "cheap"  # wrong
net[0].memory = "auto"  # wrong
net(torch.ones(1, 4)).not_of_a_tensor()  # wrong
net[0].append(net)  # wrong
