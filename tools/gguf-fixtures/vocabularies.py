"""Makes vocabulary-only GGUF files with llama.cpp's converter, and what the original tokenizer answers.

    python vocabularies.py --llama-cpp DIRECTORY [--out DIRECTORY] [NAME ...]

One directory for each kind of pre-tokenizer that tokenizer.ggml.pre can name, and three SentencePiece
models. All byte-level ones share their merges, which were learned across letters, digits, marks and signs, so
that a difference in how a text is split changes the ids.
"""

import argparse
import contextlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/text-fixtures"))

import golden_json  # noqa: E402
import sentencepiece  # noqa: E402
import sentencepiece_goldens  # noqa: E402
import tokenizers  # noqa: E402
from more_corpus import lines  # noqa: E402
from nasty_texts import SHARED  # noqa: E402
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from training_corpus import sentences  # noqa: E402

DEFAULT_OUT = ROOT / "tests/fixtures/gguf/vocabularies"
TEMPLATE = ROOT / "tools/text-fixtures/templates/bos-chatml.jinja"
LEARNED = 800
# In bytes. Longer ones would be whole phrases of the corpus.
LONGEST = 8
# In the vocabulary, but no merges lead there: only `ignore_merges` finds them, as whole words.
UNREACHABLE = ["\u0120harbour", "Hello", "!!!", "\u010a\u010a", "123", "\u0120\u0120\u0120", "\u0120world", "HTTPServer", "7"]

# The regular expressions are those of the published tokenizer.json files.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)


def byte_level(add_prefix_space=False, trim_offsets=True, use_regex=True):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets,
            "use_regex": use_regex}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


DIGITS = {"type": "Digits", "individual_digits": True}
PLAIN = byte_level(False, False, False)
SPECIAL, ORDINARY = True, False

