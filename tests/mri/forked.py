"""Run functions in processes of their own, which find everything imported.

Lightning takes seconds to import. The fork server of `multiprocessing` imports it once,
and every process is a fork of that server.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["mri_example.fit_cli"])
ROOT = Path(__file__).parents[2]
LONGEST = 300  # seconds that a process may take


class Run:
    """A function that runs in a process, and what it printed.

    Args:
        function: A function of a module; what it returns is the exit code.
        arguments: Its arguments.
        variables: What its environment has besides that of the first test.
    """

    def __init__(self, function: Callable, *arguments: object, **variables: str):
        self._read, write = FORKED.Pipe(duplex=False)
        called = (function, arguments, write, variables)
        self.process = FORKED.Process(target=_call, args=called)
        self.process.start()
        write.close()

    def ended(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and what was printed."""
        self.process.join(LONGEST)
        late = self.process.is_alive()
        self.process.kill()
        self.process.join()
        said = self._printed()
        assert not late, f"still running after {LONGEST} s: {said}"
        return self.process.exitcode, said

    def _printed(self) -> str:
        """Return what a pipe holds; a worker that loads data may outlive a process."""
        os.set_blocking(self._read.fileno(), False)
        try:
            return os.read(self._read.fileno(), 1 << 20).decode()
        except BlockingIOError:
            return ""


def _call(function, arguments, write, variables) -> None:
    os.chdir(ROOT)
    os.environ.update(variables)
    # as in a process that was not forked by the server; else workers have another one
    multiprocessing.set_start_method("fork", force=True)
    for stream in (1, 2):
        os.dup2(write.fileno(), stream)
    write.close()
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os._exit(function(*arguments))


def two_ranks(function: Callable, *arguments: object) -> list[tuple[int, str]]:
    """Run a function as both of two ranks; return how each ended, and what it said.

    Which of them a process is stands in the environment, where Lightning looks for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    ranks = [Run(function, *arguments, LOCAL_RANK=rank, **world) for rank in "01"]
    return [rank.ended() for rank in ranks]
