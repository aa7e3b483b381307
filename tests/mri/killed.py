"""Commands that end early, for the tests: killed, terminated, or on a full disk."""

import os
import resource
import signal
import sys
import threading
from pathlib import Path

from mri_example.cli import main

PARTS = ("mri_example", "lightning")


class Clock:
    """Count calls of functions of ours and of Lightning, and end the process at one."""

    def __init__(self, last: int | None) -> None:
        self.count, self.last = 0, last

    def __call__(self, frame, event, _) -> None:
        if event != "call" or not frame.f_globals.get("__name__", "").startswith(PARTS):
            return
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def up_to_a_call(last: int | None, calls: Path, arguments: list[str]) -> int:
    """Run a command up to a call, or whole, and then write how many calls it took."""
    clock = Clock(last)
    threading.setprofile(clock)
    sys.setprofile(clock)
    try:
        return main(arguments)
    finally:
        sys.setprofile(None)
        calls.write_text(str(clock.count))


def up_to_a_step(sent: int, last: int, arguments: list[str]) -> int:
    """Run `fit`, and send it a signal in a training step."""
    from mri_example.training.module import ReconstructionTask

    step = ReconstructionTask.training_step

    def training_step(self, batch):
        if self.global_step == last:
            os.kill(os.getpid(), sent)
        return step(self, batch)

    ReconstructionTask.training_step = training_step
    return main(arguments)


def up_to_a_batch(sent: int, rank: int, last: int, arguments: list[str]) -> int:
    """Run `fit`, and send one rank a signal at the end of a training step."""
    from mri_example.training.module import ReconstructionTask

    ended = ReconstructionTask.on_train_batch_end

    def on_train_batch_end(self, *rest):
        ended(self, *rest)
        if (self.global_rank, self.global_step) == (rank, last):
            os.kill(os.getpid(), sent)

    ReconstructionTask.on_train_batch_end = on_train_batch_end
    return main(arguments)


def up_to_a_file(arguments: list[str]) -> int:
    """Run a command, and terminate it where it puts a file in its place."""
    from mri_example.data import files

    replace = files.Path.replace

    def replaced(self, path):
        os.kill(os.getpid(), signal.SIGTERM)
        return replace(self, path)

    files.Path.replace = replaced
    return main(arguments)


def on_a_full_disk(limit: int, arguments: list[str]) -> int:
    """Run a command that can write no file of more than `limit` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails, and no signal comes
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    return main(arguments)


if __name__ == "__main__":
    rank, last, *arguments = sys.argv[1:]
    sys.exit(up_to_a_batch(signal.SIGKILL, int(rank), int(last), arguments))
