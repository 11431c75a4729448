"""Kills an actor of Ray Data midway and counts rows: each must be there once, and those that cannot be answered as errors.

python tools/ray/exactly_once.py [--rows 10000] [--kill-after 30]
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import ray

from braidinfer.ray import BatchPredictor


class Marking(BatchPredictor):
    """Leaves a file for each batch, by which the killer knows what was done and by whom."""

    def __init__(self, marks, **options):
        super().__init__(**options)
        self._marks = Path(marks)

    def __call__(self, batch):
        columns = super().__call__(batch)
        (self._marks / f"{os.getpid()}-{batch['id'][0]}").touch()
        return {**columns, "worker": [os.getpid()] * len(columns["text"])}


def kill_one(marks, after):
    """Once so many batches are done, kills the process that did the last of them, as the system does where memory is short."""
    while len(done := sorted(marks.iterdir(), key=lambda mark: mark.stat().st_mtime)) < after:
        time.sleep(0.02)
    process = int(done[-1].name.split("-")[0])
    os.kill(process, signal.SIGKILL)
    print(f"killed worker {process} after {len(done)} batches", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kill-after", type=int, default=30, help="batches of 100 rows")
    arguments = parser.parse_args()
    rows = [
        # Every hundredth row asks for what is not possible.
        {"id": row, "prompt": f"Once upon a time {row}", "params": {"max_tokens": 5, "temperature": -float(row % 100 == 7)}}
        for row in range(arguments.rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder)
        threading.Thread(target=kill_one, args=(marks, arguments.kill_after), daemon=True).start()
        answers = ray.data.from_items(rows, override_num_blocks=20).map_batches(
            Marking,
            fn_constructor_kwargs={"marks": folder, "params_column": "params", "threads": 1},
            concurrency=2,
            num_cpus=1,
            batch_size=100,
        )
        done = answers.take_all()
    once = sorted(row["id"] for row in done) == list(range(arguments.rows))
    failed = sorted(row["id"] for row in done if row["error"])
    print(f"{len(done)} rows by {len({row['worker'] for row in done})} workers; each once: {once}; {len(failed)} errors")
    if not once or failed != list(range(7, arguments.rows, 100)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