# specials_first: the added tokens have the lowest ids and are in model.vocab, as in files made that way.
# added: (text, special, other flags). bos: the template puts it in front.
BYTE_LEVEL = {
    "llama-bpe": dict(
        pre_tokenizer=sequence(split(LLAMA3), byte_level(use_regex=False)), ignore_merges=True, bos="<|begin_of_text|>",
        eos="<|end_of_text|>", byte_level_post=byte_level(True, False, True),
        added=[("<|begin_of_text|>", SPECIAL), ("<|end_of_text|>", SPECIAL), ("<|start_header_id|>", SPECIAL),
               ("<|end_header_id|>", SPECIAL), ("<|eot_id|>", SPECIAL), ("<note>", ORDINARY)],
        chat_template=True,
    ),
    "qwen2": dict(
        normalizer={"type": "NFC"}, pre_tokenizer=sequence(split(QWEN2), PLAIN), post=PLAIN, decoder=PLAIN,
        eos="<|im_end|>", pad="<|endoftext|>", merge_pairs=True, architecture="qwen2", padding=5,
        added=[("<|endoftext|>", SPECIAL), ("<|im_start|>", SPECIAL), ("<|im_end|>", SPECIAL),
               ("<|fim_prefix|>", ORDINARY), ("<think>", ORDINARY), ("</think>", ORDINARY)],
    ),
    "gpt-2": dict(
        pre_tokenizer=byte_level(), post=byte_level(True, False), bos_only="<|endoftext|>", eos="<|endoftext|>",
        unk="<|endoftext|>", added=[("<|endoftext|>", SPECIAL, {"normalized": True})], in_vocabulary=True,
    ),
    "smollm": dict(
        pre_tokenizer=sequence(DIGITS, byte_level()), specials_first=True, eos="<|im_end|>", bos_only="<|im_start|>",
        unk="<|endoftext|>",
        added=[("<|endoftext|>", SPECIAL), ("<|im_start|>", SPECIAL), ("<|im_end|>", SPECIAL), ("<repo_name>", SPECIAL)],
    ),
    "starcoder": dict(
        pre_tokenizer=sequence(DIGITS, byte_level()), specials_first=True, bos_only="<|endoftext|>", eos="<|endoftext|>",
        unk="<|endoftext|>",
        added=[("<|endoftext|>", SPECIAL), ("<fim_prefix>", SPECIAL), ("<fim_middle>", SPECIAL), ("<fim_suffix>", SPECIAL),
               ("<issue>", ORDINARY)],
    ),
    "tekken": dict(
        pre_tokenizer=sequence(split(TEKKEN), byte_level(use_regex=False)), ignore_merges=True, bos="<s>", eos="</s>",
        unk="<unk>", specials_first=True,
        added=[("<unk>", SPECIAL), ("<s>", SPECIAL), ("</s>", SPECIAL), ("[INST]", SPECIAL), ("[/INST]", SPECIAL)],
    ),
    "gpt-4o": dict(
        pre_tokenizer=sequence(split(GPT4O, "Removed", True), byte_level(use_regex=False)),
        post=byte_level(True, False, True), bos_only="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>",
        added=[("<|endoftext|>", SPECIAL), ("<|endofprompt|>", SPECIAL), ("<|end|>", SPECIAL), ("<tool>", ORDINARY)],
    ),
    "dbrx": dict(
        pre_tokenizer=sequence(split(LLAMA3, "Removed", True), byte_level(use_regex=False)),
        post=byte_level(True, False, True), bos_only="<|endoftext|>", eos="<|im_end|>", unk="<|endoftext|>",
        added=[("<|endoftext|>", SPECIAL), ("<|im_start|>", SPECIAL), ("<|im_end|>", SPECIAL), ("<|im_sep|>", SPECIAL),
               ("<dummy>", ORDINARY)],
    ),
    "phi-2": dict(
        pre_tokenizer=byte_level(), post=byte_level(True, False), bos_only="<|endoftext|>", eos="<|endoftext|>",
        unk="<|endoftext|>", architecture="phi",
        # Runs of spaces and tabs are added tokens, longest first.
        added=[("<|endoftext|>", SPECIAL)] + [(" " * n, ORDINARY, {"normalized": True}) for n in range(10, 1, -1)]
        + [("\t" * n, ORDINARY, {"normalized": True}) for n in range(4, 1, -1)],
    ),
    "deepseek-r1-qwen": dict(
        normalizer={"type": "NFC"}, pre_tokenizer=sequence(split(QWEN2), PLAIN), decoder=PLAIN, merge_pairs=True,
        architecture="qwen2", bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>", eos="<\uff5cend\u2581of\u2581sentence\uff5c>",
        pad="<\uff5cend\u2581of\u2581sentence\uff5c>",
        added=[("<\uff5cend\u2581of\u2581sentence\uff5c>", SPECIAL), ("<\uff5cUser\uff5c>", ORDINARY),
               ("<\uff5cAssistant\uff5c>", ORDINARY), ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", SPECIAL),
               ("<think>", ORDINARY), ("</think>", ORDINARY)],
    ),
}

