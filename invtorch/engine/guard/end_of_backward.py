"""When a guard speaks: after the outermost backward pass, and after everything else."""

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
    """Call `report`, which may raise, when the backward pass that runs has ended.

    What others do at that end, such as the exchange of gradients between processes,
    comes first, so that an error finds every gradient filled and nothing half done.
    """
    if _held.reports is not None:
        _held.reports.append(report)
    elif backward_id() == -1:
        report()
    else:
        # twice: the first call runs among the callbacks that are queued already, and
        # puts the report behind all of them
        queue_callback(lambda: queue_callback(report))


class ReportsDeferred:
    """Let what is reported inside wait for the backward pass around.

    A node that replays a layer differentiates it by a backward pass of its own; an
    error at the end of that one would leave the outer one unfinished.
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
