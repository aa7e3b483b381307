"""PyTorch's private names: each works with the version installed, each is used once.

`make oldest` runs this file with the oldest PyTorch that is supported.
"""

import re
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import invtorch
from invtorch import _torch
from tests.devices import ON_THE_CPU
from tests.subclasses import Transparent

PACKAGE = Path(invtorch.__file__).parent
PRIVATE = re.compile(
    r"(?<!inv)torch(\.\w+)*\._(?!_)\w"  # torch._C, torch.x._y; not torch.__version__
    r"|from torch[\w.]* import [^\n]*(?<!\w)_\w"
    r"|from torch[\w.]*\._\w+"
    r"|(?<!invtorch)\._(parameters|buffers|modules|version|backward_hooks|backward_pre_hooks"
    r"|forward_hooks|forward_pre_hooks|compiled_call_impl|execution_engine"
    r"|cache_enabled|conv_forward)\b"
)
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_are_in_one_file(path) -> None:
    names = [m[0] for m in PRIVATE.finditer(path.read_text())]
    assert bool(names) == (path.name == "_torch.py"), names


def test_every_name_says_why_and_what_stands_in() -> None:
    text = (PACKAGE / "_torch.py").read_text()
    sections = re.split(r"\n(?=def )", text)[1:]
    for section in sections:
        name = re.match(r"def (\w+)", section)[1]
        assert "Without:" in section or "as above" in section, name
    assert "2.11 and 2.13" in text


def test_nothing_is_left_untested() -> None:
    here = Path(__file__).read_text()
    assert [name for name in _torch.__all__ if f"_torch.{name}" not in here] == []


class TestSubclasses:
    """Names of subclasses of tensors."""

    def test_the_values_of_a_tensor(self) -> None:
        class Own(torch.Tensor):
            """A tensor of another class, with the same memory."""

        x = torch.ones(2, device="cpu")
        (found,) = _torch.plain_tensors(x.as_subclass(Own))
        assert (type(found), found.data_ptr()) == (torch.Tensor, x.data_ptr())
        weight = nn.Parameter(x)
        assert _torch.plain_tensors(weight)[0] is weight
        assert not any(map(_torch.is_wrapper, (x, weight, x.as_subclass(Own))))
        assert _torch.is_wrapper(Transparent(x))
        assert _torch.has_values(x)
        assert not _torch.has_values(x.to("meta"))
        with FakeTensorMode():
            assert not _torch.has_values(torch.ones(2))


class TestBackward:
    """Names of backward passes."""

    def test_gradients(self) -> None:
        x, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
        y = x.square()
        arguments = (y,), (torch.ones(2),), (x, unused)
        (first, none) = _torch.run_backward(*arguments, create_graph=True)
        assert none is None
        assert first.requires_grad
        assert torch.equal(first, 2 * x)

    def test_callbacks_come_at_the_end(self) -> None:
        events = []
        x = torch.ones(1, requires_grad=True)

        def hook(grad):
            _torch.queue_callback(lambda: events.append("end"))
            events.append("hook")

        x.register_hook(hook)
        (x * 2).sum().backward()
        assert events == ["hook", "end"]

    def test_numbers_of_passes_and_their_graphs(self) -> None:
        seen = []
        x = torch.ones(1, requires_grad=True)
        x.register_hook(
            lambda _: seen.append((_torch.backward_id(), _torch.backward_keeps_graph()))
        )
        loss = x.square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert _torch.backward_id() == -1
        (one, kept), (other, freed) = seen
        assert -1 not in (one, other)
        assert one != other
        assert (kept, freed) == (True, False)


