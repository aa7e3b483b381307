"""All private names of PyTorch that this package uses.

A private name may change in any release. The rest of the package only uses the
functions and names of this file, so that only this file changes with PyTorch. All names
were used with PyTorch 2.11 and 2.13; `tests/unit/test_torch_names.py` calls each of
them with the installed version.

Each entry states why the name is needed, and what could replace it ("Without:"; "none"
if nothing could).
"""

from __future__ import annotations

import functools
import gc
import operator
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch._subclasses import FakeTensor
from torch.autograd import Variable, forward_ad
from torch.autograd.graph import GradientEdge
from torch.autograd.graph import Node as AutogradNode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase as RunningStatistics
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.modules.lazy import LazyModuleMixin as LazyModule
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNorm
from torch.nn.utils.parametrizations import _WeightNorm as WeightNorm
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "CONVOLVE",
    "HOOKS",
    "LEAF",
    "RUN_BACKWARD",
    "Convolution",
    "DispatchMode",
    "LazyModule",
    "RunningStatistics",
    "SavedTensorsHooks",
    "SavedTensorsHooksOff",
    "SpectralNorm",
    "WeightNorm",
    "add_to_parametrization_cache",
    "assert_async",
    "backward_id",
    "backward_keeps_graph",
    "break_graph",
    "buffers_of",
    "checkpoint_traced",
    "constant_in_graphs",
    "exchange_tensors",
    "expect_break",
    "frames_compiled",
    "function_modes",
    "has_global_hooks",
    "has_hooks",
    "has_node_hooks",
    "has_tensor_hooks",
    "has_values",
    "hooks_of",
    "is_compiled",
    "is_exporting",
    "is_forward_ad_active",
    "is_fully_sharded",
    "is_functorch_active",
    "is_gathered",
    "is_profiling",
    "is_tracing",
    "is_view",
    "is_wrapper",
    "modes_are_active",
    "modules_inside",
    "nodes_created",
    "normalized_weight",
    "number_of",
    "parameters_of",
    "parametrization_cache",
    "plain_tensors",
    "queue_callback",
    "random_operation",
    "recorded_allocations",
    "run_backward",
    "same_values",
    "saved_tensors_hooks_now",
    "set_function_modes",
    "shapes_of",
    "specialize_sizes",
    "start_recording_allocations",
    "submodules_of",
    "traced_as",
    "traced_operations",
    "tree_leaves",
    "tree_map",
    "unseen_by_modes",
    "untraced",
    "unwrapped",
    "versions",
    "weight_norm_backward",
    "weight_norm_with_norms",
]

Tensors: TypeAlias = tuple[Tensor, ...]
Function = TypeVar("Function", bound=Callable[..., Any])
SavedTensorsHooks: TypeAlias = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]

# tree_map, tree_leaves: contexts may be lists, dictionaries and tuples of tensors.
# Without: a recursive function over these three kinds of collections.

# RunningStatistics and Convolution: the base classes of PyTorch's batch and instance
# normalizations, and of its convolutions. SpectralNorm and WeightNorm: the modules that
# the parametrizations of these names register.
# Without: a list of the public subclasses; for a parametrization, its parameters.


# DispatchMode: the base class of modes that see each operation of a thread. It tells
# draws of a layer from those of other threads. Without: a replay sets the generators.


# The method that the `forward` of a convolution calls. A class or an instance that
# overrides it computes something else. Without: no closed form of convolutions.
CONVOLVE = "_conv_forward"


# --- backward passes ------------------------------------------------------------------


def run_backward(
    outputs: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    create_graph: bool,
) -> Sequence[Tensor | None]:
    """Return the gradients of `inputs`; `None` where the outputs do not depend on one.

    `torch.autograd.grad` calls this function after it has checked its arguments. The
    checks take a third of the time of a small layer, and are not needed here.
    Without: `torch.autograd.grad(..., allow_unused=True)`.
    """
    engine: Callable[..., Sequence[Tensor | None]]
    engine = Variable._execution_engine.run_backward
    flags = create_graph, create_graph  # keep_graph, create_graph
    return engine(
        outputs, gradients, *flags, tuple(inputs), True, accumulate_grad=False
    )


