"""When a guard raises or warns: at the very end of the outermost backward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from invtorch._torch import backward_id, queue_callback

Report: TypeAlias = Callable[[], None]


class _Held(threading.local):
    reports: list[Report] | None = None


_held = _Held()


def at_end_of_backward(report: Report) -> None:
    """Call `report`, which may raise, at the end of the current backward pass.

    Other callbacks run first, for instance those of DDP and FSDP, which exchange
    gradients between processes. So all gradients are complete when an error is raised.
    """
    if _held.reports is not None:
        _held.reports.append(report)
    elif backward_id() == -1:
        report()
    else:
        # queued twice: the outer callback runs among those that are already queued, and
        # appends the report after all of them
        queue_callback(lambda: queue_callback(report))


class ReportsDeferred:
    """Defer reports inside this context to the end of the outer backward pass.

    A node that replays a layer runs a backward pass of its own. An error at the end of
    that inner pass would leave the outer one unfinished.
    """

    def __enter__(self) -> None:
        self.outermost = _held.reports is None
        if self.outermost:
            _held.reports = []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.outermost:
            return
        reports, _held.reports = _held.reports or [], None
        if kind is None:
            for report in reports:
                at_end_of_backward(report)