class TestModes:
    """Names of modes that a program may be in."""

    def test_none_is_active(self) -> None:
        assert not _torch.is_functorch_active()
        assert not _torch.is_exporting()
        assert not _torch.is_tracing()
        assert not _torch.is_forward_ad_active()
        assert not _torch.is_profiling()

    def test_functorch(self) -> None:
        seen = []
        torch.vmap(lambda x: seen.append(_torch.is_functorch_active()) or x)(
            torch.ones(2)
        )
        assert seen == [True]

    def test_the_tensor_inside_of_transforms(self) -> None:
        seen, x = [], torch.ones(2, 3)

        def inner(y):
            seen.append(_torch.unwrapped(y))
            return y.sum()

        torch.vmap(torch.func.grad(inner))(x)
        assert torch.equal(seen[0], x)
        assert _torch.unwrapped(x) is x

    @pytest.mark.filterwarnings("ignore")
    def test_tracing_and_export(self) -> None:
        seen = []

        class Looks(nn.Module):
            def forward(self, x):
                seen.append((_torch.is_tracing(), _torch.is_exporting()))
                return x + 1

        torch.jit.trace(Looks(), torch.ones(2))
        torch.export.export(Looks(), (torch.ones(2),), strict=False)
        assert (True, False) in seen
        assert (False, True) in seen

    def test_forward_mode(self) -> None:
        with torch.autograd.forward_ad.dual_level():
            assert _torch.is_forward_ad_active()

    def test_modes_that_see_every_operation(self) -> None:
        from torch.overrides import TorchFunctionMode
        from torch.utils._python_dispatch import TorchDispatchMode

        assert not _torch.modes_are_active()
        with torch.device("cpu"):
            assert not _torch.modes_are_active()
        for mode in (TorchFunctionMode, TorchDispatchMode):
            with mode():
                assert _torch.modes_are_active()

    def test_function_modes(self) -> None:
        from torch.overrides import BaseTorchFunctionMode

        outside = _torch.function_modes()
        with torch.device("meta"), BaseTorchFunctionMode() as mode:
            inside = _torch.function_modes()
        assert inside[-1] is mode
        _torch.set_function_modes(inside)
        on_meta = torch.empty(1).is_meta
        _torch.set_function_modes(outside)
        assert on_meta
        assert _torch.function_modes() == outside

    def test_values_of_real_tensors_in_a_fake_mode(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        a, b = torch.zeros(2), torch.ones(2)
        for mode in (torch.enable_grad, FakeTensorMode):
            with mode():
                assert _torch.same_values(a, a)
                assert not _torch.same_values(a, b)

    def test_hooks_of_saved_tensors(self) -> None:
        def double(tensor):
            return 2 * tensor

        x = torch.ones(1, requires_grad=True)
        hooks: _torch.SavedTensorsHooks = (double, double)
        assert _torch.saved_tensors_hooks_now() is None
        with (
            torch.autograd.graph.saved_tensors_hooks(abs, abs),
            torch.autograd.graph.saved_tensors_hooks(*hooks),
        ):
            with _torch.SavedTensorsHooksOff():
                y = x.square()
                assert _torch.saved_tensors_hooks_now() is None
            assert _torch.saved_tensors_hooks_now() == hooks
        assert torch.autograd.grad(y, x)[0] == 2


class TestModules:
    """Names of modules."""

    def test_what_a_module_holds(self) -> None:
        norm = nn.BatchNorm2d(2)
        net = nn.Sequential(norm, norm)
        assert set(_torch.parameters_of(norm)) == {"weight", "bias"}
        assert "running_mean" in _torch.buffers_of(norm)
        assert [*_torch.submodules_of(net).values()] == [norm, norm]
        assert _torch.modules_inside(net) == [net, norm]

    def test_hooks(self) -> None:
        module = nn.Linear(1, 1)
        assert len(_torch.hooks_of(module)) == len(_torch.HOOKS)
        assert not any(_torch.hooks_of(module))
        assert not _torch.has_hooks(module)
        with module.register_forward_hook(lambda *_: None):
            assert _torch.has_hooks(module)
        registered = [name for name in vars(module) if name.endswith("_hooks")]
        calls = [n for n in registered if "state_dict" not in n and "load" not in n]
        assert set(calls) <= set(_torch.HOOKS)
        assert not _torch.has_global_hooks()
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        with handle:
            assert _torch.has_global_hooks()

    def test_compiled_and_sharded(self) -> None:
        module = nn.Linear(1, 1)
        assert not _torch.is_compiled(module)
        assert not _torch.is_fully_sharded(module)
        module.compile(backend="eager")
        assert _torch.is_compiled(module)

    def test_fully_sharded_modules_are_told_by_their_class(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        class Sharded(FSDPModule, nn.Linear):
            """What `fully_shard` makes of the class of a linear map."""

        assert _torch.is_fully_sharded(object.__new__(Sharded))

    def test_gathered_parameters_are_those_that_fsdp_holds(self, monkeypatch) -> None:
        module = nn.Linear(2, 2)
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        assert not _torch.is_gathered(module)
        holder = {"_unsharded_param": module.weight}
        assert _torch.is_gathered(module)
        del holder

    def test_hooks_of_nodes(self) -> None:
        module, other = nn.Linear(1, 1), nn.Linear(1, 1)
        assert not _torch.has_node_hooks(module)
        module.register_backward_hook(lambda *_: None)
        other.register_full_backward_hook(lambda *_: None)
        assert _torch.has_node_hooks(module)
        assert not _torch.has_node_hooks(other)

    def test_views(self) -> None:
        x = torch.zeros(2, 3)
        assert _torch.is_view(x[0])
        assert not _torch.is_view(x)

    def test_tensors_of_the_same_memory(self) -> None:
        x = torch.arange(6.0).view(2, 3)
        key = _torch.same_as(x)
        assert _torch.same_as(x.detach()) == key
        for other in (x.clone(), x[:1], x.T, x.view(3, 2), x.double()):
            assert _torch.same_as(other) != key
        x.add_(1)
        assert _torch.same_as(x) != key

    def test_operations_that_no_mode_sees(self) -> None:
        with FlopCounterMode(display=False) as counter, _torch.unseen_by_modes():
            torch.zeros(2, 2) @ torch.zeros(2, 2)
        assert counter.get_total_flops() == 0
        with _torch.unseen_by_modes():
            torch.zeros(1)

    def test_tensors_are_exchanged_inside(self) -> None:
        module, other = nn.Linear(1, 1, bias=False), torch.full((1, 1), 3.0)
        own = module.weight
        with _torch.exchange_tensors(module, {"weight": other}):
            assert module(torch.ones(1, 1)).item() == 3
        assert module.weight is own

    def test_classes(self) -> None:
        assert issubclass(nn.Conv3d, _torch.Convolution)
        assert issubclass(nn.ConvTranspose1d, _torch.Convolution)
        assert issubclass(nn.BatchNorm1d, _torch.RunningStatistics)
        assert issubclass(nn.InstanceNorm2d, _torch.RunningStatistics)
        assert issubclass(nn.LazyLinear, _torch.LazyModule)
        normed = weight_norm(nn.Linear(2, 2)).parametrizations.weight[0]
        assert isinstance(normed, _torch.WeightNorm)
        bounded = spectral_norm(nn.Linear(2, 2)).parametrizations.weight[0]
        assert isinstance(bounded, _torch.SpectralNorm)
        assert callable(getattr(nn.Conv2d, _torch.CONVOLVE))

    def test_the_cache_of_parametrizations(self) -> None:
        assert _torch.parametrization_cache() == 0
        with nn.utils.parametrize.cached():
            assert _torch.parametrization_cache() == 1
        _torch.add_to_parametrization_cache(2)
        assert _torch.parametrization_cache() == 2
        _torch.add_to_parametrization_cache(-2)
        assert _torch.parametrization_cache() == 0


class TestTensors:
    """Names of tensors."""

    def test_versions(self) -> None:
        x = torch.zeros(1)
        before = _torch.versions([x])
        x += 1
        assert _torch.versions([x]) == [before[0] + 1]
        with torch.inference_mode():
            assert _torch.versions([torch.zeros(1)]) == [0]

    def test_hooks_of_a_gradient(self) -> None:
        x = torch.ones(1, requires_grad=True)
        assert not _torch.has_tensor_hooks(x)
        x.register_hook(lambda grad: grad)
        assert _torch.has_tensor_hooks(x)

    def test_trees(self) -> None:
        tree = {"a": [1, (2, 3)]}
        assert _torch.tree_leaves(tree) == [1, 2, 3]
        assert _torch.tree_map(lambda n: -n, tree) == {"a": [-1, (-2, -3)]}

    def test_weight_norm(self) -> None:
        options = {"dtype": torch.float64, "requires_grad": True}
        v, g = torch.randn(3, 2, **options), torch.rand(3, 1, **options)
        weight = _torch.normalized_weight(v, g)
        assert torch.allclose(weight, g * v / v.norm(dim=1, keepdim=True))
        cotangent = torch.randn_like(weight)
        expected = torch.autograd.grad(weight, (v, g), cotangent)
        with torch.no_grad():
            same, norms = _torch.weight_norm_with_norms(v, g)
            found = _torch.weight_norm_backward(cotangent, v, g, norms)
        assert torch.equal(same, weight)
        assert all(map(torch.allclose, found, expected))

    @ON_THE_CPU
    def test_an_assertion(self) -> None:
        _torch.assert_async(torch.tensor(True), "fine")
        with pytest.raises(RuntimeError, match="not fine"):
            _torch.assert_async(torch.tensor(False), "not fine")


@pytest.mark.usefixtures("fresh_dynamo")
class TestCompilation:
    """Names of `torch.compile`."""

    def test_another_function_is_traced_in_place_of_one(self) -> None:
        double = _torch.traced_as(lambda x: 3 * x, lambda x: 2 * x)
        compiled = torch.compile(lambda x: double(x), backend="eager", fullgraph=True)
        assert compiled(torch.ones(1)).item() == 3
        assert double(torch.ones(1)).item() == 2

    def test_a_graph_is_broken_with_a_reason(self) -> None:
        def stopping(x):
            _torch.break_graph("this is why")
            return 3 * x

        double = _torch.traced_as(stopping, lambda x: 2 * x)

        def function(x):
            return double(x)

        with pytest.raises(RuntimeError, match="this is why"):
            torch.compile(function, backend="eager", fullgraph=True)(torch.ones(1))
        assert torch.compile(function, backend="eager")(torch.ones(1)).item() == 2

    def test_a_module_that_breaks_its_graph(self) -> None:
        class Module(nn.Module):
            breaks_graph = False

            def forward(self, x):
                return x if _torch.expect_break(True) else 2 * x

        module = Module()
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert compiled(torch.ones(1)).item() == 2
        assert module.breaks_graph

    def test_what_is_not_traced(self) -> None:
        seen = []

        @_torch.untraced
        def function(x):
            seen.append(torch.compiler.is_compiling())
            return 2 * x

        compiled = torch.compile(lambda x: function(x) + 1, backend="eager")
        assert function(torch.ones(1)).item() == 2
        assert compiled(torch.ones(1)).item() == 3
        assert seen == [False, False]

    def test_a_constant(self) -> None:
        values = [1, 2]
        next_value = _torch.constant_in_graphs(lambda: values.pop(0))
        compiled = torch.compile(
            lambda x: x * next_value(), backend="eager", fullgraph=True
        )
        assert [compiled(torch.ones(1)).item() for _ in range(2)] == [1, 1]

    def test_sizes_are_constants(self) -> None:
        found = []

        def traced(x):
            y = 2 * x
            found.append(_torch.specialize_sizes())
            return y * x.shape[0]

        x, options = torch.ones(3), {"backend": "eager", "fullgraph": True}
        compiled = torch.compile(traced, dynamic=True, **options)
        assert compiled(x).tolist() == [6, 6, 6]
        assert compiled(torch.ones(2)).tolist() == [4, 4]
        torch._dynamo.reset()
        torch._dynamo.mark_dynamic(x, 0)
        assert compiled(x).tolist() == [6, 6, 6]
        assert found == [True, True, False]

    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (torch.sin, ""),
            (torch.rand_like, "rand_like"),
            (lambda x: torch.dropout(x, 0.5, train=True), "bernoulli_"),
            (lambda x: torch.dropout(x, 0.5, train=False), ""),
            (lambda x: torch.dropout(x, 0.0, train=True), ""),
        ],
    )
    def test_random_operations(self, function, name) -> None:
        found = []

        @_torch.constant_in_graphs
        def look(before):
            found.append((before, _torch.random_operation(before)))
            return 0

        def traced(x):
            y = torch.rand_like(x)  # before
            before = _torch.traced_operations()
            y = function(x) + y
            return y + look(before)

        torch.compile(traced, backend="eager", fullgraph=True)(torch.ones(2))
        assert found[-1][1] == name

    @pytest.mark.parametrize("inside", [True, False])
    def test_checkpoint(self, inside) -> None:
        found = []

        @_torch.constant_in_graphs
        def look(before):
            found.append(_torch.checkpoint_traced(before))
            return 0

        def traced(x):
            y = checkpoint(torch.sin, x, use_reentrant=False)  # before
            before = _torch.traced_operations()
            if inside:
                y = checkpoint(torch.cos, y, use_reentrant=False)
            return y + look(before)

        torch.compile(traced, backend="eager", fullgraph=True)(torch.ones(2))
        assert found[-1] == inside