SENTENCEPIECE = {
    # The model of the existing text fixture; symbols of its own are listed in the configuration, as published ones are.
    "llama-spm": dict(
        model=ROOT / "tests/fixtures/text/sentencepiece/bpe/tokenizer.model", architecture="llama", padding=2,
        own={"<mask:1>": ORDINARY, "<sep>": ORDINARY, "<emph>": ORDINARY, "<em": ORDINARY, "<|ctrl|>": SPECIAL},
        extra={"<|turn|>": SPECIAL, "<|end|>": SPECIAL, "<note>": ORDINARY}, before=["<s>"],
    ),
    "gemma-spm": dict(
        train=dict(
            sentencepiece_goldens.KEEP_WHITESPACE, model_type="bpe", vocab_size=620, byte_fallback=True,
            add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
            bos_piece="<bos>", control_symbols=["<start_of_turn>", "<end_of_turn>"],
            user_defined_symbols=["<unused0>", "\n", "\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581",
                                  "\u2581\u2581\u2581\u2581", "<table>"],
        ),
        architecture="gemma2", before=["<bos>"],
        own={"<start_of_turn>": SPECIAL, "<end_of_turn>": SPECIAL, "<unused0>": ORDINARY, "\n": ORDINARY, "\n\n": ORDINARY,
             "\n\n\n": ORDINARY, "\u2581\u2581": ORDINARY, "\u2581\u2581\u2581": ORDINARY, "\u2581\u2581\u2581\u2581": ORDINARY,
             "<table>": ORDINARY},
    ),
    "t5": dict(
        train=dict(
            model_type="unigram", vocab_size=360, byte_fallback=False, remove_extra_whitespaces=True,
            add_dummy_prefix=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>",
        ),
        # A small charsmap: NFKC's would be two thirds of this directory.
        rules={"\u00e9": "e\u0301", "\ufb01": "fi", "\uff11": "1", "\u2126": "\u03a9", "\u00a0": " ", "\u3000": " ", "\u00ad": "",
               "\n": " ", "\t": " ", "e\u0301\u0323": "E", "\u201c": "\"", "\u201d": "\"", "\u2026": "..."},
        # The converter's class for T5 reads added_tokens.json, not the configuration.
        architecture="t5", added_tokens={"<extra_id_0>": 360, "<extra_id_1>": 361}, after=["</s>"],
    ),
}

# BPE over characters that cuts nothing: spaces are U+2581, and characters that are no tokens become bytes.
CHARACTER_LEVEL = {
    "gemma4": dict(
        architecture="gemma4", bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>", merge_pairs=True,
        # The converter takes only those for control tokens that the configuration names.
        named=["<|turn>", "<turn|>"],
        added=[("<pad>", SPECIAL), ("<eos>", SPECIAL), ("<bos>", SPECIAL), ("<unk>", SPECIAL), ("<|turn>", SPECIAL),
               ("<turn|>", SPECIAL), ("<|tool_call>", SPECIAL), ("<|channel>", SPECIAL)],
    ),
}
SPACE = "\u2581"

