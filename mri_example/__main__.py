"""Run the command line: `python -m mri_example`."""

import os
import sys

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

from mri_example.summary import overview


def main(arguments: list[str]) -> int:
    """Run one command; the list of commands needs neither Lightning nor data."""
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(overview())
        return 0
    try:
        from mri_example.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again\n")
        return 130

    return command_line(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