# The functions of PyTorch and of this file in which a thread waits for a backward pass
# that it started, by file and name. Without: no lock is lent to the threads of a GPU.
RUN_BACKWARD = {
    (torch.autograd.graph.__file__, "_engine_run_backward"),
    (__file__, "run_backward"),
}


def queue_callback(callback: Callable[[], None]) -> None:
    """Call `callback` at the end of the backward pass that runs in this thread.

    DDP and FSDP use the same queue to exchange gradients. Without: none.
    """
    Variable._execution_engine.queue_callback(callback)


def backward_id() -> int:
    """Return the number of the current backward pass; -1 if none is running.

    Without: none; a state compared in two backward passes would be reported once.
    """
    number: int = torch._C._current_graph_task_id()
    return number


def backward_keeps_graph() -> bool:
    """Return whether the current backward pass runs with `retain_graph=True`.

    If not, the current node is freed soon, and states that only this node needs can be
    freed at once. Without: `False`; states are kept a little longer.
    """
    keeps: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return keeps


# --- subclasses of tensors ------------------------------------------------------------


def plain_tensors(tensor: Tensor) -> Tensors:
    """Return the plain tensors that hold the values of a tensor of a subclass.

    A subclass may intercept functions (`__torch_function__`): then its memory is that
    of a plain tensor. Or it wraps other tensors (`__torch_dispatch__`), and says which
    (`__tensor_flatten__`). Without: the guard refuses all subclasses.

    Raises:
        TypeError: If the tensors inside of a wrapper are not known.
    """
    kind = type(tensor)
    if kind in (Tensor, nn.Parameter, FakeTensor):
        return (tensor,)
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return tuple(t for name in names for t in plain_tensors(getattr(tensor, name)))
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(
            f"a state is a {kind.__name__}, whose values cannot be compared: define "
            f"its __tensor_flatten__, or set memory='store'"
        )
    with torch._C.DisableTorchFunctionSubclass():
        return (tensor.as_subclass(Tensor),)


def is_wrapper(tensor: Tensor) -> bool:
    """Return whether a tensor is of a subclass that wraps other tensors.

    What is assigned to its `data` does not reach them.
    Without: `True` for all subclasses, whose layers are then evaluated twice.
    """
    kind = type(tensor)
    own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    return own and not issubclass(kind, FakeTensor)


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor has values; fake and meta tensors have none.

    Without: fake tensors fail where their values are read.
    """
    return not any(
        isinstance(t, FakeTensor) or t.device.type == "meta"
        for t in plain_tensors(tensor)
    )


# --- modes of PyTorch -----------------------------------------------------------------


def nodes_created() -> int:
    """Return how many nodes of graphs this thread has created so far.

    Without: none; a replay that takes another branch than the forward pass would not be
    noticed where both return the same values.
    """
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    return number


LEAF = 2**64 - 1  # the number of a node that accumulates a gradient


def number_of(node: AutogradNode) -> int:
    """Return how many nodes its thread had created before a node; `LEAF` for a leaf.

    Without: as for `nodes_created`.
    """
    number: int = node._sequence_nr()
    return number


def shapes_of(node: AutogradNode) -> tuple[Any, ...]:
    """Return the shapes of what the operation of a node returned.

    Without: none; a replay that takes a branch of another width would not be noticed
    where both return the same values.
    """
    results = node._input_metadata
    return tuple([None if r.is_nested_tensor else r.shape for r in results])


def frames_compiled() -> int:
    """Return how often `torch.compile` has compiled a frame so far in this process.

    To compile a frame, anew for other inputs too, creates nodes, which are not those of
    the call. Without: `0`, and no comparison of the nodes of layers that contain
    something compiled.
    """
    module = sys.modules.get("torch._dynamo.utils")
    return 0 if module is None else int(module.counters["frames"]["total"])


def is_functorch_active() -> bool:
    """Return whether a transform of `torch.func` is running.

    A transform wraps tensors. A custom function must not keep them until after the
    transform. Without: none.
    """
    active: bool = torch._C._are_functorch_transforms_active()
    return active


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor that transforms of `torch.func` wrapped, of all samples.

    Without: a check of values has to be left out inside of a transform.
    """
    if torch.compiler.is_compiling():
        return tensor
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def is_exporting() -> bool:
    """Return whether `torch.export` is running.

    `torch.compiler.is_exporting()` is the public name, but in PyTorch 2.11 it is
    also traced as true under `torch.compile`. Without: the public name, from 2.13 on.
    """
    return bool(torch.compiler._is_exporting_flag)


