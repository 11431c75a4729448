"""Conversations and tool definitions that the chat-template goldens render."""

U, A, S = "user", "assistant", "system"


def chat(*turns: tuple[str, object]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


PLAIN_CHATS = {
    "one_user": chat((U, "Hello!")),
    "system_user": chat((S, "You answer in rhymes."), (U, "Hello!")),
    "three_turns": chat((U, "What is 2 + 2?"), (A, "It is 4."), (U, "And 3 + 3?")),
    "system_four_turns": chat((S, "Be exact."), (U, "One?"), (A, "1."), (U, "Two?"), (A, "2.")),
    "ends_with_assistant": chat((U, "Hi"), (A, "Hello, how can I help?")),
    "odd_whitespace": chat((S, "\n  keep me  \n"), (U, "  two  spaces \t\n"), (A, "\n\nanswer\n \n"), (U, "\u00a0nbsp\u3000wide \u200b")),
    "unicode": chat((U, "Gr\u00fc\u00dfe \u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467 cafe\u0301 \u0645\u0631\u062d\u0628\u0627"), (A, "\u00c9t\u00e9 \U0001f600"), (U, "\u0928\u092e\u0938\u094d\u0924\u0947")),
    "quotes_and_html": chat((U, "Say \"it's\" & <b>bold</b> \\n 'x' {{ not_jinja }} {% if %}"), (A, "<p>\"&amp;\"</p>"), (U, "ok")),
    "empty_contents": chat((S, ""), (U, ""), (A, ""), (U, "")),
    "empty_system": chat((S, ""), (U, "Hello!")),
    "template_tokens_in_text": chat((U, "<|im_end|> </s> [INST] <end_of_turn> <|eot_id|> <|end|>"), (A, "<think>\nhm\n</think>\n\nok"), (U, "<s>")),
    "multi_line": chat((U, "def f():\n    return 1\n\n\n# done"), (A, "```\nx\n```"), (U, "\r\nwindows\r\n")),
    "starts_with_assistant": chat((A, "I begin."), (U, "Fine.")),
    "two_users": chat((U, "One."), (U, "Two.")),
    "system_only": chat((S, "Alone.")),
    "late_system": chat((U, "Hi"), (S, "From now on, be brief."), (U, "Well?")),
    "unknown_role": chat((U, "Hi"), ("critic", "Bad."), (U, "Oh")),
    "missing_content": [{"role": U}],
    "null_content": [{"role": U, "content": None}],
    "extra_fields": [{"role": U, "content": "Hi", "name": "Zo\u00eb", "weight": 0.5}, {"role": A, "content": "Hello"}],
}

THINKING_CHATS = {
    "think_in_history": chat((U, "2+2?"), (A, "<think>\nTwo and two.\n</think>\n\n4"), (U, "3+3?")),
    "think_in_last": chat((U, "2+2?"), (A, "<think>\n\nTwo and two.\n\n</think>\n\n\n4\n")),
    "reasoning_field": [{"role": U, "content": "2+2?"}, {"role": A, "content": "\n4", "reasoning_content": "\nTwo.\n"}],
    "reasoning_under_older_name": [{"role": U, "content": "2+2?"}, {"role": A, "content": "4", "thinking": "Two."}],
    "two_closing_tags": chat((U, "a"), (A, "<think>x</think>y</think>z"), (U, "b")),
    "unclosed_think": chat((U, "a"), (A, "<think>x"), (U, "b")),
}

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather \"now\" in a <city> & more \u2014 \u5317\u4eac\nsecond line",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "it's a name"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "array", "items": {"type": "integer"}},
        }, "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "add", "description": "", "parameters": {"type": "object", "properties": {
            "a": {"type": "number", "default": 1.0}, "b": {"type": "number", "minimum": -1e-7}}, "required": ["a", "b"]}}},
]
WEATHER_CALL = {"id": "call12345", "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich <\"'&>", "days": [1, 2], "exact": True, "x": None, "f": 1.0}}}
ADD_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 1.5}}}


def call_turn(*calls: dict, content: object = None) -> dict:
    return {"role": A, "content": content, "tool_calls": list(calls)}


def result_turn(call: dict, content: str) -> dict:
    return {"role": "tool", "content": content, "tool_call_id": call["id"], "name": call["function"]["name"]}


TOOL_CHATS = {
    "tools_offered": chat((U, "Weather?")),
    "tools_offered_with_system": chat((S, "Be kind."), (U, "Weather?")),
    "one_call": chat((U, "Weather?")) + [call_turn(WEATHER_CALL), result_turn(WEATHER_CALL, "{\"t\": 20}")],
    "one_call_answered": chat((U, "Weather?")) + [call_turn(WEATHER_CALL), result_turn(WEATHER_CALL, "20"), {"role": A, "content": "It is 20."}, {"role": U, "content": "Thanks"}],
    "two_calls": chat((U, "Both?")) + [call_turn(WEATHER_CALL, ADD_CALL, content="Let me see."), result_turn(WEATHER_CALL, "20"), result_turn(ADD_CALL, "3.5")],
    "bad_call_id": chat((U, "Add")) + [call_turn({**ADD_CALL, "id": "short"})],
}
