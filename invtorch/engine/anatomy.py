"""What a layer is made of, remembered from pass to pass."""

from __future__ import annotations

from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from invtorch.engine.attributes import Holder, Row
from invtorch.engine.contract import check_parts
from invtorch.engine.locks import Locks


class Anatomy:
    """The modules inside of a layer, and where they hold what.

    It does not hold the layer itself, so that the layer can be forgotten.

    Args:
        module: The layer.
        label: What errors call it.

    Raises:
        RuntimeError: If it has a part that a replay cannot do with.
    """

    def __init__(self, module: nn.Module, label: str) -> None:
        whole = _parts(module)
        self.parts = whole[1:]
        check_parts(label, self.parts)
        self.kinds = [*map(type, self.parts)]
        self.inner: list[Holder] = [*map(vars, self.parts)]
        self.children = self._children(module)
        self.row = Row(self.holders(module))
        self.locks = Locks(whole)

    def is_of(self, module: nn.Module) -> bool:
        """Tell whether the layer is still made of the same modules."""
        return (
            self._children(module) == self.children
            and [*map(type, self.parts)] == self.kinds
        )

    def holders(self, module: nn.Module) -> list[Holder]:
        """Return the dictionaries of the attributes of all modules."""
        return [vars(module), *self.inner]

    def _children(self, module: nn.Module) -> list[Any]:
        trees = [holder["_modules"].values() for holder in self.holders(module)]
        return [*chain.from_iterable(trees)]


class Anatomies:
    """Those of the layers of a container; a copy of it begins without any."""

    def __init__(self) -> None:
        self.known: WeakKeyDictionary[nn.Module, Anatomy] = WeakKeyDictionary()

    def of(self, module: nn.Module, label: str) -> Anatomy:
        """Return the anatomy of a layer."""
        anatomy = self.known.get(module)
        if anatomy is None or not anatomy.is_of(module):
            anatomy = self.known[module] = Anatomy(module, label)
        return anatomy

    def __reduce__(self) -> tuple[type[Anatomies], tuple[()]]:
        return Anatomies, ()


def _parts(module: nn.Module) -> list[nn.Module]:
    """Return a module and all inside of it, each once, faster than `modules()`."""
    found = {module: None}
    todo = [module]
    while todo:
        for part in todo.pop()._modules.values():
            if part is not None and part not in found:
                found[part] = None
                todo.append(part)
    return [*found]