def is_tracing() -> bool:
    """Return whether `torch.jit.trace` is running. Without: `torch.jit.is_tracing()`.

    Dynamo cannot trace the public name.
    """
    return torch._C._get_tracing_state() is not None


def is_forward_ad_active() -> bool:
    """Return whether forward-mode differentiation is on (`torch.autograd.forward_ad`).

    Without: none; every tensor would have to be checked for a tangent.
    """
    return forward_ad._current_level >= 0


def modes_are_active() -> bool:
    """Return whether a mode that intercepts operations is active.

    Such a mode may change what an operation does. The one of `torch.device(...)` as a
    context is not counted: it only sets the device of new tensors.
    Without: `True`; no layer is differentiated by its closed form.
    """
    return _get_current_dispatch_mode() is not None or any(
        type(mode) is not DeviceContext for mode in function_modes()
    )


def function_modes() -> tuple[Any, ...]:
    """Return the function modes that are active, the one of the default device too.

    A replay activates those of the forward pass, because PyTorch leaves them in a
    backward pass.
    Without: none.
    """
    count = _len_torch_function_stack()
    return tuple(map(torch._C._get_function_stack_at, range(count))) if count else ()


def set_function_modes(modes: Sequence[Any]) -> None:
    """Activate exactly these function modes. Without: none, as for `function_modes`."""
    for _ in range(_len_torch_function_stack()):
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, also where a dispatch mode is active.

    `FakeTensorMode` takes no real tensors such as random states. Without: none.
    """
    if _get_current_dispatch_mode() is None:
        return torch.equal(a, b)
    with _disable_current_modes():
        return torch.equal(a, b)


def unseen_by_modes() -> AbstractContextManager[object]:
    """Return a context in which dispatch modes, such as a counter, see no operation.

    Without: none; `FlopCounterMode` would count what the guard computes.
    """
    active = _get_current_dispatch_mode() is not None
    unseen: AbstractContextManager[object]
    unseen = _disable_current_modes() if active else nullcontext()
    return unseen


def saved_tensors_hooks_now() -> SavedTensorsHooks | None:
    """Return the innermost hooks that pack saved tensors and unpack them, if any.

    Without: none; states would not be packed.
    """
    hooks: SavedTensorsHooks | None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks


class SavedTensorsHooksOff:
    """Context manager in which no hooks of saved tensors are called.

    What a call saves is dropped, or used at once. Without: none; hooks would pack it.
    """

    def __enter__(self) -> None:
        self.hooks: list[SavedTensorsHooks] = []
        while (hooks := saved_tensors_hooks_now()) is not None:
            torch._C._autograd._pop_saved_tensors_default_hooks()
            self.hooks.append(hooks)

    def __exit__(self, *_: object) -> None:
        while self.hooks:
            pack, unpack = self.hooks.pop()
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


# --- modules --------------------------------------------------------------------------

# The dictionaries of hooks of a module, including those of the options of hooks.
# Without: none; public functions of PyTorch register hooks, but do not list them.
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """Return the dictionaries of hooks that run when a module is called.

    Without: none, as for `HOOKS`.
    """
    return [getattr(module, name) for name in HOOKS]


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has such hooks, faster than `hooks_of`.

    Without: none, as for `HOOKS`.
    """
    return any(map(vars(module).__getitem__, HOOKS))


def has_node_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks of the deprecated `register_backward_hook`.

    They see the node that computed the output, which depends on how that was done.
    Without: none.
    """
    own = vars(module)
    return bool(own["_backward_hooks"]) and own["_is_full_backward_hook"] is False


def has_global_hooks() -> bool:
    """Return whether hooks for all modules are registered. Without: `True`."""
    return bool(_has_any_global_hook())


def parameters_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dictionary of the module's own parameters, without submodules.

    A replay replaces tensors in it. Without: `torch.func.functional_call`, which visits
    all names of the submodules at every call.
    """
    return module._parameters  # type: ignore[return-value]


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dictionary of the module's own buffers.

    Without: as for `parameters_of`.
    """
    return module._buffers


def submodules_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the dictionary of the module's direct submodules.

    Without: as for `parameters_of`.
    """
    return module._modules


