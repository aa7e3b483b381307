"""What people do with a network, each against plain autograd in float64.

Every test runs with pure inversion and with anchors, on a stack deeper than those.
"""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from invtorch import AdditiveCoupling, InvertibleSequential, OrthogonalCoupling
from tests.parts import Conditioner, Leapfrog, Scale
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal


@pytest.fixture(params=[0, 3, 8], ids=["inversion", "3 anchors", "8 anchors"])
def anchors(request) -> int:
    return request.param


def stack(anchors: int, dropout: float = 0.0, depth: int = 10):
    layers = []
    for i in range(depth):
        conditioner = Conditioner(2, 2, dropout=dropout)
        layers.append(
            OrthogonalCoupling(conditioner, channels=4)
            if i % 2
            else AdditiveCoupling(conditioner)
        )
    return InvertibleSequential(*layers, anchors=anchors).double()


def sample(channels: int = 4, batch: int = 2, **options):
    return torch.randn(batch, channels, 5, 4, dtype=torch.float64, **options)


def both(net, function):
    """Return what `function` gives with memory saving and with plain autograd."""
    results = []
    for net.memory in ("invert", "store"):
        torch.manual_seed(3)
        net.zero_grad()
        results.append(function())
    return results


def parameters(net):
    return list(net.parameters())


def test_dropout_repeats_its_mask(anchors) -> None:
    net, x = stack(anchors, dropout=0.5), sample(requires_grad=True)
    net.train()

    def two_forwards_before_one_backward():
        first, second = net(x), net(x)
        return torch.autograd.grad(
            weighed(first) + weighed(second * 2), parameters(net)
        )

    assert_all_equal(*both(net, two_forwards_before_one_backward))


def test_backward_leaves_the_random_state_alone(anchors) -> None:
    net = stack(anchors, dropout=0.5)
    loss = weighed(net(sample(requires_grad=True)))
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_with_eval_called_before_backward(anchors) -> None:
    net, x = stack(anchors, dropout=0.5), sample(requires_grad=True)

    def gradients():
        net.train()
        loss = weighed(net(x))
        net.eval()
        return torch.autograd.grad(loss, [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))
    assert not any(module.training for module in net.modules())


