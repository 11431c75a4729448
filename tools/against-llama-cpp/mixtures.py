"""Compares which type each tensor gets from `braidinfer quantize` and from llama.cpp's own quantizer.

    python mixtures.py --braidinfer PROGRAM [MODEL ...]
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gguf import GGUFReader
from llama_cpp import llama_cpp as api

ROOT = Path(__file__).resolve().parents[2]
# Numbers of `enum llama_ftype`.
TYPES = {"q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q4_k_m": 15, "q4_0": 2, "q3_k_m": 12, "q2_k": 10}
MODELS = ["crates/braidinfer-cli/demo-model", "tests/fixtures/models/phi3", "tests/fixtures/models/qwen3-extreme"]


def ours(program, model, path, kind):
    started = time.perf_counter()
    subprocess.run([program, "quantize", model, path, "--type", kind, "--force"], check=True, capture_output=True)
    return time.perf_counter() - started


def theirs(source, path, kind):
    params = api.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    started = time.perf_counter()
    if api.llama_model_quantize(source.encode(), path.encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"{source}: llama.cpp cannot quantize it")
    return time.perf_counter() - started


def types(path):
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--braidinfer", required=True)
    parser.add_argument("models", nargs="*", default=[str(ROOT / model) for model in MODELS])
    arguments = parser.parse_args()
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p())
    differing = False
    print("| model | type | tensors | of another type | seconds, ours | seconds, llama.cpp |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        f16, a, b = (str(Path(folder) / name) for name in ("f16.gguf", "ours.gguf", "theirs.gguf"))
        for model in arguments.models:
            ours(arguments.braidinfer, model, f16, "f16")
            for kind in TYPES:
                seconds = ours(arguments.braidinfer, model, a, kind), theirs(f16, b, kind)
                mine, other = types(a), types(b)
                others = sorted(name for name in mine | other if mine.get(name) != other.get(name))
                differing |= bool(others)
                print(f"| {Path(model).name} | {kind} | {len(mine)} | {', '.join(others) or 'none'} | {seconds[0]:.2f} | {seconds[1]:.2f} |")
    return differing


if __name__ == "__main__":
    sys.exit(main())