def modules_inside(module: nn.Module) -> list[nn.Module]:
    """Return a module and all of its submodules, each once.

    Without: `list(module.modules())`, which is five times slower.
    """
    parts: dict[int, nn.Module] = {id(module): module}
    pending = [module]
    while pending:
        for part in pending.pop()._modules.values():
            if part is not None and id(part) not in parts:
                parts[id(part)] = part
                pending.append(part)
    return [*parts.values()]


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called. Without: `True`."""
    return module._compiled_call_impl is not None


def is_fully_sharded(module: nn.Module) -> bool:
    """Return whether FSDP2's `fully_shard` was applied to a module.

    Without: `isinstance(module, torch.distributed.fsdp.FSDPModule)`; the import takes
    half a second.
    """
    return hasattr(type(module), "_get_fsdp_state")


def is_view(tensor: Tensor) -> bool:
    """Return whether autograd knows a tensor as a view of another one.

    Without: compare `untyped_storage()` with those of all other tensors.
    """
    return tensor._is_view()


def same_as(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for tensors of the same memory, layout and version.

    It holds the memory weakly: the memory may be freed, but another tensor that is put
    there has another key. Without: compare `data_ptr()`, and hold the tensor.
    """
    memory = StorageWeakRef(tensor.untyped_storage())
    view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
    return memory, versions([tensor]), *view, tensor.is_conj(), tensor.is_neg()


def is_gathered(module: nn.Module) -> bool:
    """Return whether FSDP2 has gathered the parameters of a module from all ranks.

    Values written to gathered parameters are lost when they are sharded again.
    Without: none; the gathered parameters are usual ones.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    plain = [p for p in module.parameters() if not hasattr(p, "device_mesh")]
    return any(
        "_unsharded_param" in (holder if isinstance(holder, dict) else ())
        or type(holder).__name__ == "FSDPParam"
        for parameter in plain
        for holder in gc.get_referrers(parameter)
    )


def exchange_tensors(
    module: nn.Module, tensors: dict[str, Tensor]
) -> AbstractContextManager[None]:
    """Return a context that replaces parameters and buffers of a module, by name.

    Any method can be called in it. `torch.func.functional_call` only calls `forward`.
    Without: that function on a module whose `forward` is the method.
    """
    exchange: AbstractContextManager[None] = _reparametrize_module(module, tensors)
    return exchange


def parametrization_cache() -> int:
    """Return how many contexts `parametrize.cached()` are active.

    A weight that was computed without a graph must not be read from the cache later.
    Without: none.
    """
    return int(parametrize._cache_enabled)


def add_to_parametrization_cache(entered: int) -> None:
    """Add to the number that `parametrization_cache` returns.

    The number is one for all threads. Another thread may have entered or left such a
    context meanwhile, so that the number before must not be written back. If the last
    one was left meanwhile, the cached weights are dropped, as it would have done.
    Without: none.
    """
    parametrize._cache_enabled += entered
    if entered > 0 and not parametrize._cache_enabled:
        parametrize._cache = {}


# --- tensors --------------------------------------------------------------------------


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each tensor was changed in place; 0 for inference tensors.

    Without: none; a change of a tensor before the backward pass would not be noticed.
    """
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # inference tensors have no version
        return [0 if t.is_inference() else t._version for t in tensors]


def has_tensor_hooks(tensor: Tensor) -> bool:
    """Return whether hooks of the tensor's gradient are registered. Without: `True`."""
    return bool(tensor._backward_hooks)


def normalized_weight(v: Tensor, g: Tensor) -> Tensor:
    """Return the weight of `weight_norm`, with a graph. Without: its formula."""
    return torch._weight_norm(v, g, 0)


