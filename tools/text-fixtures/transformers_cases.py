"""What transformers answers for one text or one chat, in the form the golden files store."""

from chat_messages import PLAIN_CHATS

# Chats every tokenizer fixture renders and encodes; the texts hold markup, odd whitespace and special tokens.
CHAT_NAMES = ["one_user", "system_user", "three_turns", "system_four_turns", "ends_with_assistant", "odd_whitespace",
              "unicode", "quotes_and_html", "empty_contents", "template_tokens_in_text", "multi_line"]


def text_case(tokenizer, text: str) -> dict:
    ids = tokenizer.encode(text, add_special_tokens=True)
    bare = tokenizer.encode(text, add_special_tokens=False)
    return {
        "text": text,
        "ids": ids,
        "ids_without_special": bare,
        "pieces": tokenizer.convert_ids_to_tokens(bare),
        "decoded": tokenizer.decode(ids, skip_special_tokens=True),
        "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False),
    }


def chat_case(tokenizer, name: str, add_generation_prompt: bool) -> dict:
    messages = PLAIN_CHATS[name]
    options = dict(add_generation_prompt=add_generation_prompt)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    head_ids = [i for i in ids[:2] if i == tokenizer.bos_token_id]
    assert len(head_ids) == 1, "a rendered chat must start with exactly one BOS"
    return {"name": name, "messages": messages, "add_generation_prompt": add_generation_prompt,
            "rendered": rendered, "ids": ids}


def chat_cases(tokenizer, names: list[str] = CHAT_NAMES) -> list[dict]:
    return [chat_case(tokenizer, name, prompt) for name in names for prompt in (False, True)]
