"""Drives a running server with the official OpenAI client and checks what its users rely on.

    python drive.py http://127.0.0.1:8181 [--key KEY] [--with embeddings,schema,tools] [--only WORD]

Prints a line for each check; exits with 1 if one failed.
"""

import argparse
import asyncio
import base64
import json
import math
import re
import struct
import sys
import time
import traceback
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import jsonschema
import openai
from pydantic import BaseModel

STORY = "Once upon a time"
TOO_LONG = "word " * 300_000
CHAT = [{"role": "user", "content": "Tell me a story about a fox."}]
# In one request; the OpenAI API takes 2048.
MANY_TEXTS = 300
UNKNOWN_KEY = "no-key-of-any-server"
EXTRA_GROUPS = ("embeddings", "schema", "tools")
CHECKS = []


@dataclass
class Check:
    name: str
    run: object
    group: str
    needs_key: bool


def check(name, group="base", needs_key=False):
    def register(run):
        CHECKS.append(Check(name, run, group, needs_key))
        return run

    return register


def require(condition, message):
    if not condition:
        raise AssertionError(message)


def require_equal(found, expected, what):
    require(found == expected, f"{what}: expected {expected!r}, found {found!r}")


def wait_until(is_so, seconds, otherwise):
    """Looks until it is so. The only sleep here: whatever else is waited for is waited for with this."""
    deadline = time.monotonic() + seconds
    while not is_so():
        require(time.monotonic() < deadline, f"{otherwise} after {seconds} s")
        time.sleep(0.02)


class Server:
    """The server under test, as the client sees it, and what the OpenAI API has no word for."""

    def __init__(self, address, key):
        self.address = address.rstrip("/")
        self.key = key
        # A retry would hide the first answer.
        self.settings = {"base_url": f"{self.address}/v1", "api_key": key or "unused", "max_retries": 0, "timeout": 600}
        self.client = openai.OpenAI(**self.settings)
        self.model = self.client.models.list().data[0].id

    def chat(self, **fields):
        fields = {"model": self.model, "messages": CHAT, "temperature": 0, "max_tokens": 40, **fields}
        return self.client.chat.completions.create(**fields)

    def completion(self, **fields):
        fields = {"model": self.model, "prompt": STORY, "temperature": 0, "max_tokens": 20, **fields}
        return self.client.completions.create(**fields)

    def embeddings(self, texts, **fields):
        return self.client.embeddings.create(model=self.model, input=texts, **fields)

    def metric(self, name):
        """The sum over all labels."""
        text = self.fetch("/metrics")
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        require(values, f"/metrics has no {name}")
        return sum(map(float, values))

    def aborted(self):
        found = re.search(r'_requests_total{.*finish_reason="abort".*} (\d+)', self.fetch("/metrics"))
        require(found, "/metrics counts no aborted answers")
        return int(found[1])

    def token_ids(self, text):
        return json.loads(self.fetch("/tokenize", {"prompt": text}))["tokens"]

    def fetch(self, path, body=None):
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers), timeout=60) as reply:
            return reply.read().decode()

    def running(self):
        return self.metric("vllm:num_requests_running")

    def wait_until_idle(self, seconds):
        wait_until(lambda: self.running() + self.metric("vllm:num_requests_waiting") == 0, seconds, "requests still run")


@dataclass
class Streamed:
    """One choice of a chat, put together from its parts."""

    content: str = ""
    role: str | None = None
    finish_reasons: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    tool_calls: dict = field(default_factory=dict)

    def add(self, choice):
        self.content += choice.delta.content or ""
        self.role = self.role or choice.delta.role
        if choice.finish_reason:
            self.finish_reasons.append(choice.finish_reason)
        if choice.logprobs:
            self.tokens += choice.logprobs.content or []
        for call in choice.delta.tool_calls or []:
            self.add_tool_call(call)

    def add_tool_call(self, part):
        call = self.tool_calls.setdefault(part.index, {"id": None, "name": None, "arguments": ""})
        call["id"] = call["id"] or part.id
        call["name"] = call["name"] or part.function.name
        call["arguments"] += part.function.arguments or ""


def put_together(chunks):
    choices = {}
    for chunk in chunks:
        for choice in chunk.choices:
            choices.setdefault(choice.index, Streamed()).add(choice)
    return [choices[index] for index in sorted(choices)]


def contents(answer):
    return [choice.message.content for choice in answer.choices]


def require_same(streamed, whole):
    require_equal(len(streamed), len(whole.choices), "choices of the stream")
    for found, expected in zip(streamed, whole.choices):
        require_equal(found.content, expected.message.content, "streamed text")
        require_equal(found.finish_reasons, [expected.finish_reason], "finish reasons")
        require_equal(found.role, "assistant", "role")


# Chats.


@check("chat: a whole answer")
def whole_chat(server):
    answer = server.chat()
    choice = answer.choices[0]
    require_equal((answer.object, answer.model, len(answer.choices)), ("chat.completion", server.model, 1), "envelope")
    require(answer.id and abs(answer.created - time.time()) < 600, f"id {answer.id}, created {answer.created}")
    require_equal((choice.index, choice.message.role, choice.logprobs), (0, "assistant", None), "choice")
    require(choice.message.content, "no text")
    require(choice.finish_reason in ("stop", "length"), f"finish reason {choice.finish_reason}")
    require(not choice.message.tool_calls, "tool calls that nobody asked for")
    require(answer._request_id, "no x-request-id")


