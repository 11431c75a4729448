"""Writes tokenizer directories that have only a SentencePiece model, and records what transformers does with them."""

import json
import shutil
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from transformers import LlamaTokenizer

import golden_json
from probe_texts import EMPTY_AND_WHITESPACE, SYMBOLS, TEXTS
from sentencepiece_goldens import decode_sequences
from transformers_cases import CHAT_NAMES, chat_cases, text_case

MODEL = golden_json.FIXTURES / "sentencepiece" / "bpe" / "tokenizer.model"
TEMPLATE = Path(__file__).resolve().parent / "templates" / "llama-turns.jinja"
# Tokens beyond the SentencePiece vocabulary; "<|note|>" is added but not special.
EXTRA = ["<|turn|>", "<|reply|>", "<|end|>", "<|note|>"]
REMOVED = object()
# The full probe list goes through the first; the others show one setting that changes the ids.
VARIANTS = {
    "sentencepiece-only": {},
    # Without this list transformers takes the control and user-defined symbols of the model as added tokens.
    "sentencepiece-only-undeclared": {"additional_special_tokens": REMOVED},
    # The prefix space comes back after every special token.
    "sentencepiece-only-legacy": {"legacy": True},
}
EXTRA_TEXTS = [
    "<|turn|>", "<|turn|>hello", "<|turn|> hello", "<|turn|>  hello", "hello<|turn|>", "hello <|turn|>", "hello  <|turn|> world",
    "hello<|turn|>world", "<|turn|><|reply|>", "<|turn|> <|reply|>", "<|turn|>\n<|reply|>", " <|turn|>", "<|turn|>user\nhi<|end|>\n<|reply|>",
    "<|note|>", "a<|note|>b", "a <|note|> b", "<|turn", "<|turn|", "<|TURN|>", "<|turn|>\u2581hello", "<s>hello", "<s> hello",
    "hello</s>world", "hello</s> world", "<s><s>", "<unk>hello", "hello<unk>", "<|end|>\u4e2d\u6587", "\u4e2d\u6587<|end|>\U0001f600",
    "<|turn|>\t<|end|>", "<|turn|>\x00", "<sep>hello", "<sep> hello", "hello<mask:1><|turn|>the", "<|ctrl|>the", "<|ctrl|> the",
]


def special(content: str, is_special: bool = True) -> dict:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": is_special}


def config(vocab_size: int) -> dict:
    added = {str(i): special(piece) for i, piece in enumerate(["<unk>", "<s>", "</s>"])}
    added |= {str(vocab_size + i): special(text, text != "<|note|>") for i, text in enumerate(EXTRA)}
    return {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added,
        "bos_token": token_dict("<s>"), "eos_token": token_dict("</s>"), "unk_token": token_dict("<unk>"), "pad_token": None,
        "additional_special_tokens": EXTRA[:3], "clean_up_tokenization_spaces": False, "legacy": False,
        "model_max_length": 4096, "sp_model_kwargs": {}, "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer", "use_default_system_prompt": False,
        "chat_template": TEMPLATE.read_text(encoding="utf-8"),
    }


def token_dict(text: str) -> dict:
    fields = {key: value for key, value in special(text).items() if key != "special"}
    return {"__type": "AddedToken"} | fields


def write_directory(directory: Path, processor, changes: dict) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(MODEL, directory / "tokenizer.model")
    settings = config(processor.get_piece_size()) | changes
    kept = {key: value for key, value in settings.items() if value is not REMOVED}
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def compared_case(tokenizer, processor, text: str) -> dict:
    """Adds sentencepiece's own ids where they differ, so that a reader can choose which of the two to follow."""
    case = text_case(tokenizer, text)
    own_ids = processor.encode(text)
    if own_ids != case["ids_without_special"]:
        case |= {"differs_from_sentencepiece": True, "sentencepiece_ids": own_ids}
    return case


def decode_case(tokenizer, processor, ids: list[int]) -> dict:
    case = {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)}
    own_text = processor.decode(ids)
    if own_text != case["decoded"]:
        case |= {"differs_from_sentencepiece": True, "sentencepiece_decoded": own_text}
    return case


def write_goldens(directory: Path, processor, texts: list[str], sequences: list, chat_names: list[str]) -> None:
    tokenizer = LlamaTokenizer.from_pretrained(directory)
    head = {"source": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                       "sentencepiece": sentencepiece.__version__},
            "bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    golden_json.write_goldens(
        directory / "goldens.json", head,
        cases=[compared_case(tokenizer, processor, text) for text in texts],
        decode_cases=[decode_case(tokenizer, processor, ids) for ids in sequences],
        chat=chat_cases(tokenizer, chat_names),
    )


def main() -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    short_texts = EMPTY_AND_WHITESPACE + SYMBOLS + EXTRA_TEXTS
    for name, changes in VARIANTS.items():
        directory = golden_json.FIXTURES / "tokenizers" / name
        write_directory(directory, processor, changes)
        if changes:
            write_goldens(directory, processor, short_texts, [], ["three_turns", "odd_whitespace"])
        else:
            write_goldens(directory, processor, TEXTS + EXTRA_TEXTS, decode_sequences(processor), CHAT_NAMES)


if __name__ == "__main__":
    main()
