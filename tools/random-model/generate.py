"""Writes a model of a published shape with random weights, for timing.

    python tools/random-model/generate.py tinyllama-1.1b /tmp/tinyllama-1.1b

Needs `numpy` and `safetensors` (see requirements.txt). Weights are bf16 with a standard deviation of 0.02, so
logits are finite and text is noise; norm weights are 1.
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
}


def parameter_shapes(config):
    """Name and shape of every tensor, in checkpoint order."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (query, hidden)
        yield prefix + "self_attn.k_proj.weight", (key, hidden)
        yield prefix + "self_attn.v_proj.weight", (key, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, query)
        if config["model_type"] in ("qwen3", "qwen3_moe"):
            yield prefix + "self_attn.q_norm.weight", (head_dim,)
            yield prefix + "self_attn.k_norm.weight", (head_dim,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        networks, width = ["mlp."], inner
        if "num_experts" in config:
            yield prefix + "mlp.gate.weight", (config["num_experts"], hidden)
            networks = [f"mlp.experts.{expert}." for expert in range(config["num_experts"])]
            width = config["moe_intermediate_size"]
        for network in networks:
            yield prefix + network + "gate_proj.weight", (width, hidden)
            yield prefix + network + "up_proj.weight", (width, hidden)
            yield prefix + network + "down_proj.weight", (hidden, width)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


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
        if len(shape) == 1:
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