@check("chat: usage adds up")
def chat_usage(server):
    answer = server.chat(max_tokens=7, extra_body={"ignore_eos": True})
    usage = answer.usage
    require_equal(usage.completion_tokens, 7, "tokens written")
    require(usage.prompt_tokens > 0, "no tokens read")
    require_equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total")


@check("chat: streams equal whole answers")
def chat_stream(server):
    for fields in ({"temperature": 0, "seed": 3}, {"temperature": 1, "seed": 3}, {"temperature": 1, "seed": 4, "n": 3}):
        whole = server.chat(**fields)
        chunks = list(server.chat(stream=True, **fields))
        require_same(put_together(chunks), whole)
        envelopes = {(chunk.object, chunk.model, chunk.id) for chunk in chunks}
        require_equal(envelopes, {("chat.completion.chunk", server.model, chunks[0].id)}, "chunks")
        require(all(chunk.usage is None for chunk in chunks), "usage that nobody asked for")


@check("chat: usage at the end of a stream")
def chat_stream_usage(server):
    whole = server.chat(n=2)
    *chunks, last = server.chat(n=2, stream=True, stream_options={"include_usage": True})
    require_equal(last.choices, [], "choices beside the usage")
    require_same_usage(last.usage, whole.usage)
    require(all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks), "usage before the end")


def require_same_usage(found, expected):
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        require_equal(getattr(found, name), getattr(expected, name), name)


@check("chat: lines of a stream")
def chat_stream_lines(server):
    raw = server.client.chat.completions.with_streaming_response
    with raw.create(model=server.model, messages=CHAT, max_tokens=20, stream=True) as reply:
        require(reply.headers["content-type"].startswith("text/event-stream"), f"headers {reply.headers}")
        *parts, last = [line for line in reply.iter_lines() if line and not line.startswith(":")]
    require_equal(last, "data: [DONE]", "last line")
    for line in parts:
        require(line.startswith("data: "), f"line {line!r}")
        require_equal(json.loads(line.removeprefix("data: "))["object"], "chat.completion.chunk", "object")


@check("chat: the stream manager of the client")
def chat_stream_manager(server):
    fields = {"model": server.model, "messages": CHAT, "temperature": 0, "max_tokens": 40}
    with server.client.chat.completions.stream(**fields) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "content.delta")
    require_equal([deltas], contents(server.chat()), "text of the events")


@check("chat: several answers")
def chat_several(server):
    greedy = server.chat(n=2)
    require_equal([choice.index for choice in greedy.choices], [0, 1], "indices")
    require_equal(*contents(greedy), "answers at temperature 0")
    first, second = contents(server.chat(n=2, temperature=1, seed=1))
    require(first != second, f"two answers at temperature 1 are the same: {first!r}")


@check("chat: seeds repeat answers")
def chat_seeds(server):
    def ask(seed):
        return contents(server.chat(temperature=1, seed=seed))

    require_equal(ask(11), ask(11), "answer with the same seed")
    require(len({ask(seed)[0] for seed in range(6)}) > 1, "six seeds give one answer")
    without = {contents(server.chat(temperature=1))[0] for _ in range(6)}
    require(len(without) > 1, "six answers without a seed are the same")


@check("chat: stop strings")
def chat_stops(server):
    text = contents(server.chat())[0]
    # Begins and ends within words, and so within tokens.
    stop = text[6:13]
    for stops in (stop, [stop], ["no such text", stop]):
        whole = server.chat(stop=stops)
        require_equal(contents(whole), [text[: text.index(stop)]], f"text before {stop!r}")
        require_equal(whole.choices[0].finish_reason, "stop", "finish reason")
        require_same(put_together(server.chat(stop=stops, stream=True)), whole)
    require_equal(contents(server.chat(stop=[])), [text], "text without stops")


@check("chat: length limits")
def chat_limits(server):
    endless = {"ignore_eos": True}
    short = server.chat(max_tokens=5, extra_body=endless)
    newer = server.chat(max_tokens=openai.omit, max_completion_tokens=5, extra_body=endless)
    require_equal(contents(newer), contents(short), "text of five tokens")
    for answer in (short, newer):
        require_equal((answer.usage.completion_tokens, answer.choices[0].finish_reason), (5, "length"), "end")


@check("chat: probabilities")
def chat_logprobs(server):
    whole = server.chat(logprobs=True, top_logprobs=4)
    tokens = whole.choices[0].logprobs.content
    require_spelled(tokens, whole.choices[0].message.content)
    for token in tokens:
        likely = [other.logprob for other in token.top_logprobs]
        require_equal((len(likely), likely), (4, sorted(likely, reverse=True)), "likeliest tokens")
        require_equal(token.top_logprobs[0].token, token.token, "token at temperature 0")
        require(token.logprob <= 0 and sum(map(math.exp, likely)) <= 1.0001, "these are no probabilities")
    streamed = put_together(server.chat(logprobs=True, top_logprobs=4, stream=True))[0]
    require_equal([t.token for t in streamed.tokens], [t.token for t in tokens], "streamed tokens")
    without_top = server.chat(logprobs=True, max_tokens=3).choices[0].logprobs.content
    require_equal([token.top_logprobs for token in without_top], [[]] * 3, "likeliest tokens, not asked for")


