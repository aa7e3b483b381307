"""The environment of a call: what a layer reads besides its state.

A replay restores it, so that the layer computes what it computed in the forward pass.

* `environment`: recorded before a call, compared after it, restored for a replay.
* `module_state`: parameters, buffers and attributes of the modules inside.
* `random_numbers`: the random states of the devices.
* `context`: the tensors in a context, also inside collections and dataclasses.
* `locks`: one thread at a time evaluates a layer, because a replay changes modules.
"""
