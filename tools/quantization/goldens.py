"""Records what the `gguf` package decodes and encodes, for `cargo test -p braidinfer-model --test all quantization::`.

    pip install -r tools/quantization/requirements.txt
    python tools/quantization/goldens.py

Writes `dequantize.safetensors` (for each block type `{type}.blocks` and `{type}.values`), `quantize.safetensors` (for
each case `{case}.values`, and `{case}.{type}` for the types that `gguf` encodes) and `checksums.safetensors` (of what
comes of 10,000 blocks, `{type}.decoded`, and of 10,000 rows of 256 values, `{type}.encoded`, from a stream of random
bytes that the test makes, too).
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
    "IQ1_S": [0], "IQ1_M": [], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0],
    "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [],
}
# Types of which the fixture has three blocks more.
LONGER = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
ENCODED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
# Halfway between two levels of `mxfp4`.
LEVEL_TIES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
# Checksums are of so many blocks each.
RUN = 500
RUNS = 20
MIX = 0x9E3779B97F4A7C15
# Zero, minus zero, one, the largest, the least normal and the least subnormal number, some of them negative.
EXTREMES = np.array([0x0000, 0x8000, 0x3C00, 0x7BFF, 0xFBFF, 0x0400, 0x8400, 0x0001, 0x8001, 0x03FF], dtype=np.uint16)


def finite_halves(generator, count):
    bits = generator.integers(0, 1 << 16, size=count, dtype=np.uint16)
    return np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF | 0x3800, bits).astype(np.uint16)


def spread(halves):
    """The f16 number of `iq1_m`: a quarter of it in the upper half of every other byte."""
    return np.stack([halves >> np.uint16(4 * i) & np.uint16(15) for i in range(4)], axis=1).astype(np.uint8) << 4


def blocks_of(name, generator):
    """Random blocks, then blocks of equal bytes, with every extreme in turn in the place of their f16 numbers."""
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    count = 64 if length < 256 else 24 if name in LONGER else 21
    blocks = generator.integers(0, 256, size=(count, size), dtype=np.uint8)
    fills = [0x00, 0xFF, 0x80, 0x7F]
    filled = blocks[-2 * len(EXTREMES):]
    for i in range(len(EXTREMES), len(filled)):
        filled[i] = fills[i % len(fills)]
    for at in HALVES[name]:
        halves = finite_halves(generator, count)
        halves[-2 * len(EXTREMES):] = np.concatenate([EXTREMES, np.roll(EXTREMES, at)])
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(count, 2)
    if name == "IQ1_M":
        halves = finite_halves(generator, count)
        halves[-2 * len(EXTREMES):] = np.concatenate([EXTREMES, EXTREMES])
        blocks[:, 49::2] = blocks[:, 49::2] & 0x0F | spread(halves)
    if name == "MXFP4":
        # The subnormal scales, one, and those with which some levels exceed f32.
        blocks[-16:, 0] = np.repeat(np.array([0, 1, 2, 128, 252, 253, 254, 255], dtype=np.uint8), 2)
        # Every code in both halves of a byte.
        blocks[-16::2, 1:] = np.arange(16) * 17
    if name == "NVFP4":
        blocks[:8, 4:] = np.arange(32) * 17 % 256
        # Every code of a scale.
        blocks[:, :4] = np.arange(256).reshape(64, 4)
    return blocks


def decoded():
    generator = np.random.default_rng(20261120)
    tensors = {}
    for name in HALVES:
        blocks = blocks_of(name, generator)
        tensors[f"{name.lower()}.blocks"] = blocks
        # Some levels exceed f32 with the largest scales of `mxfp4`.
        with np.errstate(over="ignore"):
            tensors[f"{name.lower()}.values"] = dequantize(blocks, GGMLQuantizationType[name])
    return tensors


def mixed(numbers):
    """The last step of splitmix64."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def stream(start, count):
    """`count` random numbers of 64 bits."""
    return mixed(np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(MIX))


def checksums(rows):
    """A number for each run of rows: the sum of all values, each mixed with its place in the run."""
    values = rows.reshape(RUNS, -1).astype(np.uint64)
    places = np.arange(values.shape[1], dtype=np.uint64) << np.uint64(32)
    return np.sum(mixed(values | places), axis=1, dtype=np.uint64)


def streamed_blocks(name, kind):
    """Random bytes; f16 numbers that are not finite are made so by another exponent."""
    size = GGML_QUANT_SIZES[kind][1]
    count = RUN * RUNS
    blocks = stream(kind.value, -(-count * size // 8)).view(np.uint8)[:count * size].reshape(count, size).copy()
    for at in HALVES[name]:
        blocks[:, at + 1] &= np.where(blocks[:, at + 1] & 0x7C == 0x7C, 0xBF, 0xFF).astype(np.uint8)
    if name == "IQ1_M":
        ones = (blocks[:, 55] & 0x70 == 0x70) & (blocks[:, 53] & 0xC0 == 0xC0)
        blocks[:, 55] &= np.where(ones, 0xBF, 0xFF).astype(np.uint8)
    return blocks


def streamed_values():
    """Rows of 256 values whose exponents differ by up to 7 from one that each block of 32 has to itself."""
    numbers = stream(1000, RUN * RUNS * 256).reshape(-1, 32)
    exponents = 100 + (numbers[:, :1] >> np.uint64(32)) % np.uint64(30) + (numbers >> np.uint64(40)) % np.uint64(8)
    bits = numbers & np.uint64(0x807FFFFF) | exponents << np.uint64(23)
    return bits.astype(np.uint32).view(np.float32).reshape(-1, 256)


def summed():
    tensors = {}
    for name in HALVES:
        kind = GGMLQuantizationType[name]
        with np.errstate(over="ignore"):
            values = dequantize(streamed_blocks(name, kind), kind)
        tensors[f"{name.lower()}.decoded"] = checksums(values.view(np.uint32))
    values = streamed_values()
    for name in ENCODED:
        tensors[f"{name.lower()}.encoded"] = checksums(quantize(values, GGMLQuantizationType[name]))
    return tensors


def below_powers():
    """Blocks whose largest magnitude is a little below, at, or above a power of two, up to the largest f32."""
    exponents = [-125, -100, -64, -63, -33, -17, -8, -3, -2, -1, 0, 1, 2, 20, 127]
    powers = np.exp2(exponents).astype(np.float32)
    steps = np.array([-40, -20, -10, -5, -3, -2, -1, 0, 1], dtype=np.int32)
    largest = (powers.view(np.int32)[:, None] + steps).reshape(-1).view(np.float32)
    largest = np.append(largest, np.finfo(np.float32).max)
    return np.outer(largest, np.linspace(-1, 1, 32, dtype=np.float32)).reshape(-1, 256)


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
        "ties_of_fp4": np.tile(np.concatenate([LEVEL_TIES, -LEVEL_TIES, LEVEL_TIES * 2, [8.0, -8.0]]), 10)[None, :256],
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
    tensors["powers_of_two.mxfp4.values"] = below_powers()
    with np.errstate(over="ignore"):
        tensors["powers_of_two.mxfp4"] = quantize(below_powers(), GGMLQuantizationType.MXFP4)
    return tensors


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, tensors in {"dequantize": decoded(), "quantize": encoded(), "checksums": summed()}.items():
        path = FIXTURES / f"{name}.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
