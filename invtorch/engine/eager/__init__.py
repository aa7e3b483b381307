"""The eager engine: one autograd node for each call of a layer.

* `tape`: the calls of one pass in order, the states that are kept, and the replays.
* `call`: one call of a layer, differentiated by autograd.
* `held`: tensors inside of a layer that somebody holds.
* `closed_form_call`: one call of a layer that has a closed form.
* `node`: the autograd function that represents a call in PyTorch's graph.
"""
