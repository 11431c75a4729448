"""Trains a tiny byte-level BPE tokenizer in the Hugging Face layout and records what transformers does with it."""

import json
from pathlib import Path

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

import golden_json
from probe_texts import TEXTS
from training_corpus import sentences
from transformers_cases import chat_cases, text_case

DIRECTORY = golden_json.FIXTURES / "tokenizers" / "bytelevel"
TEMPLATE = Path(__file__).resolve().parent / "templates" / "bos-chatml.jinja"
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
# Splits as current byte-level models do: contractions, words with one leading sign, up to three digits,
# signs, line ends, and runs of spaces that leave the last one to the next word.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = [AddedToken(text, special=True, normalized=False) for text in (BOS, EOS, PAD, "<|im_start|>", "<|im_end|>")]
# One token that swallows the spaces around it, one that matches whole words only, and one that is not special.
OTHERS = [AddedToken("<mask:1>", lstrip=True, rstrip=True, special=True, normalized=False),
          AddedToken("<emph>", single_word=True, special=True, normalized=False),
          AddedToken("<sep>", special=False, normalized=False)]
EXTRA_TEXTS = [f"{BOS}hello{EOS}", f"{BOS}{BOS}", f" {EOS} ", "a  <mask:1>\n b", "x<emph>y", "x <emph> y", "<sep> a", "a<sep>",
               "<|im_start|>user\nhi<|im_end|>\n", "<|im_start", "<|im_start|> system"]


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=620, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False)
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(OTHERS)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1",
                                      special_tokens=[(BOS, tokenizer.token_to_id(BOS))]),
    ])
    return tokenizer


def config(tokenizer: Tokenizer) -> dict:
    added = {str(token_id): {"content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                             "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special}
             for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())}
    return {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added,
        "bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": None,
        "clean_up_tokenization_spaces": False, "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE.read_text(encoding="utf-8"),
    }


def write_directory() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(DIRECTORY / "tokenizer.json"))
    text = json.dumps(config(tokenizer), indent=2, ensure_ascii=False)
    (DIRECTORY / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    (DIRECTORY / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def write_goldens() -> None:
    # Read back what was written, so that the goldens describe the files and not the objects in memory.
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    head = {"source": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
            "bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}
    golden_json.write_goldens(DIRECTORY / "goldens.json", head,
                              cases=[text_case(tokenizer, text) for text in TEXTS + EXTRA_TEXTS],
                              chat=chat_cases(tokenizer))


if __name__ == "__main__":
    write_directory()
    write_goldens()