def test_context_that_needs_gradients(anchors) -> None:
    net, x, raw = stack(anchors), sample(requires_grad=True), sample(1)
    raw.requires_grad_()

    def gradients():
        context = torch.tanh(raw)
        y = net(x, context, context.square())
        return torch.autograd.grad(weighed(y), [x, raw, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_the_state_itself_as_context(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        h = x.sin()
        y = net(h, h[:, :1])
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_a_parameter_as_context(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    shared = net[0].conditioner.second.bias

    def gradients():
        context = shared.view(1, 2, 1, 1)[:, :1]
        return torch.autograd.grad(weighed(net(x, context)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


@pytest.mark.parametrize("frozen", ["first", "last", "some", "all but one"])
def test_frozen_parameters(anchors, frozen) -> None:
    net, x = stack(anchors), sample()
    for i, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(
            {
                "first": i >= 20,
                "last": i < 20,
                "some": i % 3 == 0,
                "all but one": i == 17,
            }[frozen]
        )

    def gradients():
        weighed(net(x)).backward()
        return [p.grad for p in net.parameters()]

    assert_all_equal(*both(net, gradients))


def test_unused_parameters(anchors) -> None:
    net, x = stack(anchors), sample()
    for layer in net:
        layer.conditioner.idle = nn.Linear(3, 3).double()

    def gradients():
        weighed(net(x)).backward()
        return [p.grad for p in net.parameters()]

    assert_all_equal(*both(net, gradients))


def test_shared_blocks(anchors) -> None:
    layers = list(stack(0))
    net = InvertibleSequential(*layers, *layers[::-1], *layers[:3], anchors=anchors)
    x = sample(requires_grad=True)

    def gradients():
        return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_shared_blocks_second_order(anchors) -> None:
    layers = list(stack(0, depth=3))
    net = InvertibleSequential(*layers, *layers, *layers, *layers, anchors=anchors)
    x = sample(requires_grad=True)

    def second_order():
        inputs = [x, *parameters(net)]
        first = torch.autograd.grad(weighed(net(x)), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    assert_all_equal(*both(net, second_order))


def test_second_order_with_related_contexts(anchors) -> None:
    net, x, raw = stack(anchors), sample(requires_grad=True), sample(1)
    raw.requires_grad_()

    def second_order():
        context = raw.sin()
        y = net(x * raw, context, context * raw)
        inputs = [x, raw, *parameters(net)]
        first = torch.autograd.grad(weighed(y), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    assert_all_equal(*both(net, second_order))


def test_create_graph_on_a_linear_loss_keeps_its_history() -> None:
    net, x = stack(0), sample(requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    assert gradient.requires_grad


def test_autograd_grad_of_a_few_parameters(anchors) -> None:
    net, x = stack(anchors), sample()
    chosen = [net[2].conditioner.first.weight, net[7].vectors]
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), chosen)))


def test_backward_to_chosen_inputs_leaves_the_others(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    chosen = net[7].vectors

    def gradients():
        x.grad = None
        weighed(net(x)).backward(inputs=[chosen])
        assert x.grad is None
        assert net[2].conditioner.first.weight.grad is None
        return [chosen.grad]

    assert_all_equal(*both(net, gradients))


def test_retain_graph_and_a_second_backward(anchors) -> None:
    net, x = stack(anchors), sample()

    def gradients():
        loss = weighed(net(x))
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second"):
            loss.backward()
        return [p.grad for p in net.parameters()]

    assert_all_equal(*both(net, gradients))


def test_two_forwards_then_backward_in_either_order(anchors) -> None:
    net, a, b = stack(anchors), sample(requires_grad=True), sample(requires_grad=True)

    def gradients():
        a.grad = b.grad = None
        first, second = net(a), net(b)
        weighed(first).backward()
        weighed(second).backward()
        return [a.grad, b.grad, *[p.grad for p in net.parameters()]]

    assert_all_equal(*both(net, gradients))


def test_the_caller_goes_on_using_its_input(anchors) -> None:
    net, x = stack(anchors), sample(6).requires_grad_()

    def gradients():
        x.grad = None
        before = x.detach().clone()
        h = torch.relu(x)[:, 1:5]
        weighed(net(h) + h * h).backward()
        assert torch.equal(x, before)
        return [x.grad, *[p.grad for p in net.parameters()]]

    assert_all_equal(*both(net, gradients))


def test_auxiliary_and_inner_losses(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    inner = []
    net[4].register_forward_hook(lambda _, __, output: inner.append(output))

    def gradients(outer: float):
        inner.clear()
        y = net(x)
        loss = weighed(inner[0]) + (outer * weighed(y) if outer else 0)
        return torch.autograd.grad(loss, [x, *parameters(net)], allow_unused=True)

    for outer in (0.0, 0.5):
        assert_all_equal(*both(net, lambda outer=outer: gradients(outer)))


def test_tuple_states(anchors) -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(10)], anchors=anchors)
    net.double()
    q, p = sample(2, requires_grad=True), sample(2, requires_grad=True)
    context = sample(1, requires_grad=True)

    def gradients(both_used: bool):
        a, b = net((q, p), context)
        loss = weighed(a) + (weighed(b * a) if both_used else 0)
        inputs = [q, p, context, *parameters(net)]
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    for both_used in (True, False):
        assert_all_equal(*both(net, lambda used=both_used: gradients(used)))


def test_batch_norm_moves_its_statistics_once(anchors) -> None:
    class Normalized(Conditioner):
        def __init__(self):
            super().__init__(2, 2)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(super().forward(x))

    layers = [AdditiveCoupling(Normalized()) for _ in range(10)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)
    initial = copy.deepcopy(net.state_dict())

    def gradients_and_statistics():
        net.load_state_dict(initial)
        gradients = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        return [*gradients, *[b.double().clone() for b in net.buffers()]]

    assert_all_equal(*both(net, gradients_and_statistics))
    assert {b.item() for n, b in net.named_buffers() if "num_batches" in n} == {1}


def test_checkpoint_around_and_inside(anchors) -> None:
    class Inside(Conditioner):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    layers = [AdditiveCoupling(Inside(2, 2)) for _ in range(10)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)

    def gradients():
        y = checkpoint(net, x, use_reentrant=False)
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_functional_call_with_the_backward_outside(anchors) -> None:
    net, x = stack(anchors), sample()

    def gradients():
        torch.manual_seed(0)
        others = {k: torch.randn_like(v) / 3 for k, v in net.named_parameters()}
        leaves = [v.requires_grad_() for v in others.values()]
        doubled = {k: v * 2 for k, v in others.items()}
        y = torch.func.functional_call(net, doubled, (x,))
        return torch.autograd.grad(weighed(y), leaves)

    assert_all_equal(*both(net, gradients))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_func_transforms(anchors) -> None:
    net, x = stack(anchors), sample()
    tangent = sample()
    values = {k: v.detach() for k, v in net.named_parameters()}

    def loss(values, x):
        return weighed(torch.func.functional_call(net, values, (x[None],)))

    def transforms():
        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
        jacobian = torch.func.jacrev(net)(x[:1])
        return [*per_sample.values(), jacobian, *torch.func.jvp(net, (x,), (tangent,))]

    assert_all_equal(*both(net, transforms))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_no_grad_and_inference_mode(anchors, direction) -> None:
    net, x = stack(anchors), sample()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not getattr(net, direction)(x).requires_grad


def test_empty_batches(anchors) -> None:
    net, x = stack(anchors), sample(batch=0, requires_grad=True)

    def gradients():
        return torch.autograd.grad(net(x).sum(), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_states(anchors) -> None:
    layers = [AdditiveCoupling(Conditioner(2, 2, dims=0)) for _ in range(10)]
    net = InvertibleSequential(*layers, anchors=anchors).to(torch.complex128)
    x = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)

    def gradients():
        return torch.autograd.grad(net(x).abs().square().sum(), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_channels_last_and_strided_inputs(anchors) -> None:
    net = stack(anchors)
    wide = sample(6).to(memory_format=torch.channels_last).requires_grad_()

    def gradients():
        y = net(wide[:, ::2].repeat_interleave(2, 1)[:, 1:5])
        return torch.autograd.grad(weighed(y), [wide, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_copies_and_pickles_compute_the_same(anchors) -> None:
    net, x = stack(anchors), sample()
    net(x).sum().backward()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), net(x))
        assert list(copied.state_dict()) == list(net.state_dict())
        assert copied.anchors == anchors


def test_backward_hooks_of_a_layer_see_it_once(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    seen = []
    net[3].register_full_backward_hook(lambda _, gx, gy: seen.append((*gx, *gy)))

    def gradients():
        seen.clear()
        weighed(net(x)).backward()
        (pair,) = seen
        return pair

    assert_all_equal(*both(net, gradients))


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


def test_both_directions_in_one_graph(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        y = net(x)
        again = net.inverse(y * 1.5)
        return torch.autograd.grad(weighed(again), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))
    assert_equal(net.inverse(net(x)), x)
