"""Run the command line: `python -m mri_example`."""

import os
import sys

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

from mri_example.cli import main

if __name__ == "__main__":
    sys.exit(main())
