"""Writes a model of a published shape with random weights, for timing.

    python tools/random-model/generate.py tinyllama-1.1b /tmp/tinyllama-1.1b

Needs `numpy` and `safetensors` (see requirements.txt). Weights are bf16 with a standard deviation of 0.02, so
logits are finite and text is noise; norm weights are 1, and so are the other vectors but biases.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# Larger models are written in parts, so that not all of one is in memory.
SHARD_BYTES = 3 << 30

SHAPES = {
    "tinyllama-1.1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "llama-2-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    # The proportions of Qwen 3 30B-A3B: an eighth of the experts run for a token.
    "qwen3-moe-2b-a0.4b": {
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "moe_intermediate_size": 512,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 32000,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    # Qwen 3.5's proportions: three layers of a gated delta net for one of attention.
    "qwen3.5-0.9b": {
        "model_type": "qwen3_5_text",
        "hidden_size": 1536,
        "intermediate_size": 4608,
        "num_hidden_layers": 20,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_value_head_dim": 128,
        "linear_num_value_heads": 16,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    # gpt-oss-20b's proportions; `quantize --type mxfp4` gives the experts its number format.
    "gpt-oss-1.7b-a0.3b": {
        "model_type": "gpt_oss",
        "hidden_size": 1024,
        "intermediate_size": 1024,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 8,
        "sliding_window": 128,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "attention_bias": True,
        "vocab_size": 32000,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
    },
}


def parameter_shapes(config):
    """Name and shape of every tensor, in checkpoint order."""
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        if config.get("layer_types", ["full_attention"] * (layer + 1))[layer] == "linear_attention":
            yield from delta_net_shapes(config, prefix + "linear_attn.")
        else:
            yield from attention_shapes(config, prefix + "self_attn.")
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield from feed_forward_shapes(config, prefix + "mlp.")
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def attention_shapes(config, prefix):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    query, key = heads * head_dim, config["num_key_value_heads"] * head_dim
    # Queries and the output gate of Qwen 3.5 lie in one matrix.
    gated = 2 if config["model_type"] == "qwen3_5_text" else 1
    projections = {"q_proj": (gated * query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    for name, shape in projections.items():
        yield f"{prefix}{name}.weight", shape
        if config.get("attention_bias"):
            yield f"{prefix}{name}.bias", shape[:1]
    if config["model_type"] in ("qwen3", "qwen3_moe", "qwen3_5_text"):
        yield prefix + "q_norm.weight", (head_dim,)
        yield prefix + "k_norm.weight", (head_dim,)
    if config["model_type"] == "gpt_oss":
        yield prefix + "sinks", (heads,)


def delta_net_shapes(config, prefix):
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    key = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    value = heads * config["linear_value_head_dim"]
    yield prefix + "A_log", (heads,)
    yield prefix + "conv1d.weight", (2 * key + value, 1, config["linear_conv_kernel_dim"])
    yield prefix + "dt_bias", (heads,)
    yield prefix + "in_proj_a.weight", (heads, hidden)
    yield prefix + "in_proj_b.weight", (heads, hidden)
    yield prefix + "in_proj_qkv.weight", (2 * key + value, hidden)
    yield prefix + "in_proj_z.weight", (value, hidden)
    yield prefix + "norm.weight", (config["linear_value_head_dim"],)
    yield prefix + "out_proj.weight", (hidden, value)


def feed_forward_shapes(config, prefix):
    hidden, width = config["hidden_size"], config["intermediate_size"]
    if config["model_type"] == "gpt_oss":
        experts = config["num_local_experts"]
        yield prefix + "router.weight", (experts, hidden)
        yield prefix + "router.bias", (experts,)
        yield prefix + "experts.gate_up_proj", (experts, hidden, 2 * width)
        yield prefix + "experts.gate_up_proj_bias", (experts, 2 * width)
        yield prefix + "experts.down_proj", (experts, width, hidden)
        yield prefix + "experts.down_proj_bias", (experts, hidden)
        return
    networks = [prefix]
    if "num_experts" in config:
        yield prefix + "gate.weight", (config["num_experts"], hidden)
        networks = [f"{prefix}experts.{expert}." for expert in range(config["num_experts"])]
        width = config["moe_intermediate_size"]
    for network in networks:
        yield network + "gate_proj.weight", (width, hidden)
        yield network + "up_proj.weight", (width, hidden)
        yield network + "down_proj.weight", (hidden, width)


def to_bf16(values):
    """The upper halves of f32 values, which is bf16 rounded towards zero: exact enough for noise."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def save_bf16(tensors, path):
    """Saves u16 arrays as a safetensors file that says BF16."""
    save_file(tensors, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for info in header.values():
        info["dtype"] = "BF16"
    # The format asks for data aligned to 8 bytes; spaces after the header do that.
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def save_shard(tensors, directory, number):
    """Saves tensors and returns in which file each of them is."""
    file = f"model-{number:05}.safetensors"
    save_bf16(tensors, directory / file)
    return dict.fromkeys(tensors, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    arguments.directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(arguments.seed)
    shards = [{}]
    for name, shape in parameter_shapes(config):
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD_BYTES:
            shards[-1] = save_shard(shards[-1], arguments.directory, len(shards))
            shards.append({})
        if len(shape) == 1 and not name.endswith("bias"):
            values = np.ones(shape, dtype=np.float32)
        else:
            values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        shards[-1][name] = to_bf16(values)
    if len(shards) == 1:
        save_bf16(shards[0], arguments.directory / "model.safetensors")
    else:
        shards[-1] = save_shard(shards[-1], arguments.directory, len(shards))
        index = {"metadata": {}, "weight_map": {name: file for shard in shards for name, file in shard.items()}}
        (arguments.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (arguments.directory / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")


if __name__ == "__main__":
    main()
