"""The depth study measures what it says."""

import pytest
import torch

from benchmarks.depth import LAYERS, gradient, network, rebuilt_input, relative


@pytest.mark.parametrize("layer", LAYERS)
def test_the_rebuilt_input_is_that_of_the_backward_pass(layer) -> None:
    torch.manual_seed(0)
    net, x = network(layer, 0.5, 12), torch.randn(1, 16, 16, 16, requires_grad=True)
    net.anchors = 0
    gradient(net, x)
    seen = rebuilt_input(net, x)
    with torch.no_grad():
        assert torch.equal(seen, net.inverse(net(x)))
    assert 0 < relative(seen, x) < 1e-5
