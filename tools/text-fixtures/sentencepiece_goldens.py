"""Trains tiny SentencePiece models and records what the sentencepiece package does with the probe texts."""

import io

import sentencepiece

import golden_json
from probe_texts import TEXTS
from training_corpus import sentences

# Newlines and indentation must reach the trainer, as they do in models that keep whitespace.
KEEP_WHITESPACE = dict(
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
)

MODELS = {
    "bpe": dict(
        KEEP_WHITESPACE, model_type="bpe", vocab_size=560, byte_fallback=True, add_dummy_prefix=True,
        # "<em" is a prefix of "<emph>": the longest symbol wins.
        user_defined_symbols=["<mask:1>", "<sep>", "<emph>", "<em"], control_symbols=["<|ctrl|>"],
    ),
    "bpe-gemma": dict(
        KEEP_WHITESPACE, model_type="bpe", vocab_size=560, byte_fallback=True, add_dummy_prefix=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        # Published models store runs of spaces as U+2581; the run of five, given with real spaces, never matches.
        user_defined_symbols=["\n", "\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "\u2581\u2581\u2581\u2581",
                              "     ", "\t", "<sep>", "<mask:1>"],
    ),
    "unigram": dict(
        model_type="unigram", vocab_size=560, byte_fallback=True, normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True, add_dummy_prefix=True, user_defined_symbols=["<mask:1>", "<sep>"],
        control_symbols=["<|ctrl|>"],
    ),
    "unigram-identity": dict(
        model_type="unigram", vocab_size=370, byte_fallback=False, normalization_rule_name="identity",
        remove_extra_whitespaces=True, add_dummy_prefix=True, treat_whitespace_as_suffix=False,
        control_symbols=["<|ctrl|>"], user_defined_symbols=["<sep>"],
    ),
    "bpe-suffix": dict(
        KEEP_WHITESPACE, model_type="bpe", vocab_size=560, byte_fallback=True, add_dummy_prefix=True,
        treat_whitespace_as_suffix=True, user_defined_symbols=["<mask:1>", "<sep>"], control_symbols=["<|ctrl|>"],
    ),
}


def train(options: dict) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, character_coverage=0.99, num_threads=1,
        minloglevel=2, **options,
    )
    return model.getvalue()


def encode_case(processor, text: str) -> dict:
    ids = processor.encode(text)
    return {
        "text": text,
        "ids": ids,
        "pieces": processor.encode(text, out_type=str),
        "normalized": processor.normalize(text),
        "decoded": processor.decode(ids),
    }


def decode_sequences(processor) -> list[list[int]]:
    """Id lists no text encodes to: broken byte runs, control ids, unknowns, pieces out of order."""
    by_piece = processor.piece_to_id
    controls = [i for i in range(processor.get_piece_size()) if processor.is_control(i)]
    unknown = processor.unk_id()
    word = next(i for i in map(by_piece, ("\u2581the", "the\u2581")) if i != unknown)
    sequences = [[], controls, [unknown], [word, unknown, word], [unknown, unknown], [word], [word, word],
                 controls + [word] + controls, [controls[0], word, controls[-1], word]]
    for symbol in ("<sep>", "<mask:1>", "\u2581", "\u2581\u2581", "\n"):
        if not processor.is_unknown(by_piece(symbol)):
            sequences += [[by_piece(symbol)], [by_piece(symbol), word], [word, by_piece(symbol), word]]
    if processor.is_byte(by_piece("<0x41>")):
        runs = ["41", "e4b8ad", "e4b8", "e4", "b8ad", "ff", "fffe", "c0af", "eda080", "f09f9880", "f09f98", "f09f",
                "f4908080", "00", "20", "2041", "0a", "e296 81".replace(" ", ""), "41e4b8ad41", "e4b8ade4b8", "e441",
                "80e4b8ad80", "efbfbd", "f09f41"]
        byte_runs = [[by_piece(f"<0x{byte:02X}>") for byte in bytes.fromhex(run)] for run in runs]
        sequences += byte_runs + [[word] + run + [word] for run in byte_runs]
        # A control id between the bytes of one character.
        sequences.append([byte_runs[1][0], controls[0], *byte_runs[1][1:]])
    return sequences


def decode_case(processor, ids: list[int]) -> dict:
    return {"ids": ids, "decoded": processor.decode(ids)}


def write_model(name: str, options: dict) -> None:
    model = train(options)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    directory = golden_json.FIXTURES / "sentencepiece" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model)
    head = {
        "source": {"sentencepiece": sentencepiece.__version__},
        "options": options,
        "vocab_size": processor.get_piece_size(),
        "unk_id": processor.unk_id(), "bos_id": processor.bos_id(),
        "eos_id": processor.eos_id(), "pad_id": processor.pad_id(),
    }
    golden_json.write_goldens(
        directory / "goldens.json", head,
        cases=[encode_case(processor, text) for text in TEXTS],
        decode_cases=[decode_case(processor, ids) for ids in decode_sequences(processor)],
    )


if __name__ == "__main__":
    for model_name, model_options in MODELS.items():
        write_model(model_name, model_options)
