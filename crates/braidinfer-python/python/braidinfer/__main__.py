"""The command line: `braidinfer`, or `python -m braidinfer`."""

import sys

from braidinfer import _braidinfer
from braidinfer.worker import worker


def main(*before):
    """Runs the command that is typed, with `before` in front of it. Returns the exit code."""
    return _braidinfer.run_program(["braidinfer", *before, *sys.argv[1:]], worker())


if __name__ == "__main__":
    sys.exit(main())
