"""The depth study measures what it says."""

import pytest
import torch

from benchmarks.depth import LAYERS, gradient, network, rebuilt_state, relative


@pytest.mark.parametrize("layer", LAYERS)
def test_the_rebuilt_input_is_that_of_the_backward_pass(layer) -> None:
    torch.manual_seed(0)
    net, x = network(layer, 0.5, 12), torch.randn(1, 16, 16, 16, requires_grad=True)
    net.anchors = 0
    gradient(net, x)
    seen, exact = rebuilt_state(net, x)
    with torch.no_grad():
        assert torch.equal(seen, net[1:].inverse(net(x)))
    assert torch.equal(exact, x)
    assert 0 < relative(seen, exact) < 1e-5
