"""Run commands in processes that are killed at chosen points, for the tests."""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

PARTS = ("mri_example", "lightning")


class Clock:
    """Count calls of functions of ours and of Lightning, and end the process at one."""

    def __init__(self, last: int | None, stop: int) -> None:
        self.count, self.last, self.stop = 0, last, stop

    def __call__(self, frame, event, _) -> None:
        if event != "call" or not frame.f_globals.get("__name__", "").startswith(PARTS):
            return
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), self.stop)


def sitting(arguments: list[str], last: int | None, stop: int) -> tuple[int, int]:
    """Run a command in a child, up to a call; return its exit code and its calls."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        from mri_example.cli import main

        clock = Clock(last, stop)
        threading.setprofile(clock)
        sys.setprofile(clock)
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
        finally:
            sys.setprofile(None)
        os.write(write, str(clock.count).encode())
        os._exit(code)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, int(os.read(read, 100) or 0)


def chain(arguments: list[str], points: list[int]) -> list[int]:
    """Kill a command at each of the points, sitting after sitting, then let it end."""
    codes = [sitting(arguments, point, signal.SIGKILL)[0] for point in points]
    return [*codes, sitting(arguments, None, signal.SIGKILL)[0]]


if __name__ == "__main__":
    import mri_example.fit_cli  # noqa: F401 (what all children share)

    whole, others, kills, seed, report = json.loads(sys.argv[1])
    code, calls = sitting(whole, None, signal.SIGKILL)
    draw = random.Random(seed)
    codes = [
        chain(other, [draw.randint(1, calls // 2) for _ in range(kills)])
        for other in others
    ]
    Path(report).write_text(json.dumps([code, codes]))
