"""The eager engine: one autograd node for each call of a layer.

* `tape`: the calls of one pass in order, the states that are kept, and the way back.
* `call`: one call of a layer, differentiated by autograd.
* `closed_form_call`: one call of a layer whose derivative is known in closed form.
* `node`: the autograd function that stands for a call in PyTorch's graph.
"""
