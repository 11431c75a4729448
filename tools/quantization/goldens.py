"""Records what the `gguf` package decodes and encodes, for `cargo test -p braidinfer-model --test quantization`.

    pip install -r tools/quantization/requirements.txt
    python tools/quantization/goldens.py

Writes `dequantize.safetensors` (for each block type `{type}.blocks` and `{type}.values`) and `quantize.safetensors`
(for each case `{case}.values`, and `{case}.{type}` for the types that `gguf` encodes).
"""

import warnings
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "quantization"
# Where the f16 numbers of a block are, in bytes.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}
ENCODED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
# Zero, minus zero, one, the largest, the least normal and the least subnormal number, some of them negative.
EXTREMES = np.array([0x0000, 0x8000, 0x3C00, 0x7BFF, 0xFBFF, 0x0400, 0x8400, 0x0001, 0x8001, 0x03FF], dtype=np.uint16)


def finite_halves(generator, count):
    bits = generator.integers(0, 1 << 16, size=count, dtype=np.uint16)
    return np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF | 0x3800, bits).astype(np.uint16)


def blocks_of(name, generator):
    """Random blocks, then blocks of equal bytes, with every extreme in turn in the place of their f16 numbers."""
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    count = 64 if length == 32 else 24
    blocks = generator.integers(0, 256, size=(count, size), dtype=np.uint8)
    fills = [0x00, 0xFF, 0x80, 0x7F]
    filled = blocks[-2 * len(EXTREMES):]
    for i in range(len(EXTREMES), len(filled)):
        filled[i] = fills[i % len(fills)]
    for at in HALVES[name]:
        halves = finite_halves(generator, count)
        halves[-2 * len(EXTREMES):] = np.concatenate([EXTREMES, np.roll(EXTREMES, at)])
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(count, 2)
    return blocks


def decoded():
    generator = np.random.default_rng(20261120)
    tensors = {}
    for name in HALVES:
        blocks = blocks_of(name, generator)
        tensors[f"{name.lower()}.blocks"] = blocks
        tensors[f"{name.lower()}.values"] = dequantize(blocks, GGMLQuantizationType[name])
    return tensors


def inputs():
    """Rows of 256 values."""
    generator = np.random.default_rng(20261121)
    normal = generator.normal(size=(4, 256))
    outlier = generator.normal(size=(2, 256))
    outlier[:, 37::64] = 1000.0
    # Codes and a half in steps of one: every rounding is a tie.
    ties = np.tile(np.concatenate([np.arange(-8.0, 8.0), np.arange(-7.5, 8.5)]), (2, 8)) * np.array([[1.0], [0.25]])
    return {
        "gaussian": normal,
        "heavy_tailed": generator.standard_t(3, size=(4, 256)) * 0.02,
        "positive": generator.uniform(0.5, 1.5, size=(2, 256)),
        "negative": generator.uniform(-1.5, -0.5, size=(2, 256)),
        "ties": ties,
        "ties_of_127": np.concatenate([[127.0], generator.integers(-127, 127, size=255) + 0.5])[None, :],
        "zeros": np.zeros((1, 256)),
        "equal": np.repeat([[0.3], [-0.3]], 256, axis=1),
        "outlier": outlier,
        "subnormal_scales": normal[:2] * 1e-6,
        "vanishing": normal[:2] * 1e-12,
        "subnormal_values": normal[:2] * 1e-39,
        "large": normal[:2] * 1.5e4,
    }


def encoded():
    tensors = {}
    for case, values in inputs().items():
        values = values.astype(np.float32)
        tensors[f"{case}.values"] = values
        for name in ENCODED:
            # `1 / d` overflows for subnormal values.
            with warnings.catch_warnings(action="ignore"):
                tensors[f"{case}.{name.lower()}"] = quantize(values, GGMLQuantizationType[name])
    return tensors


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, tensors in {"dequantize": decoded(), "quantize": encoded()}.items():
        path = FIXTURES / f"{name}.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
