"""Run a command of which one rank is killed at a training step, for the tests."""

import os
import signal
import sys

from mri_example.cli import main
from mri_example.training.module import ReconstructionTask

rank, step = map(int, sys.argv[1:3])
ended = ReconstructionTask.on_train_batch_end


def on_train_batch_end(self, *rest):
    ended(self, *rest)
    if (self.global_rank, self.global_step) == (rank, step):
        os.kill(os.getpid(), signal.SIGKILL)


ReconstructionTask.on_train_batch_end = on_train_batch_end
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
