"""Which is closer to f32 on the same file: Braidinfer at each precision, or llama.cpp as it comes?

    venv/bin/python precision.py --braidinfer ../../target/release/braidinfer [--text FILE] [--tokens 512] MODEL.gguf ...

The truth are the logits of Braidinfer's standard kernels in f32, which equal those of `transformers` (see docs/fixtures.md).
llama.cpp runs with its defaults: flash attention if it likes, an f16 cache, activations rounded to 8 bits. Both read the same
token ids in one sequence. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys

import numpy as np

NEAR_TIE = 0.05
# Not what the check reads, or plans would be judged on the text that they were chosen on.
TEXT = "../../docs/performance.md"


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def braidinfer(binary, model, ids, how):
    command = [binary, "logits", model, "--ids", ",".join(map(str, ids)), "--all", "--json", *how]
    output = subprocess.run(command, capture_output=True, check=True)
    return np.array(json.loads(output.stdout)["logits"], dtype=np.float32)


def llama_cpp(model, ids):
    from llama_cpp import Llama

    llm = Llama(model, n_ctx=len(ids), n_batch=len(ids), logits_all=True, verbose=False)
    llm.eval(ids)
    return np.array(llm.scores[: len(ids)], dtype=np.float32)


def compare(truth, own):
    truth, own = log_softmax(truth), log_softmax(own)
    kl = np.maximum((np.exp(truth) * (truth - own)).sum(axis=-1), 0)
    order = np.sort(truth, axis=-1)
    best, chosen = truth.argmax(-1), own.argmax(-1)
    rows = np.arange(len(truth))
    changed = truth[rows, best] - truth[rows, chosen] > NEAR_TIE
    decided = (order[:, -1] - order[:, -2] > NEAR_TIE) | changed
    return kl.mean(), np.median(kl), np.quantile(kl, 0.99), kl.max(), (best == chosen).mean(), changed.sum(), decided.sum()


def arguments(description):
    """What every comparison on a text takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braidinfer", required=True)
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("models", nargs="+")
    return parser


def main():
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    print("| model | run | mean KL | median | 99 % | largest | same likeliest token | changed beyond near ties |")
    print("|---|---|---|---|---|---|---|---|")
    for model in args.models:
        tokenized = subprocess.run(
            [args.braidinfer, "tokenize", model, "--file", args.text, "--json"], capture_output=True, check=True
        )
        ids = json.loads(tokenized.stdout)["ids"][: args.tokens]
        truth = braidinfer(args.braidinfer, model, ids, ["--kernels", "standard"])
        runs = {f"braidinfer, {how}": (how,) for how in ("exact", "auto", "fast")}
        found = {name: braidinfer(args.braidinfer, model, ids, ["--precision", how]) for name, (how,) in runs.items()}
        found["llama.cpp"] = llama_cpp(model, ids)
        for name, logits in found.items():
            mean, median, p99, largest, same, changed, decided = compare(truth, logits)
            file = model.rsplit("/", 1)[-1]
            print(
                f"| {file} | {name} | {mean:.1e} | {median:.1e} | {p99:.1e} | {largest:.1e} "
                f"| {100 * same:.2f} % | {changed} of {decided} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