def require_spelled(tokens, text):
    spelled = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    # The token that ends an answer is no part of it.
    require(spelled.startswith(text), f"tokens spell {spelled!r}, not {text!r}")


@check("chat: parts of messages, roles and names")
def chat_messages(server):
    plain = [{"role": "system", "content": "Be kind."}, *CHAT]
    text = CHAT[0]["content"]
    parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    rich = [{"role": "developer", "content": "Be kind."}, {"role": "user", "name": "ann", "content": parts}]
    require_equal(contents(server.chat(messages=rich)), contents(server.chat(messages=plain)), "answer")


@check("chat: an answer is sent back as it came")
def chat_continued(server):
    message = server.chat().choices[0].message
    more = {"role": "user", "content": "And then?"}
    by_object = server.chat(messages=[*CHAT, message, more])
    by_text = server.chat(messages=[*CHAT, {"role": "assistant", "content": message.content}, more])
    require_equal(contents(by_object), contents(by_text), "answer")


@check("chat: null is as good as absent")
def chat_nulls(server):
    names = "n seed stop stream stream_options logprobs top_logprobs user logit_bias"
    nulls = dict.fromkeys([*names.split(), "presence_penalty", "frequency_penalty", "top_p", "max_completion_tokens"])
    require_equal(contents(server.chat(extra_body=nulls)), contents(server.chat()), "answer")


@check("chat: biased tokens")
def chat_bias(server):
    first = server.chat(max_tokens=1, logprobs=True, top_logprobs=1).choices[0].logprobs.content[0].token
    forbidden = {str(server.token_ids(first)[0]): -100}
    other = server.chat(max_tokens=1, logprobs=True, logit_bias=forbidden).choices[0].logprobs.content[0].token
    require(other != first, f"{first!r} was written at a bias of -100")


@check("chat: penalties and top_p are taken")
def chat_sampling(server):
    server.chat(temperature=1, seed=1, top_p=0.5, presence_penalty=1.5, frequency_penalty=-0.5, user="somebody")
    narrow = server.chat(temperature=1, seed=1, top_p=1e-6)
    require_equal(contents(narrow), contents(server.chat()), "answer of the likeliest tokens")


# Completions.


def texts(answer):
    return [choice.text for choice in answer.choices]


@check("completions: a text, texts, token ids")
def completions(server):
    answer = server.completion()
    expected = texts(answer)[0]
    require_equal((answer.object, answer.model), ("text_completion", server.model), "envelope")
    ids = server.token_ids(STORY)
    require_equal(answer.usage.prompt_tokens, len(ids), "tokens read")
    for prompt, count in (([STORY], 1), (ids, 1), ([STORY, STORY], 2), ([ids, ids], 2)):
        require_equal(texts(server.completion(prompt=prompt)), [expected] * count, "texts")
    other = texts(server.completion(prompt="The dragon"))[0]
    two = server.completion(prompt=[STORY, "The dragon"], n=2)
    require_equal([choice.index for choice in two.choices], [0, 1, 2, 3], "indices")
    require_equal(texts(two), [expected, expected, other, other], "texts")


@check("completions: many texts in one request")
def completions_of_many(server):
    answer = server.completion(prompt=[STORY] * MANY_TEXTS, max_tokens=100, extra_body={"ignore_eos": True})
    require_equal(len(set(texts(answer))), 1, "different texts")
    require_equal(len(answer.choices), MANY_TEXTS, "texts")


@check("completions: sixteen tokens if no limit is given")
def completions_limit(server):
    answer = server.completion(max_tokens=openai.omit, extra_body={"ignore_eos": True})
    require_equal(answer.usage.completion_tokens, 16, "tokens written")


@check("completions: streams equal whole answers")
def completions_stream(server):
    fields = {"prompt": [STORY, "The dragon"], "n": 2, "temperature": 1, "seed": 5}
    whole = server.completion(**fields)
    found = ["" for _ in whole.choices]
    reasons = [[] for _ in whole.choices]
    *chunks, last = server.completion(stream=True, stream_options={"include_usage": True}, **fields)
    for chunk in chunks:
        for choice in chunk.choices:
            found[choice.index] += choice.text
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    require_equal(found, texts(whole), "streamed texts")
    require_equal(reasons, [[choice.finish_reason] for choice in whole.choices], "finish reasons")
    require_equal(last.usage.total_tokens, whole.usage.total_tokens, "tokens")


@check("completions: stop strings")
def completions_stops(server):
    text = texts(server.completion())[0]
    stop = text[5:11]
    answer = server.completion(stop=stop)
    require_equal((texts(answer), answer.choices[0].finish_reason), ([text[: text.index(stop)]], "stop"), "end")


@check("completions: a prompt is scored")
def completions_echo(server):
    answer = server.completion(echo=True, logprobs=2, max_tokens=0)
    told = answer.choices[0].logprobs
    require_equal((texts(answer), answer.usage.completion_tokens), ([STORY], 0), "echo")
    require_equal("".join(told.tokens), STORY, "tokens")
    require_offsets(told, STORY)
    require_equal((told.token_logprobs[0], told.top_logprobs[0]), (None, None), "first token")
    require(all(logprob <= 0 for logprob in told.token_logprobs[1:]), "these are no logarithms of probabilities")
    require(all(len(top) == 2 for top in told.top_logprobs[1:]), "two likeliest tokens were asked for")
    whole = server.completion(echo=True, logprobs=2)
    require_equal(texts(whole), [STORY + texts(server.completion())[0]], "echo before an answer")
    require_offsets(whole.choices[0].logprobs, texts(whole)[0])
    require_close(whole.choices[0].logprobs.token_logprobs[1 : len(told.tokens)], told.token_logprobs[1:])


