"""The engine: how a pass through a container is run, recorded and differentiated.

What happens to one state, from `net(x)` to its gradient:

1. `containers/sequential.py`: `net(x)` runs a `Pass` over the members of the container,
   with a `Strategy` made of its options.
2. `dispatch.py`: `run` chooses. Where nothing needs a gradient, and under `torch.func`
   and export, the pass is plain PyTorch. Under `torch.compile` it goes to `compiled/`.
   Else it is recorded: a `Tape` is the recorder of this thread while the pass runs.
3. `recording.py`: every call of a layer finds the recorder. The tape gets the layer,
   the direction, the state and the context.
4. `eager/tape.py`: `Tape.record` evaluates the call, and lets one autograd node stand
   for it. The node saves a handle in place of the state. The tape keeps the output and
   the anchors; the output before is dropped.
5. `eager/call.py`: `Call.run` evaluates the layer in the forward pass, and notes what
   else it read: random states, parameters, buffers, attributes (`restore/`).
   `eager/closed_form_call.py` does the same for layers whose derivative is known.
6. `eager/node.py`: in the backward pass, `CallNode.backward` is given the gradient of
   the output. It asks the tape, through its handle, for a `Replay` of the call.
7. `eager/tape.py`: `Tape.replay` finds the input, or the nearest state kept above it,
   and inverts down to it, one call a step. The call is evaluated again.
8. `replay.py`: the `pull_back` of the replay takes the gradient of the output to those
   of the state, the context and the parameters. The node returns them.

Beside that path, `guard/` takes a mark of every state and compares the rebuilt ones at
the end of the backward pass; `checks.py` lists what layers are refused for.

Glossary:

* **state**: what goes through the layers, a tensor or a tuple of tensors. State `i` is
  the input of layer `i`.
* **context**: further arguments that all layers receive; not inverted.
* **pass**: all layers of a container, called in one direction once.
* **call**: one layer, called in one direction once.
* **tape**: the calls of a pass, in order, and the states that are kept.
* **anchor**: a state that is kept exactly, where others are rebuilt.
* **replay**: a call evaluated again in the backward pass, to differentiate it.
* **pull back**: to take gradients of outputs back to the inputs.
* **environment**: what a call reads besides its arguments.
* **mark**: a few numbers of a state, by which a rebuilt one is compared with it.
* **drift**: the difference of a rebuilt state from that of the forward pass.
* **guard**: what measures drift, and raises, warns or adds anchors.
* **closed form**: a derivative written by hand, of a layer whose formula is known.
"""

from invtorch.engine.dispatch import Strategy, run
from invtorch.engine.guard.anchors import Anchors, AnchorsArgument
from invtorch.engine.guard.guard import GUARDS, DriftError, DriftWarning

__all__ = [
    "GUARDS",
    "Anchors",
    "AnchorsArgument",
    "DriftError",
    "DriftWarning",
    "Strategy",
    "run",
]
