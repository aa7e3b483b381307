"""When a guard speaks: after the outermost backward pass, and after everybody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.autograd import Variable

Report: TypeAlias = Callable[[], None]


class _Held(threading.local):
    reports: list[Report] | None = None


_held = _Held()


def backward_pass() -> int:
    """Return a number that tells backward passes apart; -1 where none is running."""
    task: int = torch._C._current_graph_task_id()
    return task


def at_the_end(report: Report) -> None:
    """Call `report`, which may raise, when the backward pass that runs has ended.

    What others do at that end, such as the exchange of gradients between processes,
    comes first, so that an error finds every gradient filled and nothing half done.
    """
    if _held.reports is not None:
        _held.reports.append(report)
    elif backward_pass() == -1:
        report()
    else:
        queue = Variable._execution_engine.queue_callback
        queue(lambda: queue(report))


class HandedOutward:
    """Let what is reported inside wait for the backward pass around.

    A node that evaluates a layer again differentiates it by a backward pass of its own;
    an error at the end of that one would leave the outer one unfinished.
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
                at_the_end(report)
