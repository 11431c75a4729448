"""Makes tokenizer.json files of SentencePiece models, in the three forms that published models have.

    python converted.py [--out DIRECTORY]

They have byte fallback and merges, and what they do with spaces differs: llama (a normalizer puts one before every
stretch of text), mistral (only before the first one), gemma (none at all).
"""

import argparse
import json
from pathlib import Path

import sentencepiece

ROOT = Path(__file__).resolve().parents[2]
SPACE = "\u2581"
MODELS = {
    "llama": ("tests/fixtures/text/sentencepiece/bpe/tokenizer.model", "<s>"),
    "mistral": ("tests/fixtures/text/sentencepiece/bpe/tokenizer.model", "<s>"),
    "gemma": ("tests/fixtures/gguf/vocabularies/gemma-spm/tokenizer.model", "<bos>"),
}


def merges(processor):
    """Every way to put a piece together from two others; the best-scored result first, then the longer left part."""
    ids = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    found = []
    for piece, i in ids.items():
        if processor.is_control(i) or processor.is_byte(i) or processor.is_unknown(i):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-processor.get_score(i), ids[left], ids[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def steps(kind):
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if kind == "llama":
        return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}, None
    if kind == "mistral":
        return None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    return replace, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def tokenizer_json(kind, processor, first):
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    special = [i for i in vocab.values() if processor.is_control(i) or processor.is_unknown(i)]
    added = [
        {"id": i, "content": processor.id_to_piece(i), "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i in special
    ]
    normalizer, pre_tokenizer = steps(kind)
    strip = [] if kind == "gemma" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    before = {"SpecialToken": {"id": first, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing", "single": [before, text], "pair": [before, text],
            "special_tokens": {first: {"id": first, "ids": [vocab[first]], "tokens": [first]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders + strip},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>" if kind != "mistral" else None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": vocab, "merges": merges(processor),
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/gguf/converted")
    out = parser.parse_args().out
    for kind, (model, first) in MODELS.items():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(ROOT / model))
        folder = out / kind
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(tokenizer_json(kind, processor, first), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": first}) + "\n")


if __name__ == "__main__":
    main()
