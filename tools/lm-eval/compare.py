"""Evaluates one model in three ways with `lm_eval` and compares the figures: through the Python package, over HTTP, and with
`transformers`.

    python tools/lm-eval/compare.py MODEL [--braidinfer PROGRAM] [--items 60] [--seed 1]

MODEL is a directory that `transformers` reads. The tasks are made here: choices between endings of stories, whole texts, and
continuations. Exits with 1 if an accuracy or a text differs, or a perplexity by more than a thousandth.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import braidinfer.lm_eval  # noqa: F401, which registers the model

WHO = ("a little dog", "a cat named Tom", "a girl named Lily", "an old tree", "a small bird", "two friends")
WHERE = ("in the park", "by the sea", "in a big house", "on a hill", "in the forest", "at school")
WHAT = ("found a red ball", "saw a big fish", "was very sad", "wanted to play", "lost a hat", "made a cake")
ENDS = (" They were happy.", " It was fun.", " Mom was proud.", " He ran home.", " The sun was out.", " She said sorry.")

TASKS = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{context}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
    "continuations": {
        "output_type": "generate_until", "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def documents(items, seed):
    draw = random.Random(seed)
    for _ in range(items):
        context = f"Once upon a time, {draw.choice(WHO)} {draw.choice(WHERE)} {draw.choice(WHAT)}."
        yield {"context": context, "choices": draw.sample(ENDS, 3), "label": draw.randrange(3)}


def write_tasks(folder, items, seed):
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents(items, seed)))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
        "doc_to_text": "{{context}}", "target_delimiter": "",
    }  # fmt: skip
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.dump({"task": name, **common, **task}))


def evaluated(folder, model, model_args):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    done = simple_evaluate(
        model=model, model_args=model_args, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    figures = {
        f"{task} {metric.split(',')[0]}": value
        for task, metrics in done["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "stderr" not in metric
    }
    texts = [sample["filtered_resps"][0] for sample in done["samples"]["continuations"]]
    return figures, texts


@contextmanager
def served(program, model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([program, "serve", model, "--port", str(port), "--kernels", "standard", "--log-format", "none"])
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--braidinfer", default="braidinfer")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    ways = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, arguments.items, arguments.seed)
        # In f32 throughout, as transformers computes: other levels may tell near ties in another way.
        ways["package"] = evaluated(folder, "braidinfer", {"pretrained": arguments.model, "kernels": "standard"})
        with served(arguments.braidinfer, arguments.model) as url:
            over_http = {
                "base_url": url, "model": Path(arguments.model).name, "tokenizer_backend": "huggingface",
                "tokenizer": arguments.model, "num_concurrent": 4, "tokenized_requests": True,
            }  # fmt: skip
            ways["HTTP"] = evaluated(folder, "local-completions", over_http)
        ways["transformers"] = evaluated(folder, "hf", {"pretrained": arguments.model, "dtype": "float32", "device": "cpu"})
    sys.exit(report(ways))


def report(ways):
    """Prints the figures side by side; returns 1 if some differ."""
    names = list(ways)
    print(f"{'':32}" + "".join(f"{name:>16}" for name in names))
    differ = False
    for figure in ways["package"][0]:
        values = [ways[name][0].get(figure, float("nan")) for name in names]
        most = 1e-3 * abs(values[0]) if "perplexity" in figure else 0.0
        same = all(abs(value - values[0]) <= most for value in values)
        differ |= not same
        print(f"{figure:32}" + "".join(f"{value:>16.6f}" for value in values) + ("" if same else "  differ"))
    texts = [ways[name][1] for name in names]
    same = sum(len(set(of_item)) == 1 for of_item in zip(*texts))
    print(f"continuations: {same} of {len(texts[0])} the same in all ways")
    return int(differ or same < len(texts[0]))


if __name__ == "__main__":
    main()
