"""The command line: `braidinfer`, or `python -m braidinfer`."""

import sys

from braidinfer import _braidinfer
from braidinfer.worker import worker


def main():
    return _braidinfer.run_program(["braidinfer", *sys.argv[1:]], worker())


if __name__ == "__main__":
    sys.exit(main())
