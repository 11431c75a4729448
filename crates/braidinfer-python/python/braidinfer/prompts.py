"""Prompts in the forms that people write them, as those that the engine takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


class Conversation:
    """The messages of a chat, and variables for its template."""

    def __init__(self, messages: Sequence[Mapping], variables: Mapping):
        try:
            self._json = json.dumps(list(messages)), json.dumps(dict(variables))
        except TypeError as error:
            raise ValueError(f"messages: expected what JSON can say: {error}") from error

    def __iter__(self):
        """As JSON: the messages, the variables."""
        return iter(self._json)


def is_one(prompts) -> bool:
    """Whether it is one prompt and not several: a text, token ids, or a chat."""
    if isinstance(prompts, (str, Conversation)):
        return True
    prompts = _list(prompts)
    return bool(prompts) and (isinstance(prompts[0], Mapping) or hasattr(prompts[0], "__index__"))


def encoded(prompt):
    """A prompt as the engine takes it."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Conversation):
        return tuple(prompt)
    parts = _list(prompt)
    if parts and isinstance(parts[0], Mapping):
        return tuple(Conversation(parts, {}))
    return [_token_id(part) for part in parts]


def _list(values) -> list:
    """Also of an array or a tensor."""
    if hasattr(values, "tolist"):
        return values.tolist()
    if not isinstance(values, Sequence):
        found = type(values).__name__
        raise ValueError(f"prompt: expected a text, token ids or messages, or a list of these, found {found}")
    return list(values)


def _token_id(value) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value.__index__() < 1 << 32:
        raise ValueError(f"prompt: expected token ids, found {value!r}")
    return value.__index__()
