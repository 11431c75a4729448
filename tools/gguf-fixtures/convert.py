"""Turns the model fixtures into GGUF files with llama.cpp's own converter.

    python convert.py --llama-cpp DIRECTORY [--out DIRECTORY] [--outtype auto|f32] [NAME ...]

DIRECTORY is an unpacked llama.cpp source tree (conversion/ and gguf-py/ are used). Keys, tensor
names, permuted rows and norm offsets are the converter's; only what is listed in `FIXTURES` and
in `write_none_vocabulary` is ours.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests/fixtures/models"
DEFAULT_OUT = ROOT / "tests/fixtures/gguf/models"
SHARDS = 3
# Of the four prompts of a fixture: 1, 7 and 40 tokens, the last longer than every window.
PROMPTS = 3


@dataclass
class Fixture:
    name: str
    # What a reader has to assume where config.json says something that the file has no key for. Such a file
    # gets its own expected logits, from transformers with these settings.
    as_if: dict = field(default_factory=dict)
    # Keys the converter derives where it should read: written again with the right value.
    corrected: dict = field(default_factory=dict)
    # Fields of config.json that the converter looks for, and that transformers does not write.
    more_config: dict = field(default_factory=dict)
    # Whether the converter gets config.json as it is, without the class's defaults, which would mean experts.
    plain_config: bool = False
    # Tensors that the converter knows of other architectures only, under the names that they have there.
    more_tensors: tuple = ()
    # Whether the converter gets an embedding for each layer with a row for every token: those that have none of their
    # own have the first one in transformers, where the converter would write zeros.
    all_rows: bool = False


FIXTURES = [
    Fixture("llama"),
    Fixture("llama3"),
    Fixture("llama-bias"),
    Fixture("llama-linear"),
    Fixture("llama-yarn"),
    Fixture("llama-head-dim"),
    # The converter writes no window for the llama architecture.
    Fixture("mistral", as_if={"sliding_window": None}),
    Fixture("gemma"),
    # The scale is the head size (or, for the 27B models, hidden size / heads), never read.
    Fixture("gemma2", as_if={"query_pre_attn_scalar": 16}),
    Fixture("gemma3", as_if={"query_pre_attn_scalar": 16}),
    Fixture("qwen2"),
    Fixture("qwen3"),
    # The converter takes four times the hidden size, which is right for the published models.
    Fixture("phi", corrected={"feed_forward_length": 64}),
    # The window is in the file. llama.cpp ignores it; what is expected is what transformers does.
    Fixture("phi3"),
    Fixture("phi3-longrope"),
    Fixture("ernie4_5"),
    Fixture("smollm3"),
    Fixture("olmo2"),
    Fixture("granite"),
    Fixture("mixtral"),
    Fixture("olmoe"),
    Fixture("granitemoe"),
    Fixture("granitemoeshared"),
    Fixture("ernie4_5_moe"),
    Fixture("gpt_oss-mxfp4"),
    Fixture("olmo3"),
    Fixture("seed_oss"),
    Fixture("glm4"),
    Fixture("exaone4"),
    Fixture("cohere2"),
    Fixture("hunyuan_v1_dense"),
    Fixture("stablelm"),
    # The converter writes no window, and llama.cpp has none for this architecture.
    Fixture("starcoder2", as_if={"sliding_window": None}),
    Fixture("arcee"),
    Fixture("cohere"),
    Fixture("nemotron"),
    Fixture("qwen3_5"),
    Fixture("qwen3_5_moe"),
    Fixture("lfm2"),
    # The published models have a tied output head, and the factor of 1 that the converter does not write.
    Fixture("lfm2_moe", as_if={"routed_scaling_factor": 1.0}, more_tensors=("OUTPUT",)),
    # The converter expects experts in every layer.
    Fixture("qwen3_next", more_tensors=("FFN_GATE", "FFN_UP", "FFN_DOWN")),
    # Per-layer embeddings and shared keys and values; heads of two shapes, keys as values and experts.
    Fixture("gemma4"),
    Fixture("gemma4-moe"),
    Fixture("gemma3n", all_rows=True),
    Fixture("deepseek_v2"),
    # Files have one of DeepSeek's two factors of YaRN, which are equal in published models.
    Fixture("deepseek_v3", as_if={"rope_parameters": {"mscale": 0.4}}),
    Fixture("glm4_moe_lite"),
    # The converter writes no multipliers, and no factor of longrope.
    Fixture("minicpm3", as_if={
        "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "rope_parameters": {"attention_factor": 1.0},
    }),
    Fixture("granitemoehybrid"),
    # The converter takes every model with Mamba-2 for one without RoPE, as the published ones are.
    Fixture("granitemoehybrid-dense", corrected={"rope_scaling_finetuned": True}),
    Fixture("falcon_h1"),
    # The converter checks a width of heads that no published model has.
    Fixture("nemotron_h", more_config={"mamba_d_head": 10}, plain_config=True),
    # There is no key for the least step, and the converter writes none for how many groups experts are chosen from.
    Fixture(
        "nemotron_h-moe", as_if={"time_step_min": 0.001}, corrected={"expert_group_used_count": 1},
        more_config={"mamba_d_head": 8},
    ),
]
BY_NAME = {fixture.name: fixture for fixture in FIXTURES}


def write_none_vocabulary(model, corrected):
    """Stands in for the converter's `set_vocab`: the fixtures have no tokenizer."""
    model.gguf_writer.add_tokenizer_model("none")
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])
    for key, value in corrected.items():
        getattr(model.gguf_writer, f"add_{key}")(value)


