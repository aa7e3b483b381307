"""The names of memcnn 1.5, for scripts that were written for it.

```python
import invtorch.compat.memcnn as memcnn
```

Names, arguments, parameter order and `state_dict` keys are those of memcnn. What is
different is the engine: inputs are not freed under the caller, `torch.autograd.grad`,
`retain_graph=True` and several backward passes work, autocast does not change the
precision of the state, and an inverse that is wrong raises `invtorch.DriftError`.
Wrappers one after another keep a limited number of states, as one container does.

`num_bwd_passes` and `preserve_rng_state` are accepted and have no effect: any number of
backward passes is possible, and random numbers are always restored.
"""

from invtorch.compat.memcnn.models.additive import AdditiveCoupling
from invtorch.compat.memcnn.models.affine import (
    AffineAdapterNaive,
    AffineAdapterSigmoid,
    AffineCoupling,
)
from invtorch.compat.memcnn.models.revop import (
    InvertibleModuleWrapper,
    ReversibleBlock,
    create_coupling,
    is_invertible_module,
)

__all__ = [
    "AdditiveCoupling",
    "AffineAdapterNaive",
    "AffineAdapterSigmoid",
    "AffineCoupling",
    "InvertibleModuleWrapper",
    "ReversibleBlock",
    "create_coupling",
    "is_invertible_module",
]
