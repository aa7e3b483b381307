"""Subclasses of `Tensor`, as libraries write them."""

from torch import Tensor, nn

from invtorch._torch import tree_map


class Described(Tensor):
    """Carries a description, as images of medical libraries do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, Described):
            from_others = (getattr(a, "text", None) for a in args)
            result.text = next(filter(None, from_others), None)
        return result


class Wrapper(Tensor):
    """Wraps a tensor and hides it from autograd."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            dtype=inner.dtype,
            device=inner.device,
        )

    def __init__(self, inner) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Wrapper({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrapped(value):
            return value.inner if isinstance(value, Wrapper) else value

        def wrapped(value):
            return cls(value) if isinstance(value, Tensor) else value

        given = tree_map(unwrapped, (args, kwargs or {}))
        return tree_map(wrapped, function(*given[0], **given[1]))


class Transparent(Wrapper):
    """A wrapper that says what it wraps."""

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Transparent(inner["inner"])


KINDS = {
    "plain": lambda x: x,
    "parameter": nn.Parameter,
    "described": lambda x: x.as_subclass(Described),
    "transparent": Transparent,
}
