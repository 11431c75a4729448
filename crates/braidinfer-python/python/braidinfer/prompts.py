"""Prompts in the forms that people write them, as those that the engine takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Union

Chat = Sequence[Mapping[str, Any]]
"""The messages of a chat."""

Prompt = Union[str, Sequence[int], Chat, "Conversation"]
"""A text, token ids, or the messages of a chat. Arrays and tensors of token ids are taken, too."""

# The template gets these from the call.
_OWN_VARIABLES = ("messages", "add_generation_prompt")


class Conversation:
    """The messages of a chat, and variables for its template."""

    def __init__(self, messages: Sequence[Mapping], variables: Mapping):
        for name in _OWN_VARIABLES:
            if name in variables:
                raise ValueError(f"chat_template_kwargs: expected variables that the call does not set, found `{name}`")
        try:
            self._json = json.dumps(list(messages)), json.dumps(dict(variables))
        except TypeError as error:
            raise ValueError(f"messages: expected what JSON can say: {error}") from error

    def as_json(self) -> tuple[str, str]:
        """The messages, and the variables."""
        return self._json


def is_one(prompts) -> bool:
    """Whether it is one prompt and not several: a text, token ids, or a chat."""
    if isinstance(prompts, (str, Conversation)):
        return True
    prompts = _list(prompts)
    return bool(prompts) and (isinstance(prompts[0], Mapping) or hasattr(prompts[0], "__index__"))


def encoded(prompt):
    """A prompt as the engine takes it."""
    if isinstance(prompt, str):
        return unicode(prompt, "prompt")
    if isinstance(prompt, Conversation):
        return prompt.as_json()
    parts = _list(prompt)
    if parts and isinstance(parts[0], Mapping):
        return Conversation(parts, {}).as_json()
    return [token_id(part) for part in parts]


def unicode(text: str, name: str) -> str:
    """The text, if it is one: Python has strings with halves of characters, which are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: expected text, found half of a character at {error.start}: {error.object[error.start]!r}"
        ) from None
    return text


def token_id(value) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value.__index__() < 1 << 32:
        raise ValueError(f"prompt: expected token ids, found {value!r}")
    return value.__index__()


def _list(values) -> list:
    """Also of an array or a tensor."""
    if hasattr(values, "tolist") and not isinstance(values, memoryview):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray, memoryview)):
        found = type(values).__name__
        raise ValueError(f"prompt: expected a text, token ids or messages, or a list of these, found {found}")
    return list(values)
