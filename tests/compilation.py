"""What tests under `torch.compile` share: how they compile, and what they overhear."""

import pytest
import torch

COMPILING = [
    pytest.mark.usefixtures("fresh_dynamo"),
    # what Dynamo does with non-leaf inputs, and to trace a function
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
    # what importing its compiler for a GPU warns of
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated"),
]


def compiled(function, backend="aot_eager", fullgraph=True, **options):
    return torch.compile(function, backend=backend, fullgraph=fullgraph, **options)
