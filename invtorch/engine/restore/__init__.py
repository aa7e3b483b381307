"""What a layer reads besides its state, and how a replay finds it again.

* `environment`: all of it, for one call: noted before, compared after, restored later.
* `module_state`: parameters, buffers and attributes of the modules inside.
* `random_numbers`: the random states of the devices.
* `context`: the tensors in a context, whatever collection holds them.
* `locks`: one thread at a time evaluates a layer, since a replay changes its modules.
"""
