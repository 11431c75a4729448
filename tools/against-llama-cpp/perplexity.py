"""Perplexity of the same text in Braidinfer and in llama.cpp, by the choices of llama.cpp's own tool.

    venv/bin/python perplexity.py --braidinfer ../../target/release/braidinfer [--text FILE] [--context 512] MODEL.gguf ...

llama.cpp's tool is not in the Python package, so what it does is done here on the package's logits: chunks of one context that
do not overlap, each from its first token, and only the second half of a chunk counts.
"""

import json
import subprocess

import numpy as np
from llama_cpp import Llama, llama_model_get_vocab, llama_vocab_get_add_bos
from precision import arguments, log_softmax


def llama_cpp(model, text, context):
    llm = Llama(model, n_ctx=context, n_batch=context, logits_all=True, verbose=False)
    # As the tool: the first token where the vocabulary asks for one, and special tokens are plain text.
    adds_bos = llama_vocab_get_add_bos(llama_model_get_vocab(llm.model))
    ids = llm.tokenize(text.encode(), add_bos=adds_bos, special=False)
    losses = []
    for start in range(0, len(ids) - context + 1, context):
        chunk = list(ids[start : start + context])
        if adds_bos:
            chunk[0] = llm.token_bos()
        llm.reset()
        llm.eval(chunk)
        counted = range(context // 2, context - 1)
        predicted = log_softmax(np.array(llm.scores[context // 2 : context - 1]))
        losses += [-predicted[row, chunk[position + 1]] for row, position in enumerate(counted)]
    return float(np.exp(np.mean(losses))), len(losses)


def braidinfer(binary, model, text, context):
    command = [binary, "perplexity", f"{model},precision=exact", "--file", text, "--context", str(context), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found["perplexity"], found["positions"]


def main():
    parser = arguments(__doc__)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    for model in args.models:
        own, positions = braidinfer(args.braidinfer, model, args.text, args.context)
        other, others = llama_cpp(model, text, args.context)
        difference = 100 * (own / other - 1)
        print(f"{model}: {own:.4f} ({positions} predictions), llama.cpp {other:.4f} ({others}), {difference:+.3f} %")


if __name__ == "__main__":
    main()