@check("completions: offsets of characters that are several tokens")
def completions_offsets(server):
    text = "Once é 日本"
    answer = server.completion(prompt=text, echo=True, logprobs=0, max_tokens=0)
    require_equal(texts(answer), [text], "echo")
    offsets = answer.choices[0].logprobs.text_offset
    require(max(offsets) < len(text), f"a text of {len(text)} characters has tokens at {offsets}")


def require_offsets(told, text):
    for token, offset in zip(told.tokens, told.text_offset):
        require(text.startswith(token, offset), f"{token!r} is not at {offset} of {text!r}")


def require_close(found, expected, tolerance=1e-3):
    require(len(found) == len(expected), f"expected {len(expected)} numbers, found {len(found)}")
    difference = max((abs(a - b) for a, b in zip(found, expected)), default=0)
    require(difference <= tolerance, f"numbers differ by {difference}")


# Models.


@check("models: listed and retrieved")
def models(server):
    listed = list(server.client.models.list())
    require(server.model in [model.id for model in listed], "the list lacks the model")
    found = server.client.models.retrieve(server.model)
    require_equal((found.id, found.object), (server.model, "model"), "model")
    require(isinstance(found.created, int) and found.owned_by, "created and owned_by")
    refused(lambda: server.client.models.retrieve("no-such-model"), openai.NotFoundError, "model", "model_not_found")


# Errors.


def refused(ask, kind, param=None, code=None):
    try:
        ask()
    except openai.APIStatusError as error:
        require(type(error) is kind, f"expected {kind.__name__}, found {type(error).__name__}: {error}")
        require_equal((error.param, error.code), (param, code), f"param and code of {error.message!r}")
        require(error.type and isinstance(error.body, dict) and error.body["message"], f"body {error.body}")
        require(error.request_id, "no x-request-id")
        return error
    raise AssertionError(f"expected {kind.__name__}, found an answer")


BAD_FIELDS = {
    "temperature": [-1, "hot"],
    "top_p": [1.5, -0.1],
    "max_tokens": [0, -5, "many"],
    "n": [0, -1, 1000, "two"],
    "presence_penalty": [3, -3],
    "frequency_penalty": [3],
    "stop": [[str(number) for number in range(100)], 5],
    "stream": ["yes"],
    "logit_bias": [{"word": 1}, {"5": 1000}],
    "top_logprobs": [3],
    "messages": ["text", [], [{"content": "no role"}]],
    "no_such_field": [1],
}


@check("errors: wrong and unknown fields")
def errors_of_fields(server):
    problems = []
    for name, values in BAD_FIELDS.items():
        for value in values:
            try:
                error = refused_field(lambda: server.chat(extra_body={name: value}))
                require(error.param.startswith(name), f"param {error.param!r}")
            except AssertionError as problem:
                problems.append(f"{name}={value!r}: {problem}")
    require(not problems, "; ".join(problems))


def refused_field(ask):
    try:
        ask()
    except openai.BadRequestError as error:
        require(error.param and error.message, f"no param: {error}")
        return error
    except openai.APIStatusError as error:
        raise AssertionError(f"expected BadRequestError, found {error!r}") from error
    raise AssertionError("expected BadRequestError, found an answer")


@check("errors: too many likeliest tokens")
def error_of_top_logprobs(server):
    refused(lambda: server.chat(logprobs=True, top_logprobs=1000), openai.BadRequestError, "top_logprobs")
    refused(lambda: server.completion(logprobs=1000), openai.BadRequestError, "logprobs")


@check("errors: a token that does not exist")
def error_of_token(server):
    error = refused_field(lambda: server.completion(prompt=[1, 2**31]))
    require(error.param.startswith("prompt"), f"expected prompt as param, found {error.param!r}")


@check("errors: a field within a message")
def error_of_message(server):
    messages = [*CHAT, {"role": "user", "content": "More", "color": "red"}]
    refused(lambda: server.chat(messages=messages), openai.BadRequestError, "messages[1].color")
    error = refused_field(lambda: server.chat(messages=[{"role": "fool", "content": "x"}]))
    require_equal(error.param, "messages[0].role", "param")


@check("errors: an unknown model")
def error_of_model(server):
    for ask in (server.chat, server.completion):
        refused(lambda: ask(model="no-such-model"), openai.NotFoundError, "model", "model_not_found")
        refused(lambda: ask(model="no-such-model", stream=True), openai.NotFoundError, "model", "model_not_found")


@check("errors: a prompt longer than the context")
def error_of_length(server):
    for fields in ({}, {"stream": True}):
        refused_as_too_long(lambda: server.completion(prompt=TOO_LONG, **fields))
        refused_as_too_long(lambda: server.chat(messages=[{"role": "user", "content": TOO_LONG}], **fields))


def refused_as_too_long(ask):
    try:
        ask()
    except openai.BadRequestError as error:
        require_equal(error.code, "context_length_exceeded", "code")
        require(len(error.message) < 1000, "the error repeats the prompt")
    else:
        raise AssertionError("expected BadRequestError, found an answer")


