"""Compares Braidinfer's logits and greedy tokens for GGUF files with llama.cpp's.

    python compare.py --braidinfer PROGRAM FILE.gguf ...        Braidinfer against llama.cpp
    python compare.py --expected MODELS FILE.gguf ...           llama.cpp against a fixture's expected logits

The columns: the largest difference of two logits, the mean over positions of KL(reference || other)
in nats, how many positions agree on the best token, and whether the greedy continuations are equal.
"""

import argparse
import ctypes
import json
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RANDOM_LENGTHS = (1, 7, 40)
DEFAULT_TEXTS = (
    "The capital of France is",
    "Water boils at 100 degrees Celsius at sea level. On a high mountain it",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
)


@dataclass
class Prompt:
    ids: list
    logits: np.ndarray | None = None
    greedy: list | None = None


class LlamaCpp:
    """A model in llama.cpp on the CPU, with everything it allows in f32."""

    def __init__(self, path, n_ctx, overrides=(), f16_cache=False):
        from llama_cpp import llama_cpp as api

        self.api = api
        if not hasattr(LlamaCpp, "log_callback"):
            LlamaCpp.log_callback = api.llama_log_callback(self.on_log)
            api.llama_log_set(LlamaCpp.log_callback, ctypes.c_void_p())
            api.llama_backend_init()
        LlamaCpp.log = []
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        # Repacked weights are multiplied by other kernels, with more rounding.
        params.use_extra_bufts = False
        self.overrides = self.key_overrides(overrides)
        if self.overrides:
            params.kv_overrides = self.overrides
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp does not load it:\n{''.join(self.log)}")
        self.vocab = api.llama_model_get_vocab(self.model)
        self.n_vocab = api.llama_vocab_n_tokens(self.vocab)
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = n_ctx
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.type_k = options.type_v = 1 if f16_cache else 0
        options.n_threads = options.n_threads_batch = 1
        self.context = api.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp makes no context:\n{''.join(self.log)}")
        self.n_ctx = api.llama_n_ctx(self.context)

    @staticmethod
    def on_log(level, text, _):
        if level >= 3:  # warnings and errors
            LlamaCpp.log.append(text.decode("utf-8", "replace"))

    def key_overrides(self, overrides):
        if not overrides:
            return None
        api = self.api
        array = (api.llama_model_kv_override * (len(overrides) + 1))()
        for entry, text in zip(array, overrides):
            key, kind, value = re.fullmatch(r"([^=]+)=(int|float|bool):(.+)", text).groups()
            entry.key = key.encode()
            entry.tag = getattr(api, f"LLAMA_KV_OVERRIDE_TYPE_{kind.upper()}")
            if kind == "int":
                entry.value.val_i64 = int(value)
            elif kind == "float":
                entry.value.val_f64 = float(value)
            else:
                entry.value.val_bool = value == "true"
        return array

    def logits(self, ids):
        """[len(ids), vocab], from an empty cache."""
        api = self.api
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        batch = api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            status = api.llama_decode(self.context, batch)
            if status != 0:
                raise SystemExit(f"llama_decode: {status}\n{''.join(self.log)}")
            rows = [
                np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, i), (self.n_vocab,)).copy()
                for i in range(len(ids))
            ]
        finally:
            api.llama_batch_free(batch)
        return np.stack(rows)

    def greedy(self, ids, count):
        """Recomputed from the start for each token: slow, and nothing depends on the cache."""
        tokens = list(ids)
        while len(tokens) < len(ids) + count:
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(ids):]

    def is_end(self, token):
        return self.has_vocabulary() and self.api.llama_vocab_is_eog(self.vocab, token)

    def has_vocabulary(self):
        return self.api.llama_vocab_type(self.vocab) != 0

    def tokenize(self, text):
        data = text.encode()
        tokens = (self.api.llama_token * (len(data) + 8))()
        n = self.api.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), True, True)
        return list(tokens[:n])

    def close(self):
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_kl(reference, other):
    p, q = log_softmax(reference), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def fixture_prompts(path, models):
    """The expectation beside the file, made for what llama.cpp computes, or else the fixture's own."""
    from safetensors.numpy import load_file

    name = re.sub(r"(-split)?-\d{5}-of-\d{5}$", "", path.stem)
    base = path.with_name(f"{name}.expected")
    if not path.with_name(f"{name}.expected.json").exists():
        base = models / name / "expected"
    tensors = load_file(f"{base}.safetensors")
    prompts = json.loads(Path(f"{base}.json").read_text())["prompts"]
    return [Prompt(p["ids"], tensors[f"logits.{i}"], p["greedy"]) for i, p in enumerate(prompts)]


