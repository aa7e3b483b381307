"""The engine: how a pass through a container is run, recorded and differentiated.

What happens to one state, from `net(x)` to its gradient:

1. `containers/sequential.py`: `net(x)` runs a `Pass` over the members of the container,
   with a `Strategy` made of its options.
2. `dispatch.py`: `run` selects the engine. If nothing needs a gradient, and under
   `torch.func` and export, the pass is plain PyTorch. Under `torch.compile` it is run
   by `compiled/`. Otherwise it is recorded: a `Tape` is the recorder of this thread
   while the pass runs.
3. `recording.py`: every call of a layer is passed to the recorder: the layer, the
   direction, the state and the context.
4. `eager/tape.py`: `Tape.record` evaluates the call without a graph and returns the
   outputs of one autograd node. The node saves a handle instead of the state. The tape
   keeps the output and the anchors, and drops the output of the layer before.
5. `eager/call.py`: `Call.run` evaluates the layer in the forward pass. It records what
   else the layer reads: random states, parameters, buffers, attributes (`restore/`).
   `eager/closed_form_call.py` does the same for layers with a closed form.
6. `eager/node.py`: in the backward pass, `CallNode.backward` receives the gradient of
   the output. It requests a `Replay` of the call from the tape, through its handle.
7. `eager/tape.py`: `Tape.replay` looks up the input of the call. If it is not kept,
   the tape inverts the calls one by one, from the nearest state kept above it. Then it
   evaluates the call again.
8. `replay.py`: `Replay.pull_back` computes the gradients of the state, the context and
   the parameters from the gradient of the output. The node returns them.

In addition, `guard/` takes a mark of every state and compares the rebuilt states at the
end of the backward pass, and `checks.py` lists the errors that layers can cause.

Glossary:

* **state**: what is passed from layer to layer, a tensor or a tuple of tensors. State
  `i` is the input of layer `i`.
* **context**: further arguments that all layers receive. They are not inverted.
* **pass**: all layers of a container, called in one direction once.
* **call**: one layer, called in one direction once.
* **step**: a layer and the direction in which a pass calls it.
* **recorder**: the object that receives the calls of the layers during a pass.
* **tape**: the recorder of the eager engine: the calls of a pass, in order, and the
  states that are kept.
* **handle**: the object that a node saves instead of a state. It refers to the tape.
* **anchor**: a state that is kept exactly. Other states are rebuilt.
* **above**, **below**: later and earlier in the pass. States are rebuilt downwards.
* **replay**: a call evaluated again in the backward pass, to differentiate it.
* **pull back**: to compute gradients of inputs from gradients of outputs.
* **environment**: what a call reads besides its arguments.
* **mark**: a few numbers computed from a state, to compare a rebuilt state with it.
* **drift**: the difference between a rebuilt state and that of the forward pass.
* **guard**: the object that measures drift, and raises, warns or adds anchors.
* **closed form**: a derivative written by hand, for a layer whose formula is known.
* **shift**: what a layer adds to its input, as an additive coupling does.
* **refuse**: to raise an error.
"""

from invtorch.engine.dispatch import Strategy, plan, run
from invtorch.engine.guard.anchors import Anchors, AnchorsArgument
from invtorch.engine.guard.guard import GUARDS, DriftError, DriftWarning, GuardPolicy

__all__ = [
    "GUARDS",
    "Anchors",
    "AnchorsArgument",
    "DriftError",
    "DriftWarning",
    "GuardPolicy",
    "Strategy",
    "plan",
    "run",
]
