"""Answers 10,000 prompts of a file on two local actors, and shows that every row is there once.

    pip install braidinfer "ray[data]"
    python ray_data.py --rows 10000 [--model MODEL] [--kill]

With `--kill`, one actor is killed midway. On a cluster, the same program runs with `RAY_ADDRESS` set; the model is then a Hub id,
or a path that all machines have.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import ray

from braidinfer.ray import BatchPredictor

NAMES = ("dog", "cat", "girl", "boy", "bird", "tree", "king", "fish")


class Predictor(BatchPredictor):
    """Tells in which process each row was answered."""

    def __call__(self, batch):
        columns = super().__call__(batch)
        return {**columns, "worker": [os.getpid()] * len(columns["text"])}


def prompts(folder, rows):
    path = Path(folder) / "prompts.jsonl"
    with path.open("w") as file:
        for row in range(rows):
            # Every hundredth row cannot be answered: it asks for a temperature that is none.
            params = {"max_tokens": 4 + row % 5, "temperature": -1.0 if row % 100 == 7 else 0.0}
            prompt = f"Once upon a time, there was a {NAMES[row % len(NAMES)]} number {row}"
            file.write(json.dumps({"id": row, "prompt": prompt, "params": params}) + "\n")
    return path


def kill_one(after):
    """Kills a process that answers, as the kernel would if memory were short."""
    time.sleep(after)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and b"Predictor" in (folder / "cmdline").read_bytes():
            print("killing worker", folder.name, flush=True)
            os.kill(int(folder.name), signal.SIGKILL)
            return


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = ray.data.read_json(str(prompts(folder, arguments.rows)), override_num_blocks=20)
        answers = data.map_batches(
            Predictor,
            fn_constructor_kwargs={"model": arguments.model, "params_column": "params", "threads": 1},
            concurrency=arguments.actors,
            num_cpus=1,
            batch_size=100,
        )
        if arguments.kill:
            threading.Thread(target=kill_one, args=(20,), daemon=True).start()
        rows = answers.take_all()
    ids = sorted(row["id"] for row in rows)
    failed = [row["id"] for row in rows if row["error"]]
    print(f"{len(rows)} rows in {time.monotonic() - started:.0f} s by {len({row['worker'] for row in rows})} workers")
    print(f"each once: {ids == list(range(arguments.rows))}; with an error: {len(failed)}")
    assert ids == list(range(arguments.rows))
    assert sorted(failed) == list(range(7, arguments.rows, 100))
    assert all(row["text"] or row["error"] for row in rows)


if __name__ == "__main__":
    main()