@check("errors: an address without anything")
def error_of_address(server):
    try:
        server.client.post("/nothing", cast_to=object, body={})
    except openai.NotFoundError as error:
        require(error.body and error.body["message"], f"body {error.body}")
    else:
        raise AssertionError("expected NotFoundError, found an answer")


@check("errors: without a key of the server", needs_key=True)
def error_of_key(server):
    for key in (UNKNOWN_KEY, server.key + "x", server.key[:-1]):
        other = server.client.with_options(api_key=key)
        for ask in (
            lambda: other.models.list(),
            lambda: other.chat.completions.create(model=server.model, messages=CHAT),
            lambda: other.completions.create(model=server.model, prompt=STORY, stream=True),
        ):
            refused(ask, openai.AuthenticationError, None, "invalid_api_key")


# Time.


# Takes a while, even with a small model.
MUCH = {"n": 128, "max_tokens": 400, "temperature": 1, "extra_body": {"ignore_eos": True}}


def require_some_aborted(aborted):
    """Some of the answers may have been complete before."""
    require(1 <= aborted <= MUCH["n"], f"aborted answers: expected from 1 to {MUCH['n']}, found {aborted}")


@check("cancelling: a closed stream ends its request")
def cancelled_stream(server):
    server.wait_until_idle(30)
    written, aborted = server.metric("braidinfer_generation_tokens_total"), server.aborted()
    stream = server.chat(stream=True, **MUCH)
    for _, chunk in zip(range(300), stream):
        require(chunk.choices, "an empty chunk")
    require(server.metric("vllm:num_requests_running") > 0, "nothing runs while a stream is read")
    stream.close()
    server.wait_until_idle(5)
    require_some_aborted(server.aborted() - aborted)
    written = server.metric("braidinfer_generation_tokens_total") - written
    require(written < 128 * 400 / 2, f"{written:.0f} tokens were written for nobody")


@check("cancelling: the with block and an exception")
def cancelled_by_exception(server):
    try:
        with server.chat(stream=True, **MUCH) as stream:
            for _ in stream:
                raise KeyError
    except KeyError:
        pass
    server.wait_until_idle(5)


@check("cancelling: a cancelled task ends its request")
def cancelled_task(server):
    async def cancel():
        async with openai.AsyncOpenAI(**server.settings) as client:
            asked = client.chat.completions.create(model=server.model, messages=CHAT, **MUCH)
            task = asyncio.create_task(asked)
            await asyncio.to_thread(wait_until, lambda: server.running() > 0, 30, "the request does not run")
            require(not task.done(), "the answer was complete before it could be cancelled")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    aborted = server.aborted()
    asyncio.run(cancel())
    server.wait_until_idle(5)
    require_some_aborted(server.aborted() - aborted)


@check("timeouts: a slow answer ends in the client and in the server")
def timed_out(server):
    hasty = server.client.with_options(timeout=0.2)
    started = time.monotonic()
    try:
        hasty.chat.completions.create(model=server.model, messages=CHAT, **MUCH)
    except openai.APITimeoutError:
        pass
    else:
        raise AssertionError("expected APITimeoutError, found an answer")
    require(time.monotonic() - started < 2, "the client waited longer than it should")
    server.wait_until_idle(5)


@check("timeouts: a stream may take longer than the wait for each part")
def steady_stream(server):
    hasty = server.client.with_options(timeout=0.3)
    started = time.monotonic()
    stream = hasty.chat.completions.create(model=server.model, messages=CHAT, stream=True, **{**MUCH, "n": 32})
    choices = put_together(stream)
    require_equal([choice.finish_reasons for choice in choices], [["length"]] * 32, "finish reasons")
    require(time.monotonic() - started > 0.3, "too short to tell")


@check("many at once: each answer is as when asked alone")
def many_at_once(server):
    requests = [request_for(number) for number in range(96)]
    alone = [server.chat(**request).choices[0].message.content for request in requests]
    together = asyncio.run(ask_together(server, requests))
    different = [(number, *pair) for number, pair in enumerate(zip(alone, together)) if pair[0] != pair[1]]
    require(not different, f"{len(different)} requests are answered otherwise: {different[:1]}")


@check("many at once: a full queue is waited out by the client")
def many_retried(server):
    requests = [{**request_for(number), "max_tokens": 5} for number in range(400)]
    answers = asyncio.run(ask_together(server, requests, max_retries=10))
    require(all(answers), "an empty answer")


def request_for(number):
    animals = "fox owl cat bear mouse dragon".split()
    messages = [{"role": "user", "content": f"Tell me a story about a {animals[number % len(animals)]}."}]
    return {"messages": messages, "max_tokens": 10 + number % 50, "temperature": number % 3 / 2, "seed": number}


async def ask_together(server, requests, max_retries=0):
    async with openai.AsyncOpenAI(**{**server.settings, "max_retries": max_retries}) as client:

        async def ask(number, request):
            request = {"model": server.model, **request}
            if number % 2:
                return (await client.chat.completions.create(**request)).choices[0].message.content
            stream = await client.chat.completions.create(stream=True, **request)
            return put_together([chunk async for chunk in stream])[0].content

        return await asyncio.gather(*(ask(number, request) for number, request in enumerate(requests)))


# Embeddings.


