"""The memory of a training step: measured, and planned within a budget.

* `measure`: the bytes that a call allocates.
* `costs`: bytes, times and round trip of each layer under each strategy.
* `plan`: a strategy for each layer, and `memory="auto"`, which makes plans.
* `report`: parameters, gradients, optimizer state and activations, told apart.
"""