def copy_for_converter(fixture, directory):
    """The fixture, and the number of tokens where Gemma 3's class looks for it."""
    source = MODELS / fixture.name
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, directory / name)
    config = json.loads((source / "config.json").read_text())
    if fixture.all_rows:
        repeat_first_row(directory / "model.safetensors", config["vocab_size"])
    if fixture.more_config:
        (directory / "config.json").write_text(json.dumps(config | fixture.more_config))
    stub = {"model": {"vocab": {str(i): i for i in range(config["vocab_size"])}}, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(stub))


def repeat_first_row(path, rows):
    """Makes the embedding for each layer as long as that of tokens."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("embed_tokens_per_layer.weight"))
    further = tensors[name][:1].expand(rows - len(tensors[name]), -1)
    tensors[name] = torch.cat([tensors[name], further])
    save_file(tensors, path, metadata={"format": "pt"})


def convert(fixture, out, outtype, split=False):
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    file_type = {"auto": gguf.LlamaFileType.GUESSED, "f32": gguf.LlamaFileType.ALL_F32}[outtype]
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        directory = Path(scratch) / fixture.name
        directory.mkdir()
        copy_for_converter(fixture, directory)
        hparams = ModelBase.load_hparams(directory, False)
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        # The fixtures have no layers that predict a token after the next.
        model_class.no_mtp = True
        gguf.MODEL_TENSORS[model_class.model_arch] += [gguf.MODEL_TENSOR[name] for name in fixture.more_tensors]
        count = sum(1 for _ in safe_names(directory / "model.safetensors"))
        given = {"hparams": json.loads((directory / "config.json").read_text())} if fixture.plain_config else {}
        model = model_class(
            directory, file_type, out, model_name=fixture.name, eager=True,
            split_max_tensors=-(-count // SHARDS) if split else 0, **given,
        )
        model.set_vocab = lambda: write_none_vocabulary(model, fixture.corrected)
        model.write()
    return model_class.__name__


def safe_names(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        yield from file.keys()


def settings(fixture):
    """What a reader has to assume, with the rest of those settings that it changes in part."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODELS / fixture.name)
    whole = lambda name, value: getattr(config, name) | value if isinstance(value, dict) else value
    return {name: whole(name, value) for name, value in fixture.as_if.items()}


def write_expected(fixture, out):
    """What transformers computes with the settings a reader of the file has to assume."""
    import torch
    import transformers
    from safetensors.torch import save_file

    import reference

    model = reference.load(MODELS / fixture.name, **settings(fixture))
    prompts = json.loads((MODELS / fixture.name / "expected.json").read_text())["prompts"][:PROMPTS]
    entries, logits = [], {}
    for i, prompt in enumerate(prompts):
        tokens, margin = reference.greedy(model, prompt["ids"])
        entries.append({"ids": prompt["ids"], "greedy": tokens, "greedy_margin": round(margin, 6)})
        logits[f"logits.{i}"] = reference.logits(model, prompt["ids"]).contiguous()
    expected = {
        "source": {"transformers": transformers.__version__, "torch": torch.__version__},
        "fixture": fixture.name,
        "as_if": fixture.as_if,
        "prompts": entries,
    }
    (out / f"{fixture.name}.expected.json").write_text(json.dumps(expected) + "\n")
    save_file(logits, out / f"{fixture.name}.expected.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp source tree")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument(
        "--outtype", choices=["auto", "f32"], default="auto",
        help="auto: matrices stay bf16 where the safetensors are bf16, which loses nothing",
    )
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    sys.path[:0] = [
        str(arguments.llama_cpp), str(arguments.llama_cpp / "gguf-py"), str(ROOT / "tools/fixtures")
    ]
    logging.basicConfig(level=logging.ERROR)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for fixture in [BY_NAME[name] for name in arguments.names] or FIXTURES:
        path = arguments.out / f"{fixture.name}.gguf"
        used = convert(fixture, path, arguments.outtype)
        if fixture.as_if:
            write_expected(fixture, arguments.out)
        print(f"{fixture.name:16} {used:18} {path.stat().st_size:8} bytes", flush=True)
        if fixture.name == "llama":
            convert(fixture, arguments.out / "llama-split.gguf", arguments.outtype, split=True)


if __name__ == "__main__":
    main()