@check("embeddings: a text, texts, token ids", "embeddings")
def embeddings(server):
    other = "The dragon sleeps."
    alone = [server.embeddings(text).data[0].embedding for text in (STORY, other)]
    require(len(alone[0]) > 1 and all(isinstance(number, float) for number in alone[0]), "these are no numbers")
    require(abs(math.hypot(*alone[0]) - 1) < 1e-3, f"a length of {math.hypot(*alone[0])}")
    require(alone[0] != alone[1], "two texts, one embedding")
    ids = [server.token_ids(text) for text in (STORY, other)]
    require_close(server.embeddings(ids[0]).data[0].embedding, alone[0])
    for several in ([STORY, other], ids):
        answer = server.embeddings(several)
        places = [(found.index, found.object) for found in answer.data]
        require_equal(places, [(0, "embedding"), (1, "embedding")], "places")
        for found, expected in zip(answer.data, alone):
            require_close(found.embedding, expected)


@check("embeddings: envelope and usage", "embeddings")
def embeddings_envelope(server):
    answer = server.embeddings([STORY, STORY])
    require_equal((answer.object, answer.model), ("list", server.model), "envelope")
    count = 2 * len(server.token_ids(STORY))
    require_equal((answer.usage.prompt_tokens, answer.usage.total_tokens), (count, count), "usage")


@check("embeddings: many texts in one request", "embeddings")
def embeddings_of_many(server):
    require_equal(len(server.embeddings([STORY] * MANY_TEXTS).data), MANY_TEXTS, "embeddings")


@check("embeddings: base64 and floats are the same numbers", "embeddings")
def embeddings_formats(server):
    floats = server.embeddings(STORY, encoding_format="float").data[0].embedding
    # The client asks for base64 by itself, and reads it.
    require_close(server.embeddings(STORY).data[0].embedding, floats, 1e-6)
    encoded = server.embeddings(STORY, encoding_format="base64").data[0].embedding
    require(isinstance(encoded, str), f"base64 is a {type(encoded).__name__}")
    raw = base64.b64decode(encoded, validate=True)
    require_close(struct.unpack(f"<{len(raw) // 4}f", raw), floats, 1e-6)


@check("embeddings: errors", "embeddings")
def embeddings_errors(server):
    refused_field(lambda: server.embeddings([]))
    refused_field(lambda: server.embeddings(STORY, extra_body={"encoding_format": "hex"}))
    refused_field(lambda: server.embeddings(STORY, extra_body={"no_such_field": 1}))
    create = server.client.embeddings.create
    refused(lambda: create(model="no-such-model", input=STORY), openai.NotFoundError, "model", "model_not_found")
    refused_as_too_long(lambda: server.embeddings(TOO_LONG))


# Answers by a schema.


def closed(properties, optional=(), **more):
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


WORD = {"type": "string", "pattern": "^[a-z]{3,8}$"}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}

SCHEMAS = {
    "string": closed({"title": {"type": "string"}}),
    "pattern": closed({"word": WORD}),
    "pattern with alternatives": closed({"code": {"type": "string", "pattern": "^(id-[0-9]{4}|[A-F]{2}\\.[A-F]{2})$"}}),
    "enum": closed({"color": {"type": "string", "enum": ["red", "green", "deep blue", "a \"quoted\" one"]}}),
    "enum of several types": closed({"value": {"enum": [1, "one", True, None]}}),
    "const": closed({"kind": {"const": "fox"}, "version": {"const": 3}}),
    "date": closed({"day": {"type": "string", "format": "date"}}),
    "integer": closed({"count": {"type": "integer"}}),
    "integer with bounds": closed({"age": {"type": "integer", "minimum": 18, "maximum": 120}}),
    "integer below zero": closed({"depth": {"type": "integer", "minimum": -250, "maximum": -7}}),
    "integer with one bound": closed({"more": {"type": "integer", "minimum": 1000}}),
    "number": closed({"weight": {"type": "number"}}),
    "boolean and null": closed({"is_kind": {"type": "boolean"}, "nothing": {"type": "null"}}),
    "list of types": closed({"maybe": {"type": ["string", "null"]}, "either": {"type": ["boolean", "integer"]}}),
    "array with counts": closed({"words": {"type": "array", "items": WORD, "minItems": 2, "maxItems": 4}}),
    "array of any length": closed({"digits": {"type": "array", "items": DIGIT}}),
    "empty array": closed({"none": {"type": "array", "items": DIGIT, "maxItems": 0}}),
    "array of arrays": {
        "type": "array", "minItems": 2, "maxItems": 2,
        "items": {"type": "array", "items": DIGIT, "minItems": 1, "maxItems": 3},
    },
    "tuple": closed({"pair": {"type": "array", "prefixItems": [WORD, DIGIT], "items": False, "minItems": 2}}),
    "nested objects": closed({
        "fox": closed({"name": WORD, "home": closed({"place": WORD, "is_warm": {"type": "boolean"}})}),
    }),
    "optional fields": closed({"a": DIGIT, "b": WORD, "c": {"type": "boolean"}, "d": DIGIT}, optional=("a", "c", "d")),
    "only optional fields": closed({"a": DIGIT, "b": WORD}, optional=("a", "b")),
    "no fields": closed({}),
    "anyOf": closed({"it": {"anyOf": [closed({"word": WORD}), closed({"digit": DIGIT}), {"type": "null"}]}}),
    "references": closed(
        {"first": {"$ref": "#/$defs/animal"}, "second": {"$ref": "#/$defs/animal"}},
        **{"$defs": {"animal": closed({"name": WORD, "legs": {"$ref": "#/$defs/legs"}}), "legs": DIGIT}},
    ),
    "recursion": closed(
        {"root": {"$ref": "#/$defs/node"}},
        **{"$defs": {"node": closed({
            "digit": DIGIT,
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        })}},
    ),
    "recursion to the root": closed({
        "digit": DIGIT,
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    }),
    "names to escape": closed({"a b": DIGIT, "é\"\\": {"type": "boolean"}}),
}

