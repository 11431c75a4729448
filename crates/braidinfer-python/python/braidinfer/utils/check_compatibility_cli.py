"""`python -m braidinfer.utils.check_compatibility_cli MODEL [--verbose] [--export FILE]`: `braidinfer check`, with its exit codes:
0 compatible, 1 warning, 2 incompatible, 3 failure.
"""

import sys

from braidinfer.__main__ import main

if __name__ == "__main__":
    sys.exit(main("check"))
