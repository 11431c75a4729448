"""Answers 10,000 prompts of a file with two actors.

    pip install braidinfer "ray[data]"
    python ray_data.py [--rows 10000] [--model MODEL] [--actors 2]

On a cluster, the same program runs with `RAY_ADDRESS` set; the model is then a Hub id, or a path that all machines have.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import ray

from braidinfer.ray import BatchPredictor

NAMES = ("dog", "cat", "girl", "boy", "bird", "tree", "king", "fish")


def write_prompts(path, rows):
    with path.open("w") as file:
        for row in range(rows):
            prompt = f"Once upon a time, there was a {NAMES[row % len(NAMES)]}"
            file.write(json.dumps({"id": row, "prompt": prompt, "params": {"max_tokens": 4 + row % 5}}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model")
    parser.add_argument("--actors", type=int, default=2)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(prompts, arguments.rows)
        answers = ray.data.read_json(str(prompts), override_num_blocks=20).map_batches(
            BatchPredictor,
            fn_constructor_kwargs={"model": arguments.model, "params_column": "params", "threads": 1},
            concurrency=arguments.actors,
            num_cpus=1,
            batch_size=100,
        )
        rows = answers.take_all()
    print(f"{len(rows)} rows in {time.monotonic() - started:.0f} s, {sum(bool(row['error']) for row in rows)} with an error")
    for row in rows[:3]:
        print(row["prompt"], "->", row["text"])


if __name__ == "__main__":
    main()
