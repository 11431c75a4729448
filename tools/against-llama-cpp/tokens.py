"""Token ids of the vocabulary fixtures: the original tokenizer's against llama.cpp's and Braidinfer's.

    python tokens.py [--braidinfer PROGRAM] [--show N] [VOCABULARIES]

Without PROGRAM it shows where llama.cpp splits otherwise than the tokenizer the file was made from.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[2] / "tests/fixtures/gguf/vocabularies"


class LlamaCpp:
    def __init__(self, path):
        from llama_cpp import llama_cpp as api

        self.api = api
        if not hasattr(LlamaCpp, "silent"):
            LlamaCpp.silent = api.llama_log_callback(lambda *_: None)
            api.llama_log_set(LlamaCpp.silent, ctypes.c_void_p())
            api.llama_backend_init()
        params = api.llama_model_default_params()
        params.vocab_only = True
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp does not load it")

    def encode(self, text, add_special):
        data = text.encode()
        tokens = (self.api.llama_token * (2 * len(data) + 16))()
        vocab = self.api.llama_model_get_vocab(self.model)
        n = self.api.llama_tokenize(vocab, data, len(data), tokens, len(tokens), add_special, True)
        return list(tokens[:n])


class Braidinfer:
    def __init__(self, program, path):
        self.program, self.path = program, path

    def encode(self, text, add_special):
        # In a file: an argument cannot hold a NUL.
        with tempfile.NamedTemporaryFile() as file:
            file.write(text.encode())
            file.flush()
            command = [self.program, "tokenize", str(self.path), "--file", file.name, "--json"]
            done = subprocess.run(
                command + ([] if add_special else ["--no-special"]), capture_output=True, text=True
            )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
        return json.loads(done.stdout)["ids"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--braidinfer", metavar="PROGRAM", help="check this instead of llama.cpp")
    parser.add_argument("--show", type=int, default=3, help="differences to print for each (3)")
    parser.add_argument("vocabularies", nargs="?", type=Path, default=FIXTURES)
    arguments = parser.parse_args()
    shared = json.loads((arguments.vocabularies / "texts.json").read_text())
    total = 0
    for path in sorted(arguments.vocabularies.glob("*/vocab.gguf")):
        expected = json.loads((path.parent / "expected.json").read_text())
        texts = shared + expected["texts"]
        encoder = Braidinfer(arguments.braidinfer, path) if arguments.braidinfer else LlamaCpp(path)
        different = []
        for text, ids in zip(texts, expected["ids"], strict=True):
            for add_special, wanted in ((False, ids), (True, expected["before"] + ids + expected["after"])):
                got = encoder.encode(text, add_special)
                if got != wanted:
                    different.append((text, wanted, got))
                    break
        print(f"{path.parent.name:18} {len(texts)} texts, {len(different)} different", flush=True)
        for text, wanted, got in different[: arguments.show]:
            print(f"    {ascii(text)[:60]}\n        expected {wanted[:24]}\n        got      {got[:24]}")
        total += len(different)
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
