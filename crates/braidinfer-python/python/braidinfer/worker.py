"""How processes for untrusted input (chat templates, schemas, grammars) are started."""

from __future__ import annotations

import sys

from braidinfer import _braidinfer

# Loads the native part alone: that takes a Python without packages a few milliseconds.
_PROGRAM = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
native = module_from_spec(spec_from_loader("_braidinfer", ExtensionFileLoader("_braidinfer", sys.argv[1])))
native.__loader__.exec_module(native)
sys.exit(native.run_program(["braidinfer", "worker"], None))
"""


def worker() -> tuple[str, list[str]] | None:
    """A program and its arguments; None where this process does the work itself, since there is no Python to start."""
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    return sys.executable, ["-I", "-S", "-c", _PROGRAM, _braidinfer.__file__]