TINY = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=128)
ARCHITECTURES = {
    "llama": dict(TINY, architectures=["LlamaForCausalLM"], model_type="llama", rms_norm_eps=1e-5),
    "qwen2": dict(TINY, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6),
    "phi": dict(TINY, architectures=["PhiForCausalLM"], model_type="phi", layer_norm_eps=1e-5, partial_rotary_factor=0.5),
    "gemma2": dict(TINY, architectures=["Gemma2ForCausalLM"], model_type="gemma2", head_dim=4, rms_norm_eps=1e-6,
                   attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=16),
    "gemma4": dict(
        TINY, architectures=["Gemma4ForCausalLM"], model_type="gemma4_text", head_dim=4, global_head_dim=8,
        sliding_window=16, layer_types=["full_attention"], num_kv_shared_layers=0, hidden_size_per_layer_input=0,
        rms_norm_eps=1e-6, rope_parameters={
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "t5": dict(architectures=["T5ForConditionalGeneration"], model_type="t5", d_model=8, d_ff=16, d_kv=4, num_heads=2,
               num_layers=1, layer_norm_epsilon=1e-6, relative_attention_num_buckets=32, decoder_start_token_id=0,
               n_positions=128),
}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def learn():
    """Tokens in order of their ids, and merges, of a BPE that split only at spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\S+[\r\n]*|\s+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED, max_token_length=LONGEST, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([*sentences()[:100], *lines()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens + [token for token in UNREACHABLE if token not in model["vocab"]], model["merges"]


def learn_characters(added):
    """Tokens in order of their ids, and merges, of a BPE over characters. Runs of spaces and of newlines are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{SPACE}?[^{SPACE}\n]+|{SPACE}+|\n+"), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=LEARNED, max_token_length=LONGEST, show_progress=False, limit_alphabet=140)
    tokenizer.train_from_iterator([*sentences()[:100], *lines(), "a  b   c\n\nd\n\n\ne    f"] * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    return added + [f"<0x{byte:02X}>" for byte in range(256)] + learned, model["merges"]


def added_token(token_id, text, special, flags=None):
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text} | defaults | (flags or {}) | {"special": special}


def post_processor(spec, ids):
    if "bos" not in spec:
        return spec.get("post")
    bos = {"SpecialToken": {"id": spec["bos"], "type_id": 0}}
    sequences = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    second = {"SpecialToken": {"id": spec["bos"], "type_id": 1}}
    template = {
        "type": "TemplateProcessing", "single": [bos, sequences[0]], "pair": [bos, sequences[0], second, sequences[1]],
        "special_tokens": {spec["bos"]: {"id": spec["bos"], "ids": [ids[spec["bos"]]], "tokens": [spec["bos"]]}},
    }
    if "byte_level_post" in spec:
        return {"type": "Sequence", "processors": [spec["byte_level_post"], template]}
    return template


def tokenizer_json(spec, tokens, merges):
    texts = [text for text, *_ in spec["added"]]
    order = texts + tokens if spec.get("specials_first") else tokens + texts
    ids = {token: i for i, token in enumerate(order)}
    assert len(ids) == len(order)
    inside = spec.get("specials_first") or spec.get("in_vocabulary")
    merges = [list(pair) if spec.get("merge_pairs") else " ".join(pair) for pair in merges]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": sorted((added_token(ids[text], text, *rest) for text, *rest in spec["added"]), key=lambda t: t["id"]),
        "normalizer": spec.get("normalizer"), "pre_tokenizer": spec["pre_tokenizer"],
        "post_processor": post_processor(spec, ids), "decoder": spec.get("decoder", byte_level(True, True, True)),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": spec.get("ignore_merges", False),
            "vocab": {token: i for token, i in ids.items() if inside or token not in texts}, "merges": merges,
        },
    }


