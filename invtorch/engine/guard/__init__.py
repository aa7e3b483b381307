"""The guard: compares rebuilt states with those of the forward pass.

* `guard`: takes marks of states, compares them, and raises, warns or adds anchors.
* `fingerprint`: the mark of a state: a few random projections of a block, and its norm.
* `blocks`: how a state is divided into samples and groups of channels.
* `tolerance`: by how much two states may differ; the same rules for both engines.
* `measurement`: the error of one rebuilt state, and runs of rebuilt states.
* `anchors`: which states are kept exactly, and how `"auto"` chooses them.
* `end_of_backward`: when the guard raises or warns.
"""