def weight_norm_with_norms(v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return this weight, and the norms that `weight_norm_backward` needs.

    Without: the formulas.
    """
    pair: tuple[Tensor, Tensor] = torch.ops.aten._weight_norm_interface(v, g, 0)
    return pair


def weight_norm_backward(
    grad: Tensor, v: Tensor, g: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `v` and `g`. Without: the formula."""
    pair: tuple[Tensor, Tensor]
    pair = torch.ops.aten._weight_norm_interface_backward(grad, v, g, norms, 0)
    return pair


# --- torch.compile --------------------------------------------------------------------

# The public names import Dynamo, which takes seconds, where a function is decorated.


def untraced(function: Function) -> Function:
    """Return a function that Dynamo does not trace, nor what it calls.

    Without: `torch.compiler.disable(function)`, which imports Dynamo at once.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*arguments)  # nothing is traced yet
            disabled = torch.compiler.disable(function)
        return disabled(*arguments)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = None  # type: ignore[attr-defined]
    return cast(Function, call)


def traced_as(traced: Callable[..., Any], function: Function) -> Function:
    """Return `function`, in whose place Dynamo traces another function.

    If Dynamo cannot trace that one, it breaks the graph and calls `function`, and the
    functions around it can still be compiled. Functions that `torch.compile` returns
    have the same attribute.
    Without: `torch.compiler.substitute_in_graph`, which imports Dynamo.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call._torchdynamo_inline = traced  # type: ignore[attr-defined]
    return cast(Function, call)


def constant_in_graphs(function: Function) -> Function:
    """Mark a function that Dynamo calls while it traces; the result is a constant.

    Without: `torch.compiler.assume_constant_result`, which imports Dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def break_graph(reason: str) -> None:
    """End the graph that Dynamo traces here; with `fullgraph=True` raise `reason`.

    An exception in traced code has the same effect, but Dynamo then never compiles
    again the functions through which it was raised.
    Without: none.
    """
    torch._dynamo.graph_break(reason)


@constant_in_graphs
def expect_break(expected: bool) -> bool:
    """Set `breaks_graph` of the module whose method Dynamo compiles, if it has it.

    It is set while Dynamo traces, for it starts again where a graph broke, and then
    compares what it read of the module at first with what it reads later.
    Without: none; a module would use what was compiled of another one that broke it.

    Returns:
        What it was before.
    """
    module = _translator().output.root_tx.f_locals.get("self")
    if not isinstance(module, nn.Module) or not hasattr(module, "breaks_graph"):
        return False
    attributes = vars(module)  # Dynamo also compares whether it is among them
    before = bool(attributes.pop("breaks_graph", False))
    if expected:
        attributes["breaks_graph"] = True
    return before


@constant_in_graphs
def traced_operations() -> tuple[int, int]:
    """Return how many operations Dynamo has traced, and draws of the module `random`.

    Without: none, as for `random_operation`.
    """
    return len(_traced_graph().nodes), len(_translator().output.random_calls)


@constant_in_graphs
def random_operation(start: tuple[int, int]) -> str:
    """Return the name of a random operation traced since `traced_operations`.

    Each operation is run again on the fake tensors with which Dynamo traced it, below
    the functions of which PyTorch composes it. Operators that draw random numbers have
    a tag there. Empty if there is none.
    Without: a list of the random functions of PyTorch, and none for their arguments.
    """
    output, draws = _translator().output, _Draws()
    for draw, _, _ in output.random_calls[start[1] :]:
        return str(draw.__name__)
    fake, fresh = output.fake_mode, nullcontext()
    if output.shape_env is not None:
        fresh = output.shape_env.ignore_fresh_unbacked_symbols()
    with torch.no_grad(), fake, fresh, draws:
        _run_again([*_traced_graph().nodes][start[0] :], output.nn_modules)
    return draws.name


@constant_in_graphs
def checkpoint_traced(start: tuple[int, int]) -> bool:
    """Return whether `checkpoint` was traced since `traced_operations`.

    Without: none; AOTAutograd fails on it inside of an autograd function.
    """
    nodes = [*_traced_graph().nodes][start[0] :]
    names = (getattr(node.target, "__name__", "") for node in nodes)
    return "tag_activation_checkpoint" in names


class _Draws(DispatchMode):
    """Notes the name of an operator that draws random numbers."""

    name: str = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if not self.name and _draws(func, args, kwargs or {}):
            self.name = func.overloadpacket.__name__
        return func(*args, **(kwargs or {}))


def _draws(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether a call of an operator draws random numbers. Without: as above."""
    arguments = operator._schema.arguments
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= dict(zip([a.name for a in arguments], args, strict=False)) | kwargs
    rates = [given[name] for name in ("p", "dropout_p", "dropout") if name in given]
    training = [given[name] for name in ("train", "training") if name in given]
    tagged = torch.Tag.nondeterministic_seeded in operator.tags
    drops = any(name in given for name in ("dropout_p", "dropout"))
    return (tagged or drops) and 0 not in rates and False not in training


def _run_again(nodes: Sequence[Node], graphs: dict[str, Any]) -> None:
    """Run nodes of a graph again, and in place of a graph its nodes.

    Without: as above.
    """
    for node in nodes:
        if isinstance(graphs.get(str(node.target)), GraphModule):
            _run_again([*graphs[str(node.target)].graph.nodes], graphs)
        elif node.op.startswith("call_") and not _calls_a_graph(node):
            args, kwargs = map_arg(
                (node.args, node.kwargs), lambda n: n.meta["example_value"]
            )
            function: Any = node.target
            if node.op == "call_method":
                function = getattr(type(args[0]), str(node.target))
            function(*args, **kwargs)


def _calls_a_graph(node: Node) -> bool:
    """Return whether a node calls a graph, or switches a mode. Without: as above."""
    return any("example_value" not in n.meta for n in (node, *node.all_input_nodes))


@constant_in_graphs
def specialize_sizes() -> bool:
    """Let Dynamo take the sizes of all tensors that it has seen as constants.

    Without: `torch.compile(dynamic=False)`; an autograd function of a graph must not
    compute with sizes that may change.

    Returns:
        Whether it did so; not if the caller marked a size as dynamic.
    """
    inputs = _translator().output.tracked_fakes
    tensors = [one for one in inputs if isinstance(one.fake, Tensor)]
    for one in tensors:
        for limit in getattr(one.symbolic_context, "constraint_sizes", ()):
            if limit is not None and not getattr(limit, "warn_only", False):
                return False
    for one in tensors:
        for size in one.fake.shape:
            operator.index(size)
    return True


def _translator() -> Any:
    """Return what translates the function that Dynamo traces. Without: as above."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx()


def _traced_graph() -> Any:
    """Return the graph that it has traced so far. Without: as above."""
    return _translator().output.current_tracer.graph


def assert_async(condition: Tensor, message: str) -> None:
    """Assert in a compiled graph, without synchronizing with the device.

    Without: none; a compiled pass would have no guard.
    """
    torch._assert_async(condition, message)


# --- the allocations of a thread ------------------------------------------------------


def is_profiling() -> bool:
    """Return whether a profiler records this thread; they cannot be nested.

    Without: none.
    """
    enabled: bool = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    return enabled


def start_recording_allocations() -> None:
    """Record the allocations on the CPU that operations of this thread make.

    The public profiler is one for the whole process: two threads that use it at the
    same time crash. This one is its predecessor, with a record for each thread.
    Without: the public profiler, under a lock.
    """
    options: Any = torch.autograd
    memory = False, True, False, False, False  # profile_memory, and not the others
    extra = torch._C._profiler._ExperimentalConfig()
    config = options.ProfilerConfig(options.ProfilerState.CPU, *memory, extra)
    options._enable_profiler_legacy(config)


def recorded_allocations(marker: str) -> list[int | None]:
    """Stop recording, and return the bytes of each allocation, in order.

    The bytes are negative where memory is freed. `None` stands where a
    `record_function(marker)` begins. Without: as for `start_recording_allocations`.
    """
    records: Any = torch.autograd._disable_profiler_legacy()  # type: ignore[attr-defined]
    found: list[int | None] = []
    for event in chain.from_iterable(records):
        if event.kind() == "memory_alloc":
            found.append(event.cpu_memory_usage())
        elif event.kind() == "push" and event.name() == marker:
            found.append(None)
    return found