def chosen_prompts(llama, arguments):
    if arguments.ids:
        return [Prompt([int(token) for token in text.split(",")]) for text in arguments.ids]
    if llama.has_vocabulary():
        return [Prompt(llama.tokenize(text)) for text in arguments.text or DEFAULT_TEXTS]
    draw = random.Random(0)
    return [Prompt([draw.randrange(llama.n_vocab) for _ in range(n)]) for n in RANDOM_LENGTHS]


def ask(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{program} {' '.join(map(str, arguments))}:\n{done.stderr}")
    return json.loads(done.stdout)


def from_braidinfer(program, model, prompt, max_tokens):
    ids = ",".join(map(str, prompt.ids))
    answer = ask(program, "logits", model, "--ids", ids, "--all", "--json")
    assert answer["ids"] == prompt.ids, "other ids than asked for"
    run = ask(program, "run", model, "--ids", ids, "--temperature", 0, "--max-tokens", max_tokens, "--json")
    return np.array(answer["logits"], np.float32), run["ids"]


def same_continuation(reference, other, is_end):
    """Equal, or cut short where the other one ends: an end token may or may not be in the answer."""
    n = len(other)
    if reference[:n] != other:
        return False
    return n >= len(reference) or is_end(reference[n]) or (n > 0 and is_end(reference[n - 1]))


def compare(path, arguments):
    """Prints a line per prompt, returns whether all are within the limits."""
    llama = LlamaCpp(path, arguments.n_ctx, arguments.override, arguments.f16_cache)
    if arguments.expected:
        prompts = fixture_prompts(path, arguments.expected)
    else:
        prompts = chosen_prompts(llama, arguments)
    good = True
    for prompt in prompts:
        theirs = llama.logits(prompt.ids)
        if arguments.expected:
            greedy = llama.greedy(prompt.ids, len(prompt.greedy))
            reference, other = prompt.logits, theirs
            same = greedy == prompt.greedy
        else:
            model = arguments.model or path
            ours, tokens = from_braidinfer(arguments.braidinfer, model, prompt, arguments.max_tokens)
            greedy = llama.greedy(prompt.ids, arguments.max_tokens)
            reference, other = theirs, ours
            same = same_continuation(greedy, tokens, llama.is_end)
        if arguments.expected:
            # Of long prompts, the last of every few positions may be stored.
            every = len(other) // len(reference)
            other = other[every - 1::every]
        if reference.shape != other.shape:
            raise SystemExit(f"{path}: logits {other.shape}, expected {reference.shape}")
        difference = float(np.abs(reference - other).max())
        kl = mean_kl(reference, other)
        best = int((reference.argmax(-1) == other.argmax(-1)).sum())
        fits = kl <= arguments.kl and (same or not arguments.require_greedy)
        good &= fits
        print(
            f"{path.stem:20} {len(prompt.ids):4} tokens  max diff {difference:9.2e}  KL {kl:9.2e}  "
            f"best {best:3}/{len(reference):<3}  greedy {'same' if same else 'DIFFERENT':9}"
            f"{'' if fits else '  <--'}",
            flush=True,
        )
    if arguments.verbose:
        sys.stderr.write("".join(LlamaCpp.log))
    llama.close()
    return good


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--braidinfer", metavar="PROGRAM", help="the program to compare with llama.cpp")
    side.add_argument(
        "--expected", type=Path, metavar="MODELS",
        help="a directory of fixtures; NAME.expected.* beside NAME.gguf goes first",
    )
    parser.add_argument("--model", help="give Braidinfer this model instead of the file (one FILE)")
    parser.add_argument("--ids", action="append", help="token ids as 1,2,3; may be repeated")
    parser.add_argument("--text", action="append", help="text, tokenized by llama.cpp; may be repeated")
    parser.add_argument("--max-tokens", type=int, default=24, help="greedy tokens (24)")
    parser.add_argument("--n-ctx", type=int, default=512, help="llama.cpp's context (512)")
    parser.add_argument("--f16-cache", action="store_true", help="llama.cpp's default cache type")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=int:VALUE",
        help="a metadata key as llama.cpp is to see it",
    )
    parser.add_argument("--kl", type=float, default=1e-3, help="largest mean KL that passes (1e-3)")
    parser.add_argument("--require-greedy", action="store_true", help="different greedy tokens fail too")
    parser.add_argument("--verbose", action="store_true", help="llama.cpp's warnings")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    # A split model is loaded by its first shard.
    files = [path for path in arguments.files if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", path.name)]
    good = [compare(path, arguments) for path in files]
    print(f"{sum(good)} of {len(good)} files within KL {arguments.kl:g}")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
