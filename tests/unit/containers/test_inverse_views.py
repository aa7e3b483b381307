"""Views with the directions swapped are seen through, those of derived classes too."""

from invtorch import InvertibleSequential
from invtorch.composite import elementary
from invtorch.module import Inverse
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.stacks import sample, stack

pytestmark = ON_THE_CPU


class View(Inverse):
    """A view that does more than swap: it counts calls."""

    calls = 0

    def forward(self, x, *context):
        self.calls += 1
        return super().forward(x, *context)


def test_a_derived_view_of_a_container_is_recorded_layer_by_layer() -> None:
    inner, x = stack(0, depth=12), sample(requires_grad=True)

    def peak(view):
        net = InvertibleSequential(view(inner), anchors=0)
        assert net._layers == len(elementary(net.chain())) == 12
        net(x)  # at first use, closed forms are compared with their layers
        return measure_memory(lambda: net(x).sum()).peak

    assert peak(View) == peak(Inverse)
