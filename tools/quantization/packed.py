"""Writes `tests/fixtures/quantization/packed/`: quantized matrices as safetensors checkpoints store them, and their values.

The values of FP8 come from `transformers`, those of compressed-tensors from the package of that name, which also packs
them. GPTQ and AWQ are packed and computed here, from the published description of their words.
"""

import json
from pathlib import Path

import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

OUT = Path(__file__).resolve().parents[2] / "tests/fixtures/quantization/packed"
ROWS, COLUMNS = 24, 128
# AWQ: the output whose code is in each place of a word.
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def weights(generator, rows=ROWS, columns=COLUMNS):
    return torch.randn(rows, columns, generator=generator) * 0.05


def write(name, config, tensors, values, dtype):
    directory = OUT / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"quantization_config": config}) + "\n")
    tensors = {f"proj.{suffix}": tensor.contiguous() for suffix, tensor in tensors.items()}
    # A tensor that nothing is done to.
    tensors["norm.weight"] = torch.ones(COLUMNS, dtype=torch.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    save_file({"proj.weight": values.float().contiguous()}, directory / "expected.safetensors", metadata={"type": dtype})


def fp8(generator):
    for name, rows, columns, grid, scale_type in [
        ("fp8-blocks", 132, 140, (2, 2), torch.float32),
        ("fp8-blocks-bf16", 32, 64, (2, 2), torch.bfloat16),
        ("fp8-channels", ROWS, COLUMNS, (ROWS, 1), torch.float32),
        ("fp8-one-scale", ROWS, COLUMNS, (1, 1), torch.bfloat16),
    ]:
        channels = name in ("fp8-channels", "fp8-one-scale")
        codes = (weights(generator, rows, columns) * 4000).to(torch.float8_e4m3fn)
        scales = (torch.rand(grid, generator=generator) * 1e-3 + 1e-4).to(scale_type)
        block = [128, 128] if name == "fp8-blocks" else [16, 32]
        # transformers wants whole blocks; checkpoints may end within one.
        whole = torch.zeros(grid[0] * block[0], grid[1] * block[1]).to(torch.float8_e4m3fn)
        padded = codes if channels else whole
        if not channels:
            padded[:rows, :columns] = codes
        values = Fp8Dequantize(None)._dequantize_one(padded, scales, torch.float32)[:rows, :columns]
        if channels:
            config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
            write(name, config, {"weight": codes, "weight_scale": scales if grid[0] > 1 else scales.reshape(1)}, values, "F32")
        else:
            config = {"quant_method": "fp8", "weight_block_size": block}
            write(name, config, {"weight": codes, "weight_scale_inv": scales}, values, "F32")


def scheme(**weights):
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def compressed(generator):
    for name, bits, group, symmetric, scale_type, dtype in [
        ("ct-int4", 4, 32, True, torch.bfloat16, "q4_0"),
        ("ct-int4-wide", 4, 128, True, torch.float16, "q4_0"),
        ("ct-int4-zeros", 4, 64, False, torch.bfloat16, "F32"),
        ("ct-int4-odd-scales", 4, 32, True, torch.float32, "F32"),
        ("ct-int8", 8, 32, True, torch.bfloat16, "q8_0"),
    ]:
        groups = COLUMNS // group
        scale = (torch.rand(ROWS, groups, generator=generator) * 0.01 + 0.002).to(scale_type)
        state = {"weight": weights(generator).to(scale_type), "weight_scale": scale}
        if not symmetric:
            low, high = -(1 << (bits - 1)), 1 << (bits - 1)
            state["weight_zero_point"] = torch.randint(low, high, (ROWS, groups), generator=generator, dtype=torch.int8)
        arguments = scheme(num_bits=bits, group_size=group, symmetric=symmetric, strategy="group")
        packed = PackedQuantizationCompressor.compress(state, arguments)
        exact = {key: value.float() if key == "weight_scale" else value for key, value in packed.items()}
        values = PackedQuantizationCompressor.decompress(exact, arguments)["weight"]
        config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        write(name, config, packed, values, dtype)
    codes = torch.randint(-127, 128, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    scale = (torch.rand(ROWS, 1, generator=generator) * 0.01).to(torch.bfloat16)
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    write("ct-bytes", config, {"weight": codes, "weight_scale": scale}, codes.float() * scale.float(), "q8_0")
    arguments = scheme(num_bits=4, type="float", group_size=32, strategy="group", symmetric=True)
    scale = torch.exp2(torch.randint(-8, -2, (ROWS, COLUMNS // 32), generator=generator).float()).to(torch.bfloat16)
    packed = MXFP4PackedCompressor.compress({"weight": weights(generator).to(torch.bfloat16), "weight_scale": scale}, arguments)
    values = MXFP4PackedCompressor.decompress(dict(packed), arguments)["weight"]
    config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    write("ct-mxfp4", config, packed, values, "mxfp4")


def nvfp4(generator):
    arguments = scheme(num_bits=4, type="float", group_size=16, strategy="tensor_group", symmetric=True)
    scale = (torch.rand(ROWS, COLUMNS // 16, generator=generator) * 400 + 1).to(torch.float8_e4m3fn).float()
    whole = torch.tensor([6741.5])
    state = {"weight": weights(generator), "weight_scale": scale, "weight_global_scale": whole}
    packed = NVFP4PackedCompressor.compress(state, arguments)
    # Its own decompression rounds to bf16.
    codes = unpack_fp4_from_uint8(packed["weight_packed"], ROWS, COLUMNS, dtype=torch.float32)
    exact = dict(scale=packed["weight_scale"].float(), global_scale=whole, args=arguments.weights, dtype=torch.float32)
    values = dequantize(codes, **exact)
    config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    write("ct-nvfp4", config, packed | {"input_global_scale": torch.tensor([17.0])}, values, "F32")
    # The same codes and scales with NVIDIA's number, which multiplies them.
    whole = torch.tensor(1.37e-4)
    scales = packed["weight_scale"].float().repeat_interleave(16, 1)
    tensors = {"weight": packed["weight_packed"], "weight_scale": packed["weight_scale"], "weight_scale_2": whole}
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    write("modelopt-nvfp4", config, tensors | {"input_scale": torch.tensor(0.02)}, codes * (scales * whole), "F32")


def words(codes, bits, places=None):
    """Codes [.., n] in 32-bit words along the last dimension."""
    per_word = 32 // bits
    codes = codes.unflatten(-1, (-1, per_word)).to(torch.int64)
    order = torch.tensor(places or range(per_word))
    word = (codes[..., order] << (bits * torch.arange(per_word))).sum(-1)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def columns(generator):
    for name, method, bits, group, symmetric, order, dtype in [
        ("gptq", "gptq", 4, 32, True, "plain", "q4_0"),
        ("gptq-zeros", "gptq", 4, 64, False, None, "F32"),
        ("gptq-shuffled", "gptq", 4, 32, True, "shuffled", "F32"),
        ("gptq-8-bits", "gptq", 8, 128, True, "plain", "q8_0"),
        ("gptq-cut-group", "gptq", 4, 48, True, None, "F32"),
        ("gptq-2", "gptq_v2", 4, 32, True, None, "q4_0"),
        ("awq", "awq", 4, 32, False, None, "F32"),
        ("awq-symmetric", "awq", 4, 64, True, None, "q4_0"),
    ]:
        groups, largest = -(-COLUMNS // group), (1 << bits) - 1
        codes = torch.randint(0, largest + 1, (COLUMNS, ROWS), generator=generator)
        zeros = torch.full((groups, ROWS), 1 << (bits - 1))
        if not symmetric:
            zeros = torch.randint(1, largest + 1, (groups, ROWS), generator=generator)
        scales = (torch.rand(groups, ROWS, generator=generator) * 0.01 + 0.001).to(torch.float16)
        of = torch.arange(COLUMNS) // group
        if order == "shuffled":
            of = of[torch.randperm(COLUMNS, generator=generator)]
        values = (scales.float()[of] * (codes - zeros[of]).float()).T
        config = {"quant_method": "awq" if method == "awq" else "gptq", "bits": bits, "group_size": group}
        if method == "awq":
            tensors = {"qweight": words(codes, 4, AWQ_PLACES), "qzeros": words(zeros, 4, AWQ_PLACES)}
            config["version"] = "gemm"
        else:
            stored = zeros - 1 if method == "gptq" else zeros
            tensors = {"qweight": words(codes.T, bits).T, "qzeros": words(stored, bits)}
            config["checkpoint_format"] = method
        if order:
            tensors["g_idx"] = of.to(torch.int32)
        write(name, config, tensors | {"scales": scales}, values, dtype)


def main():
    generator = torch.Generator().manual_seed(20261128)
    fp8(generator)
    compressed(generator)
    columns(generator)
    nvfp4(generator)


if __name__ == "__main__":
    main()
