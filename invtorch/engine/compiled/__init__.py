"""The engine under `torch.compile`: one autograd function over a whole pass.

* `function`: the pass as one function of tensors, and its derivative.
* `checks`: errors when the pass is traced, and assertions when its graph runs.
"""
