"""Root mean square error of our encoders for q2_k to q6_k beside llama.cpp's, as a Markdown table.

    cargo build --release -p braidinfer-model --example quantize_rows
    python tools/quantization/against_llama_cpp.py LIBGGML_BASE [--weighted]

LIBGGML_BASE is the libggml-base.so of a llama.cpp build; without it, that of the installed `llama-cpp-python` is used.
llama.cpp quantizes without an importance matrix; with --weighted both have the same one, of log-normal numbers, and the
mean square error is weighted by them, also that of our blocks without importance, for comparison. Both sides' blocks are
decoded by the `gguf` package.
"""

import argparse
import ctypes
import importlib.util
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from distributions import DISTRIBUTIONS, IMPORTANCE

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"q2_k": GGMLQuantizationType.Q2_K, "q3_k": GGMLQuantizationType.Q3_K, "q4_k": GGMLQuantizationType.Q4_K, "q5_k": GGMLQuantizationType.Q5_K, "q6_k": GGMLQuantizationType.Q6_K}
LEGACY = {"q4_0": GGMLQuantizationType.Q4_0, "q4_1": GGMLQuantizationType.Q4_1, "q5_0": GGMLQuantizationType.Q5_0, "q5_1": GGMLQuantizationType.Q5_1}


def installed_library():
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise SystemExit("llama-cpp-python is not installed: name a libggml-base.so")
    return Path(spec.origin).parent / "lib" / "libggml-base.so"


def load(path):
    library = ctypes.CDLL(str(path))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return quantize


def theirs(quantize, kind, rows, size, importance=None):
    blocks = np.zeros(size, dtype=np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = quantize(kind.value, rows.ctypes.data, blocks.ctypes.data, 0, *rows.shape, weights)
    if written != size:
        raise SystemExit(f"llama.cpp wrote {written} bytes, expected {size}")
    return blocks


def ours(program, name, rows, *importance):
    done = subprocess.run([program, name, *importance], input=rows.tobytes(), stdout=subprocess.PIPE, check=True)
    return np.frombuffer(done.stdout, dtype=np.uint8)


def squared_errors(rows, blocks, kind, importance=None):
    """Mean for each row."""
    decoded = dequantize(blocks, kind).astype(np.float64).reshape(rows.shape)
    return np.average(np.square(decoded - rows), axis=1, weights=importance)


def table_row(name, label, ours, theirs):
    rms, their_rms = np.sqrt(ours.mean()), np.sqrt(theirs.mean())
    if their_rms == 0:
        return f"| {name} | {label} | {rms:.4g} | 0 | | |"
    worst = np.sqrt(np.max(ours / theirs))
    return f"| {name} | {label} | {rms:.4g} | {their_rms:.4g} | {rms / their_rms:.3f} | {worst:.3f} |"


def weighted_tables(quantize, program):
    print("| type | values | ours | llama.cpp | ratio | largest ratio of a row | ours without importance |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        IMPORTANCE.tofile(file.name)
        for name, kind in (LEGACY | TYPES).items():
            for label, rows in DISTRIBUTIONS.items():
                if label.startswith("large") and name in LEGACY:
                    continue
                plain, blocks = ours(program, name, rows), ours(program, name, rows, file.name)
                their_blocks = theirs(quantize, kind, rows, blocks.size, IMPORTANCE)
                errors = [squared_errors(rows, found, kind, IMPORTANCE) for found in (blocks, their_blocks, plain)]
                print(table_row(name, label, *errors[:2]) + f" {np.sqrt(errors[2].mean()):.4g} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, nargs="?")
    parser.add_argument("--program", type=Path, default=ROOT / "target" / "release" / "examples" / "quantize_rows")
    parser.add_argument("--weighted", action="store_true")
    args = parser.parse_args()
    quantize = load(args.library or installed_library())
    if args.weighted:
        return weighted_tables(quantize, args.program)
    print("| type | values | ours | llama.cpp | ratio | largest ratio of a row |")
    print("|---|---|---|---|---|---|")
    for name, kind in TYPES.items():
        for label, rows in DISTRIBUTIONS.items():
            blocks = ours(args.program, name, rows)
            their_blocks = theirs(quantize, kind, rows, blocks.size)
            print(table_row(name, label, squared_errors(rows, blocks, kind), squared_errors(rows, their_blocks, kind)))


if __name__ == "__main__":
    main()
