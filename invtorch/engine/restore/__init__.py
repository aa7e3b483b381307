"""The environment of a call: what a layer reads besides its state.

A replay restores it, so that the layer computes what it computed in the forward pass.

* `environment`: recorded before a call, compared after it, restored for a replay.
* `module_state`: parameters, buffers and attributes of the modules inside.
* `generators`: the state of a generator, of PyTorch, Python or NumPy.
* `random_numbers`: the numbers that a layer draws are drawn again in its replay.
* `context`: the tensors in a context, also inside collections and dataclasses.
* `locks`: one thread at a time evaluates a layer, because a replay changes modules;
  threads that the layer itself waits for may, too.
"""
