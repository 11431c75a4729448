"""`python -m braidinfer.utils.check_compatibility_cli MODEL [--verbose] [--export FILE]`: `braidinfer check`, with its exit codes:
0 compatible, 1 warning, 2 incompatible, 3 failure.
"""

import sys

from braidinfer import _braidinfer
from braidinfer.worker import worker


def main():
    return _braidinfer.run_program(["braidinfer", "check", *sys.argv[1:]], worker())


if __name__ == "__main__":
    sys.exit(main())
