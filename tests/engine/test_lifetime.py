"""Nothing that a pass made outlives it."""

import gc
import weakref

from tests.parts import Scale
from tests.stacks import sample, stack


def test_a_dropped_forward_and_a_finished_backward_free_their_states() -> None:
    net, x = stack(3), sample()

    class Witness(Scale):
        last = None

        def forward(self, x):
            y = super().forward(x)
            Witness.last = weakref.ref(y.untyped_storage())
            return y

    net.insert(5, Witness(4).double())
    gc.disable()
    try:
        y = net(x)
        del y
        loss = net(x).sum()
        loss.backward()
        assert Witness.last() is None
    finally:
        gc.enable()
