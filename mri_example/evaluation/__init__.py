"""From reconstructions and targets to a table of scores."""

from mri_example.evaluation.condition import Condition
from mri_example.evaluation.files import check_ending, write
from mri_example.evaluation.folder import evaluate
from mri_example.evaluation.result import Evaluation, Group

__all__ = ["Condition", "Evaluation", "Group", "check_ending", "evaluate", "write"]
