"""The engine under `torch.compile`: one autograd function over a whole pass.

* `function`: the pass as one function of tensors, and its derivative.
* `checks`: what is refused when it is traced, and what the graph asserts when it runs.
"""
