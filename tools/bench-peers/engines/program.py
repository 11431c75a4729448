"""Programs that measure themselves and print JSON."""

import subprocess
from pathlib import Path

from engines.engine import Unavailable


def executable(path, option):
    """The program at `path`, or an error that names the option which was to say it."""
    if not path:
        raise Unavailable(f"{option} is not given")
    if not Path(path).is_file():
        raise Unavailable(f"{option}: there is no file {path}")
    return str(path)


def output(program, *arguments, merged=False):
    """What it prints; if `merged`, also what it prints as messages."""
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(program).name} exits with {done.returncode}: {complaint(done.stderr)}")
    return done.stdout + done.stderr if merged else done.stdout


def complaint(text):
    """The line that says what is wrong, or else the last one."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line.lower()), lines[-1])