UNPARSABLE_SCHEMAS = {
    "type": closed({"a": {"type": "nonsense"}}),
    "pattern": closed({"a": {"type": "string", "pattern": "(["}}),
    "reference": closed({"a": {"$ref": "#/$defs/missing"}}),
    "properties": {"type": "object", "properties": [1, 2]},
    "no object": "not a schema",
}
SEEDS = range(10)


def by_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def requests_for_json(seed, response_format):
    messages = [{"role": "user", "content": "Describe a fox as JSON."}]
    return {"messages": messages, "temperature": 1, "seed": seed, "max_tokens": 400, "response_format": response_format}


def answered_twice(server, request):
    """A whole answer, which the stream with the same seed must equal; its text and its end."""
    whole = server.chat(**request)
    require_same(put_together(server.chat(stream=True, **request)), whole)
    return whole.choices[0].message.content, whole.choices[0].finish_reason


def problem_with(content, schema):
    try:
        answer = json.loads(content)
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(answer)
    except json.JSONDecodeError as error:
        return f"no JSON: {content!r}: {error}"
    except jsonschema.ValidationError as error:
        return f"not valid: {content!r}: {error.message}"
    return None


def verdict(server, schema, seed, response_format):
    """`valid`, `cut`, or what is wrong."""
    try:
        content, end = answered_twice(server, requests_for_json(seed, response_format))
    except (AssertionError, openai.OpenAIError) as error:
        return f"seed {seed}: {error}"
    if end == "length":
        return "cut"
    problem = problem_with(content, schema)
    return f"seed {seed}: {problem}" if problem else "valid"


def require_valid(server, schema, response_format):
    with ThreadPoolExecutor(8) as pool:
        verdicts = Counter(pool.map(lambda seed: verdict(server, schema, seed, response_format), SEEDS))
    valid, cut = verdicts.pop("valid", 0), verdicts.pop("cut", 0)
    require(not verdicts, "; ".join(verdicts))
    require(valid > 0, f"all {cut} answers were cut by the length limit")
    return f"{valid} valid, {cut} cut by the length limit"


def register_schema(name, schema):
    check(f"schema: {name}", "schema")(lambda server: require_valid(server, schema, by_schema(schema)))


for schema_name, schema_value in SCHEMAS.items():
    register_schema(schema_name, schema_value)


@check("schema: any object", "schema")
def any_object(server):
    return require_valid(server, {"type": "object"}, {"type": "json_object"})


@check("schema: text is the format of every answer", "schema")
def text_format(server):
    require_equal(contents(server.chat(response_format={"type": "text"})), contents(server.chat()), "answer")


class Animal(BaseModel):
    kind: Literal["fox", "owl"]
    legs: int
    friends: list[Literal["ann", "bob"]]


@check("schema: a class of Pydantic", "schema")
def schema_of_class(server):
    found = 0
    for seed in SEEDS:
        try:
            answer = server.client.chat.completions.parse(
                model=server.model, messages=CHAT, temperature=1, seed=seed, max_tokens=400, response_format=Animal
            )
        except openai.LengthFinishReasonError:
            continue
        require(isinstance(answer.choices[0].message.parsed, Animal), f"no {Animal}: {answer.choices[0].message}")
        found += 1
    require(found > 0, "all answers were cut by the length limit")


@check("schema: unparsable schemas are refused", "schema")
def unparsable_schemas(server):
    server.chat(response_format=by_schema(SCHEMAS["no fields"]))
    problems = []
    for name, schema in UNPARSABLE_SCHEMAS.items():
        for stream in (False, True):
            fields = {"stream": stream, "response_format": by_schema(schema)}
            try:
                error = refused_field(lambda: server.chat(extra_body=fields))
                require(error.param.startswith("response_format"), f"param {error.param!r}")
            except AssertionError as problem:
                problems.append(f"{name}: {problem}")
    require(not problems, "; ".join(problems))


@check("schema: an unknown format is refused", "schema")
def unknown_format(server):
    server.chat(response_format={"type": "text"})
    error = refused_field(lambda: server.chat(extra_body={"response_format": {"type": "poem"}}))
    require(error.param.startswith("response_format"), f"param {error.param!r}")


# Tools.


PARAMETERS = {
    "find_animal": closed({"kind": {"type": "string", "enum": ["fox", "owl"]}, "legs": DIGIT}),
    "tell_story": closed({"hero": WORD, "is_short": {"type": "boolean"}}, optional=("is_short",)),
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name.replace("_", " "), "parameters": parameters}}
    for name, parameters in PARAMETERS.items()
]
NAMED = {"type": "function", "function": {"name": "tell_story"}}


