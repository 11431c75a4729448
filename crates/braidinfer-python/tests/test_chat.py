"""Chats, through the model's template."""

import pytest

from conftest import FIXTURES

from braidinfer import LLM, ModelError

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def test_a_chat_is_rendered_by_the_template(chat_model):
    assert chat_model.apply_chat_template(HELLO) == "user: Hello\nassistant:"
    variables = {"polite": True}
    rendered = chat_model.apply_chat_template(HELLO, tools=TOOLS, chat_template_kwargs=variables)
    assert rendered == "user: Hello\ntool look\nplease\nassistant:"
    result = chat_model.chat(HELLO, max_tokens=5, tools=TOOLS, chat_template_kwargs=variables)
    assert result.prompt == rendered and len(result.token_ids) == 5


def test_several_chats_and_streams_are_answered_alike(chat_model):
    others = [{"role": "system", "content": "Be kind"}, *HELLO]
    results = chat_model.chat([HELLO, others], max_tokens=6, temperature=0)
    assert [result.prompt for result in results] == [chat_model.apply_chat_template(chat) for chat in (HELLO, others)]
    streamed = [token.token_id for token in chat_model.stream_chat(others, max_tokens=6, temperature=0)]
    assert streamed == results[1].token_ids
    # Messages are a prompt like others.
    mixed = chat_model.generate([HELLO, "Hello"], max_tokens=6, temperature=0)
    assert mixed[0].token_ids == results[0].token_ids and mixed[1].prompt == "Hello"


def test_a_model_without_a_template_says_so(cache):
    with pytest.raises(ModelError, match="no chat template"):
        LLM(FIXTURES / "models" / "llama", kernels="standard").chat(HELLO)


def test_messages_are_dictionaries(chat_model):
    with pytest.raises(ValueError, match="messages"):
        chat_model.chat([{"role": "user", "content": object()}])
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        chat_model.chat(HELLO, chat_template_kwargs={"messages": []})
