"""`InvertibleSequential` is an `nn.Sequential` in every habit."""

from collections import OrderedDict

import torch
from torch import nn

from invtorch import InvertibleSequential
from tests.parts import Scale


def make(count: int, **options) -> InvertibleSequential:
    return InvertibleSequential(*[Scale(2) for _ in range(count)], **options)


def test_it_is_a_sequential() -> None:
    net = make(3)
    assert isinstance(net, nn.Sequential)
    assert len(net) == 3
    assert [*net] == [net[0], net[1], net[-1]]
    assert list(net.state_dict()) == [f"{i}.log_scale" for i in range(3)]


def test_an_ordered_dictionary_names_the_members() -> None:
    net = InvertibleSequential(OrderedDict(first=Scale(2), second=Scale(2)))
    assert net.second is net[1]


def test_slices_sums_and_repetitions_keep_the_options() -> None:
    options = {"memory": "checkpoint", "anchors": 2, "guard": "warn"}
    options |= {"state_dtype": torch.float64, "budget": 1000}
    net = make(4, **options)
    for other in (net[1:3], net + make(1), net * 2, 2 * net):
        assert isinstance(other, InvertibleSequential)
        assert {name: getattr(other, name) for name in options} == options
    assert [*net[1:3]] == [net[1], net[2]]
    assert len(net + make(1)) == 5
    assert len(net * 2) == 8


def test_members_can_be_added_and_removed() -> None:
    net = make(2)
    first, second, third = Scale(2), Scale(2), Scale(2)
    net.append(first)
    net.insert(0, second)
    net[1] = third
    assert [net[0], net[1], net[3]] == [second, third, first]
    del net[0]
    assert net[0] is third
    net.extend(make(2))
    net += make(1)
    assert len(net) == 6
    assert net.pop(0) is third


def test_an_empty_chain_is_the_identity() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    assert InvertibleSequential()(x) is x
    assert InvertibleSequential().inverse(x) is x


def test_state_dicts_do_not_depend_on_the_strategy() -> None:
    keys = {tuple(make(3, memory=m).state_dict()) for m in ("invert", "store")}
    assert len(keys) == 1


def test_layers_counts_nested_members_and_both_visits_of_a_shared_one() -> None:
    net = make(2)
    assert InvertibleSequential(net, net[0].inv, net)._layers == 5


def test_the_strategy_can_be_changed_later() -> None:
    net = make(2)
    net.memory, net.anchors = "store", (1,)
    assert "memory='store', anchors=(1,)" in repr(net)