def character_level_json(spec):
    texts = [text for text, *_ in spec["added"]]
    tokens, merges = learn_characters(texts)
    data = tokenizer_json(spec | {"pre_tokenizer": None, "specials_first": True}, tokens[len(texts):], merges)
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    # As in published files; the normalizer leaves nothing to split.
    data["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }
    data["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]}
    data["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return data


def byte_level_config(spec, data):
    added = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in data["added_tokens"]}
    config = {
        "added_tokens_decoder": added, "bos_token": spec.get("bos", spec.get("bos_only")), "eos_token": spec["eos"],
        "pad_token": spec.get("pad"), "unk_token": spec.get("unk"), "clean_up_tokenization_spaces": False,
        "model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if "bos" in spec:
        config["add_bos_token"] = True
    if "named" in spec:
        config["additional_special_tokens"] = spec["named"]
    if spec.get("chat_template"):
        config["chat_template"] = TEMPLATE.read_text(encoding="utf-8")
    return config


def texts_with(symbols):
    """The vocabulary's own added tokens in every position that has gone wrong somewhere."""
    first, last = symbols[0], symbols[-1]
    texts = [text for symbol in symbols for text in (symbol, f"a{symbol}b", f" {symbol} ", f"x {symbol}  y")]
    texts += [first + last, first + first, f"{first}\n{last}\n\n", first[:-1], first[1:], f"{first[:-1]}{first}", f"{last}'s 12",
              f"e\u0301{last}\u0301", f"\t{first}\t", f"{first}user\n\nHello world{last}", first.upper(), f"\u4e2d{first}\u6587{last}\U0001f600"]
    return list(dict.fromkeys(texts))


def write_expected(path, head, own_texts, ids):
    lists = ",\n".join(golden_json.compact(row) for row in ids)
    members = [f"{golden_json.compact(key)}: {golden_json.compact(value)}" for key, value in head.items()]
    members += [f"\"texts\": {golden_json.compact(own_texts)}", f"\"ids\": [\n{lists}\n]"]
    path.write_text("{\n" + ",\n".join(members) + "\n}\n", encoding="utf-8", newline="\n")


def byte_level_expected(directory, spec):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    own = texts_with([text for text, *_ in spec["added"]])
    before = [tokenizer.token_to_id(spec["bos"])] if "bos" in spec else []
    rows = []
    for text in SHARED + own:
        row = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=True).ids == before + row
        rows.append(row)
    head = {"source": {"tokenizers": tokenizers.__version__}, "before": before, "after": []}
    write_expected(directory / "expected.json", head, own, rows)


def train_sentencepiece(spec):
    if "model" in spec:
        return spec["model"].read_bytes()
    options = dict(spec["train"])
    with tempfile.TemporaryDirectory() as scratch:
        if "rules" in spec:
            def points(text):
                return " ".join(f"{ord(c):X}" for c in text)

            rules = "".join(f"{points(a)}\t{points(b)}\n" for a, b in spec["rules"].items())
            Path(scratch, "rules.tsv").write_text(rules)
            # Relative, because the model keeps the path.
            options["normalization_rule_tsv"] = "rules.tsv"
        with contextlib.chdir(scratch):
            return sentencepiece_goldens.train(options)


def sentencepiece_config(spec, processor):
    by_piece = processor.piece_to_id
    ids = [i for i in (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()) if i >= 0]
    added = {i: (processor.id_to_piece(i), SPECIAL) for i in ids}
    added |= {by_piece(piece): (piece, special) for piece, special in spec.get("own", {}).items()}
    size = processor.get_piece_size()
    added |= {size + i: (text, special) for i, (text, special) in enumerate(spec.get("extra", {}).items())}
    added |= {i: (text, SPECIAL) for text, i in spec.get("added_tokens", {}).items()}

    def name(i):
        return processor.id_to_piece(i) if i >= 0 else None

    decoder = {
        str(i): {k: v for k, v in added_token(i, text, special).items() if k != "id"}
        for i, (text, special) in sorted(added.items())
    }
    return {
        "add_bos_token": bool(spec.get("before")), "add_eos_token": bool(spec.get("after")),
        "added_tokens_decoder": decoder, "bos_token": name(processor.bos_id()), "eos_token": name(processor.eos_id()),
        "pad_token": name(processor.pad_id()), "unk_token": name(processor.unk_id()), "legacy": True,
        "clean_up_tokenization_spaces": False, "model_max_length": 4096,
        "tokenizer_class": {"llama": "LlamaTokenizer", "gemma2": "GemmaTokenizer", "t5": "T5Tokenizer"}[spec["architecture"]],
    }


def partition(text, symbols):
    """Pieces of text and symbols: at each place the longest symbol wins."""
    pieces, start, i = [], 0, 0
    while i < len(text):
        found = next((s for s in symbols if text.startswith(s, i)), None)
        if found is None:
            i += 1
            continue
        pieces += [(False, text[start:i]), (True, found)]
        i = start = i + len(found)
    return [piece for piece in pieces + [(False, text[start:])] if piece[1]]


def sentencepiece_expected(directory, spec, config):
    """Added tokens are cut out first, and sentencepiece encodes what is between them, each with its prefix."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    symbols = {t["content"]: int(i) for i, t in config["added_tokens_decoder"].items()}
    # In the model these are runs of U+2581, which is what spaces are turned into.
    own = texts_with([symbol for symbol in symbols if "\u2581" not in symbol])
    cut = {s.replace("\u2581", " "): i for s, i in symbols.items()}
    longest_first = sorted(cut, key=len, reverse=True)
    rows = []
    for text in SHARED + own:
        row = []
        for is_symbol, piece in partition(text, longest_first):
            row += [cut[piece]] if is_symbol else processor.encode(piece)
        rows.append(row)
    head = {
        "source": {"sentencepiece": sentencepiece.__version__},
        "before": [symbols[s] for s in spec.get("before", [])], "after": [symbols[s] for s in spec.get("after", [])],
    }
    write_expected(directory / "expected.json", head, own, rows)


def write_gguf(name, directory, architecture, vocab_size, special_ids):
    """llama.cpp's `--vocab-only`, with the pre-tokenizer named: it knows published ones by a hash of their ids."""
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / name
        shutil.copytree(directory, source, ignore=shutil.ignore_patterns("vocab.gguf", "expected.json"))
        write_json(source / "config.json", ARCHITECTURES[architecture] | special_ids | {"vocab_size": vocab_size})
        hparams = ModelBase.load_hparams(source, False)
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        path = directory / "vocab.gguf"
        model = model_class(source, gguf.LlamaFileType.MOSTLY_F16, path, model_name=name)
        model.get_vocab_base_pre = lambda tokenizer: name
        model.write_vocab()


def make_byte_level(name, directory, tokens, merges):
    spec = BYTE_LEVEL[name]
    data = tokenizer_json(spec, tokens, merges)
    write_json(directory / "tokenizer.json", data)
    write_json(directory / "tokenizer_config.json", byte_level_config(spec, data))
    byte_level_expected(directory, spec)
    size = len(tokens) + len(spec["added"]) + spec.get("padding", 0)
    write_gguf(name, directory, spec.get("architecture", "llama"), size, {})


def make_character_level(name, directory):
    spec = CHARACTER_LEVEL[name]
    data = character_level_json(spec)
    write_json(directory / "tokenizer.json", data)
    write_json(directory / "tokenizer_config.json", byte_level_config(spec, data))
    byte_level_expected(directory, spec)
    write_gguf(name, directory, spec["architecture"], len(data["model"]["vocab"]), {})


def make_sentencepiece(name, directory):
    spec = SENTENCEPIECE[name]
    (directory / "tokenizer.model").write_bytes(train_sentencepiece(spec))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    config = sentencepiece_config(spec, processor)
    write_json(directory / "tokenizer_config.json", config)
    if "added_tokens" in spec:
        write_json(directory / "added_tokens.json", spec["added_tokens"])
    sentencepiece_expected(directory, spec, config)
    extra = len(spec.get("extra", {})) + len(spec.get("added_tokens", {})) + spec.get("padding", 0)
    ids = {key: getattr(processor, key)() for key in ("bos_id", "eos_id", "pad_id", "unk_id")}
    # Where there is no tokenizer.json the converter takes them from config.json.
    special_ids = {key.replace("_", "_token_"): i for key, i in ids.items() if i >= 0}
    write_gguf(name, directory, spec["architecture"], processor.get_piece_size() + extra, special_ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp source tree")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.llama_cpp), str(arguments.llama_cpp / "gguf-py")]
    logging.basicConfig(level=logging.ERROR)
    arguments.out.mkdir(parents=True, exist_ok=True)
    texts = ",\n".join(golden_json.compact(text) for text in SHARED)
    (arguments.out / "texts.json").write_text(f"[\n{texts}\n]\n", encoding="utf-8", newline="\n")
    tokens, merges = learn()
    for name in arguments.names or [*BYTE_LEVEL, *CHARACTER_LEVEL, *SENTENCEPIECE]:
        directory = arguments.out / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        if name in BYTE_LEVEL:
            make_byte_level(name, directory, tokens, merges)
        elif name in CHARACTER_LEVEL:
            make_character_level(name, directory)
        else:
            make_sentencepiece(name, directory)
        size = sum(path.stat().st_size for path in directory.iterdir())
        print(f"{name:18} {size:8} bytes", flush=True)


if __name__ == "__main__":
    main()
