"""The guard: does a rebuilt state agree with that of the forward pass?

* `guard`: takes marks of states, compares them, and raises, warns or adapts.
* `fingerprint`: the mark of a state: a few random projections, and its norm.
* `tolerance`: by how much two states may differ; the same rules for both engines.
* `measurement`: the error of one rebuilt state, and rows of them.
* `anchors`: which states are kept exactly, and how `"auto"` learns it.
* `end_of_backward`: when the guard speaks.
"""