def request_for_tools(seed, choice):
    return {"tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": seed, "max_tokens": 300}


def calls_of(message):
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def require_tool_calls(server, choice, names, reasons):
    cut = 0
    for seed in SEEDS:
        request = request_for_tools(seed, choice)
        whole = server.chat(**request).choices[0]
        streamed = put_together(server.chat(stream=True, **request))[0]
        require_same_calls(streamed, whole)
        if whole.finish_reason == "length":
            cut += 1
            continue
        require(whole.finish_reason in reasons, f"finish reason {whole.finish_reason}")
        require_valid_calls(whole.message, names)
    require(cut < len(SEEDS), "all answers were cut by the length limit")
    return f"{len(SEEDS) - cut} valid, {cut} cut by the length limit"


def require_same_calls(streamed, whole):
    calls = [streamed.tool_calls[index] for index in sorted(streamed.tool_calls)]
    require_equal(sorted(streamed.tool_calls), list(range(len(calls))), "indices of streamed calls")
    require_equal([(call["name"], call["arguments"]) for call in calls], calls_of(whole.message), "streamed calls")
    require(all(call["id"] for call in calls), "a streamed call without an id")
    require_equal(streamed.finish_reasons, [whole.finish_reason], "finish reasons")


def require_valid_calls(message, names):
    require(message.tool_calls, f"no tool calls: {message}")
    require(not message.content, f"text beside the calls: {message.content!r}")
    ids = [call.id for call in message.tool_calls]
    require(all(ids) and len(set(ids)) == len(ids), f"ids {ids}")
    for call in message.tool_calls:
        require(call.type == "function" and call.function.name in names, f"call {call}")
        problem = problem_with(call.function.arguments, PARAMETERS[call.function.name])
        require(problem is None, problem)


@check("tools: one is required", "tools")
def tool_required(server):
    return require_tool_calls(server, "required", set(PARAMETERS), {"tool_calls"})


@check("tools: one is named", "tools")
def tool_named(server):
    # The OpenAI API ends such answers with `stop`, other servers with `tool_calls`.
    return require_tool_calls(server, NAMED, {"tell_story"}, {"tool_calls", "stop"})


@check("tools: none may be called", "tools")
def tool_none(server):
    for choice in ("none", "auto"):
        answer = server.chat(tools=TOOLS, tool_choice=choice).choices[0]
        require(answer.message.content or answer.message.tool_calls, "an empty answer")
        require(choice == "auto" or not answer.message.tool_calls, f"calls: {answer.message.tool_calls}")


@check("tools: results are sent back", "tools")
def tool_results(server):
    message = first_calls(server)
    results = [{"role": "tool", "tool_call_id": call.id, "content": '{"found": true}'} for call in message.tool_calls]
    answer = server.chat(messages=[*CHAT, message, *results], tools=TOOLS, tool_choice="none")
    require(answer.choices[0].message.content, "no answer to a result")


def first_calls(server):
    for seed in SEEDS:
        choice = server.chat(**request_for_tools(seed, NAMED)).choices[0]
        if choice.finish_reason != "length":
            return choice.message
    raise AssertionError("all answers were cut by the length limit")


@check("tools: errors", "tools")
def tool_errors(server):
    server.chat(tools=TOOLS)
    missing = {"type": "function", "function": {"name": "missing"}}
    unparsable = [{"type": "function", "function": {"name": "f", "parameters": UNPARSABLE_SCHEMAS["type"]}}]
    for fields in (
        {"tools": TOOLS, "tool_choice": missing},
        {"tools": TOOLS, "tool_choice": "perhaps"},
        {"tool_choice": "required"},
        {"tools": unparsable, "tool_choice": "required"},
        {"tools": [{"type": "function"}]},
    ):
        error = refused_field(lambda: server.chat(extra_body=fields))
        require(error.param.startswith("tool"), f"param {error.param!r}")


# The program.


def passed(one, server):
    started = time.monotonic()
    try:
        remark = one.run(server)
    except (AssertionError, openai.OpenAIError) as error:
        print(f"FAILED  {one.name}: {error}", flush=True)
        return False
    except Exception:
        print(f"FAILED  {one.name}: {traceback.format_exc()}", flush=True)
        return False
    remark = f": {remark}" if remark else ""
    print(f"ok      {one.name}{remark} ({time.monotonic() - started:.2f} s)", flush=True)
    return True


def groups(text):
    chosen = [group for group in text.split(",") if group]
    unknown = set(chosen) - set(EXTRA_GROUPS)
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(EXTRA_GROUPS)}, found {', '.join(unknown)}")
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="such as http://127.0.0.1:8181")
    parser.add_argument("--key", help="key of the server, which then must ask for one")
    parser.add_argument("--with", dest="groups", type=groups, default=[], help=f"also {', '.join(EXTRA_GROUPS)}")
    parser.add_argument("--only", default="", help="run the checks whose names contain this")
    arguments = parser.parse_args()
    server = Server(arguments.address, arguments.key)
    asked = [one for one in CHECKS if one.group in ("base", *arguments.groups) and arguments.only in one.name]
    skipped = [one for one in asked if one.needs_key and not arguments.key]
    for one in skipped:
        print(f"skipped {one.name}: needs --key")
    results = [passed(one, server) for one in asked if one not in skipped]
    print(f"{results.count(True)} of {len(results)} checks passed")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
