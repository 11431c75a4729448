"""Writes small importance matrices as llama.cpp's `llama-imatrix` does, for `cargo test -p braidinfer-model --test imatrix`.

    python tools/quantization/imatrix.py

`tests/fixtures/imatrix/small.gguf` comes from the `gguf` package; extents of 1 at the end of a shape are left out, as
ggml does. `small.dat` has the older binary form of the same numbers.
"""

import struct
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "imatrix"
CHUNKS, CHUNK_SIZE = 3, 4
# Columns, and the number of tokens of each matrix.
TENSORS = {"blk.0.attn_q.weight": (8, [12]), "blk.0.ffn_down_exps.weight": (4, [12, 0, 6])}


def sums(columns, counts):
    """The mean square of column `i` of matrix `m` is `i + 1 + m`."""
    means = np.arange(1, columns + 1) + np.arange(len(counts))[:, None]
    return (means * np.array(counts)[:, None]).astype(np.float32)


def write_gguf(path):
    writer = GGUFWriter(path, "", use_temp_file=False)
    # llama.cpp writes no architecture.
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt", "more.txt"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", CHUNK_SIZE)
    for name, (columns, counts) in TENSORS.items():
        tokens = np.array(counts, dtype=np.float32)
        one = len(counts) == 1
        writer.add_tensor(f"{name}.in_sum2", sums(columns, counts)[0] if one else sums(columns, counts))
        writer.add_tensor(f"{name}.counts", tokens if one else tokens[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def text(name):
    return struct.pack("<i", len(name)) + name.encode()


def write_legacy(path):
    out = struct.pack("<i", len(TENSORS))
    for name, (columns, counts) in TENSORS.items():
        calls = -(-max(counts) // CHUNK_SIZE)
        counted = np.array(counts, dtype=np.float32)[:, None]
        # Experts without tokens have ones.
        means = np.where(counted > 0, sums(columns, counts) / np.maximum(counted, 1), 1).astype(np.float32)
        out += text(name) + struct.pack("<ii", calls, means.size) + (means * np.float32(calls)).tobytes()
    out += struct.pack("<i", CHUNKS) + text("calibration.txt")
    path.write_bytes(out)


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    write_gguf(FIXTURES / "small.gguf")
    write_legacy(FIXTURES / "small.dat")
