"""A tokenizer for models of random weights: word "w7" is token 7.

Engines that take only text get prompts of an exact length this way, whatever the vocabulary.
"""

import json


def write(folder, vocabulary):
    """tokenizer.json and tokenizer_config.json in `folder`."""
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        # Some engines insist on one that goes by bytes; these words are their own bytes.
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "WordLevel",
            "vocab": {f"w{token}": token for token in range(vocabulary)},
            "unk_token": "w0",
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "w1",
        "eos_token": "w2",
        "unk_token": "w0",
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def text(tokens):
    """What this tokenizer reads as these tokens."""
    return " ".join(f"w{token}" for token in tokens)
