"""The depth study measures what it says."""

import pytest
import torch

from benchmarks.depth import LAYERS, gradient, network, rebuilt_input, relative


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("anchors", [0, 8])
def test_the_rebuilt_input_is_that_of_the_backward_pass(layer, anchors) -> None:
    torch.manual_seed(0)
    net, x = network(layer, 0.5, 12), torch.randn(1, 16, 16, 16, requires_grad=True)
    net.anchors = anchors
    gradient(net, x)
    off = relative(rebuilt_input(net, x), x)
    with torch.no_grad():
        far = relative(net.inverse(net(x)), x)
    assert 0 < off < 1e-5
    assert (off == far) is (anchors == 0)
