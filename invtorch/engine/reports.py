"""When a guard speaks: after the outermost backward pass, and after everybody else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def handed_outward() -> Iterator[None]:
    """Let what is reported inside wait for the backward pass around.

    A node that evaluates a layer again differentiates it by a backward pass of its own;
    an error at the end of that one would leave the outer one unfinished.
    """
    if _held.reports is not None:
        yield
        return
    reports: list[Report] = []
    _held.reports = reports
    try:
        yield
    finally:
        _held.reports = None
    for report in reports:
        at_the_end(report)
