"""A context is freed with its last owner, not when Python collects garbage."""

import gc
from weakref import ref

import torch

from invtorch.engine.restore.context import exchange_context, tensors_in


def test_collections_of_a_context_leave_no_cycle() -> None:
    gc.disable()
    try:
        tensor, other = torch.zeros(2), torch.ones(2)
        context = ({"a": tensor},)
        assert tensors_in(context)[0] is tensor
        assert exchange_context(context, {id(tensor): other})[0]["a"] is other
        alive = ref(tensor), ref(other)
        del context, tensor, other
        assert [one() for one in alive] == [None, None]
    finally:
        gc.enable()
