"""Modules of FrEIA in the containers of this library, and ours in the graphs of FrEIA.

FrEIA need not be installed: both adapters follow its conventions, those of
FrEIA 0.2, `forward(x_or_z, c=None, rev=False, jac=True) -> (tensors, log_det)`.

```python
from invtorch import InvertibleSequential
from invtorch.compat.freia import FromFreia, ToFreia

net = InvertibleSequential(*[FromFreia(block) for block in blocks])  # flat memory
node = Node(previous, ToFreia, {"module": net})  # in a GraphINN
```

What modules of FrEIA 0.2 return against these conventions is corrected where the right
value is known (the log-determinant of `InvertibleSigmoid` on images, and that of
`LearnedElementwiseScaling` in reverse), and refused by name where it is not.
"""

from invtorch.compat.freia.from_freia import FromFreia
from invtorch.compat.freia.to_freia import ToFreia

__all__ = ["FromFreia", "ToFreia"]
