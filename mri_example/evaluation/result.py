"""What an evaluation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mri_example.evaluation.condition import Condition
from mri_example.evaluation.table import table
from mri_example.metrics import Interval, Scores, Summary, bootstrap, summarize


@dataclass(frozen=True)
class Group:
    """The volumes of one condition, or all.

    Attributes:
        condition: Of the volumes; `None` for all.
        summary: Mean, two standard deviations, and the number of volumes.
        interval: Of the mean; `None` of a single volume.
    """

    condition: Condition | None
    summary: Summary
    interval: Interval | None


@dataclass(frozen=True)
class Evaluation:
    """Scores by the name of the volume, summarized by condition.

    Attributes:
        volumes: Scores of each volume.
        conditions: Acquisition and acceleration of each of them.
        failures: Why volumes do not count that were to be skipped if they fail.
        filtered: Names of volumes of conditions that were not asked for.
    """

    volumes: Mapping[str, Scores]
    conditions: Mapping[str, Condition]
    failures: Mapping[str, str] = field(default_factory=dict)
    filtered: tuple[str, ...] = ()

    @cached_property
    def summary(self) -> Summary:
        """Mean over all volumes and two standard deviations."""
        return summarize(self.volumes.values())

    @cached_property
    def groups(self) -> list[Group]:
        """The volumes of each condition, and last all of them."""
        groups = [self._group(c) for c in sorted(set(self.conditions.values()))]
        return [*groups, self._group(None)]

    def __str__(self) -> str:
        return table(self)

    def _group(self, condition: Condition | None) -> Group:
        scores = [
            score
            for name, score in self.volumes.items()
            if condition in (None, self.conditions[name])
        ]
        return Group(condition, summarize(scores), bootstrap(scores))
