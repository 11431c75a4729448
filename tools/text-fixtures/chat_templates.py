"""Renders chat templates with transformers and records the exact output, or the error it raises."""

from datetime import datetime
from pathlib import Path

import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import golden_json
from chat_messages import PLAIN_CHATS, THINKING_CHATS, TOOL_CHATS, TOOLS
from jinja_features import FEATURES

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Templates may ask for the date; every golden is rendered at this moment (a Friday, with one-digit fields).
FROZEN_NOW = datetime(2025, 3, 7, 9, 5, 3)

STYLES = {
    "chatml": dict(bos=None, eos="<|im_end|>", extra=["<|im_start|>", "<|endoftext|>"]),
    "chatml-blocks": dict(bos=None, eos="<|im_end|>", extra=["<|im_start|>"]),
    "llama2": dict(bos="<s>", eos="</s>", extra=[], kwargs={"default_prompt": {"use_default_prompt": True}}),
    "llama3": dict(bos="<|begin_of_text|>", eos="<|eot_id|>", extra=["<|start_header_id|>", "<|end_header_id|>"],
                   tools=True, kwargs={"date_given": {"date_string": "01 Jan 2030"}, "custom_tools": {"custom_tools": TOOLS[1:]}}),
    "mistral": dict(bos="<s>", eos="</s>", extra=["[INST]", "[/INST]", "[TOOL_CALLS]"], tools=True),
    "gemma": dict(bos="<bos>", eos="<eos>", extra=["<start_of_turn>", "<end_of_turn>"]),
    "phi3": dict(bos="<s>", eos="<|endoftext|>", extra=["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "qwen3": dict(bos=None, eos="<|im_end|>", extra=["<|im_start|>", "<think>", "</think>"], tools=True, thinking=True,
                  kwargs={"thinking_off": {"enable_thinking": False}, "thinking_on": {"enable_thinking": True}}),
    "ernie": dict(bos="<s>", eos="</s>", extra=["<|end_of_sentence|>"], named={"cls_token": "<|begin_of_sentence|>"},
                  kwargs={"sep_given": {"sep_token": "<sep>"}}),
    "granite": dict(bos="<|end_of_text|>", eos="<|end_of_text|>", extra=["<|start_of_role|>", "<|end_of_role|>"], tools=True,
                    kwargs={"documents": {"documents": [{"title": "A", "text": "First \u00e9."}, {"title": "B", "text": "Second <b>."}]},
                            "thinking": {"thinking": True},
                            "controls": {"controls": {"citations": True, "length": "short \u00e9"},
                                         "documents": [{"title": "A", "text": "First."}]}}),
    "deepseek": dict(bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>", eos="<\uff5cend\u2581of\u2581sentence\uff5c>",
                     extra=[], tools=True, thinking=True),
    "functionary": dict(bos="<s>", eos="</s>", extra=[], tools=True, thinking=True),
}
GEMMA_PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]}]


class FrozenClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return FROZEN_NOW


def make_tokenizer(template: str, style: dict) -> PreTrainedTokenizerFast:
    """A tokenizer that only has to carry a template and special tokens; it never encodes anything."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=style["bos"], eos_token=style["eos"], unk_token="<unk>",
        extra_special_tokens=style["extra"], chat_template=template, **style.get("named", {}),
    )


def render(tokenizer, messages: list[dict], add_generation_prompt: bool, kwargs: dict) -> dict:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs)
    except (jinja2.exceptions.TemplateError, TypeError, AttributeError, ValueError, KeyError, IndexError) as error:
        return {"expected": None, "error": str(error), "error_type": type(error).__name__}
    return {"expected": text, "error": None, "error_type": None}


def make_case(tokenizer, name: str, messages: list[dict], add_generation_prompt: bool, kwargs: dict) -> dict:
    head = {"name": name, "messages": messages, "add_generation_prompt": add_generation_prompt, "kwargs": kwargs}
    return head | render(tokenizer, messages, add_generation_prompt, kwargs)


def style_chats(name: str, style: dict) -> list[tuple[str, list[dict], dict]]:
    chats = [(key, messages, {}) for key, messages in PLAIN_CHATS.items()]
    if style.get("thinking"):
        chats += [(key, messages, {}) for key, messages in THINKING_CHATS.items()]
    if style.get("tools"):
        chats += [(key, messages, {"tools": TOOLS}) for key, messages in TOOL_CHATS.items()]
        chats += [("calls_without_tools", TOOL_CHATS["two_calls"], {})]
    for key, kwargs in style.get("kwargs", {}).items():
        chats += [(f"{key}/{base}", PLAIN_CHATS[base], kwargs) for base in ("one_user", "system_four_turns")]
    if name == "gemma":
        chats.append(("content_parts", GEMMA_PARTS, {}))
    return chats


def write_style(name: str, style: dict) -> None:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer(template, style)
    cases = [make_case(tokenizer, key + ("+prompt" if prompt else ""), messages, prompt, kwargs)
             for key, messages, kwargs in style_chats(name, style) for prompt in (False, True)]
    head = {
        "style": name, "source": source(), "frozen_now": frozen_now() if "strftime_now" in template else None,
        "template": template, "bos_token": style["bos"], "eos_token": style["eos"], "extra_special": style["extra"],
        "special_tokens_map": tokenizer.special_tokens_map,
    }
    golden_json.write_goldens(golden_json.FIXTURES / "chat_templates" / f"{name}.json", head, cases=cases)


def write_features() -> None:
    messages = PLAIN_CHATS["three_turns"]
    cases = []
    for name, template, variables in FEATURES:
        tokenizer = make_tokenizer(template, STYLES["llama2"])
        result = render(tokenizer, messages, False, variables)
        cases.append({"name": name, "template": template, "kwargs": variables} | result)
    head = {"source": source(), "frozen_now": frozen_now(), "messages": messages,
            "bos_token": "<s>", "eos_token": "</s>"}
    golden_json.write_goldens(golden_json.FIXTURES / "jinja_features.json", head, cases=cases)


def source() -> dict:
    return {"transformers": transformers.__version__, "jinja2": jinja2.__version__}


def frozen_now() -> str:
    return FROZEN_NOW.isoformat()


if __name__ == "__main__":
    # strftime_now looks the class up in its module at each call, so replacing it there stops the clock.
    chat_template_utils.datetime = FrozenClock
    for style_name, style_options in STYLES.items():
        write_style(style_name, style_options)
    write_features()