@ON_THE_CPU
def test_the_allocations_of_a_thread_are_counted() -> None:
    _torch.start_recording_allocations()
    assert _torch.is_profiling()
    kept = torch.zeros(256)
    with torch.autograd.profiler.record_function("here"):
        torch.zeros(512).sum()
    changes = _torch.recorded_allocations("here")
    assert not _torch.is_profiling()
    place = changes.index(None)
    assert sum(changes[:place]) == kept.nbytes
    assert max(changes[place + 1 :]) == 2048
    assert sum(changes[place + 1 :]) == 0


def test_nodes_and_compiled_frames_are_counted() -> None:
    x, frames = torch.ones(2, requires_grad=True), _torch.frames_compiled()
    before = _torch.nodes_created()
    x.sin().cos()
    assert _torch.nodes_created() - before == 2
    assert _torch.frames_compiled() == frames >= 0


def test_nodes_and_what_their_operations_returned() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    before = _torch.nodes_created()
    first, second = x.split([1, 2], 1)
    y = first + second
    add, split, leaf = y.grad_fn, first.grad_fn, x.view_as(x).grad_fn
    leaf = leaf.next_functions[0][0]
    assert [_torch.number_of(node) - before for node in (split, add)] == [0, 1]
    assert _torch.number_of(leaf) == _torch.LEAF
    assert [*map(tuple, _torch.shapes_of(split))] == [(2, 1), (2, 2)]
    assert [*map(tuple, _torch.shapes_of(add))] == [(2, 2)]


def test_a_frame_that_is_compiled_anew_counts_again(fresh_dynamo) -> None:
    compiled = torch.compile(torch.sin, backend="eager", dynamic=False)
    counts = []
    for size in (2, 3, 3):
        compiled(torch.ones(size))
        counts.append(_torch.frames_compiled())
    assert counts[0] < counts[1] == counts[2]


def test_where_a_thread_waits_for_a_backward_pass() -> None:
    seen = []

    class Sees(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.extend((f.filename, f.name) for f in traceback.extract_stack())
            return grad

    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Sees.apply(x).sum(), x)
    y = Sees.apply(x)
    _torch.run_backward((y,), (torch.ones(2),), (x,), create_graph=False)
    assert {*seen} >= _torch.RUN_BACKWARD


def test_a_mode_sees_operations() -> None:
    seen = []

    class Sees(_torch.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(torch.Tag.nondeterministic_seeded in func.tags)
            return func(*args, **(kwargs or {}))

    with Sees():
        torch.ones(2).sin()
        torch.rand(2)
    assert True in seen
    assert False in seen
