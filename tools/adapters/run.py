"""LangChain and the program `llm` with `braidinfer serve`, as their users configure them.

    pip install -r tools/adapters/requirements.txt
    python tools/adapters/run.py --braidinfer target/release/braidinfer [--model MODEL] [--only WORD]

Starts a server, prints a line for each check, and exits with 1 if one failed. Checks of tools are left out for models that have no
place for them, such as the built-in one. Tool loops with exact answers are in tools/conversation-clients.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from importlib.metadata import version
from pathlib import Path

import openai
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

NAME = "tested"
GREETING = "Say hello to me."
WEATHER = "What is the weather in Paris? Use the tool."
ADA = "Ada is 36 years old. Describe her as JSON."
SETTINGS = {"api_key": "unused", "max_retries": 0, "timeout": 120}
LIMITS = {"temperature": 0, "max_tokens": 60}
WEATHER_FUNCTION = '''
def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"18 degrees in {city}"
'''
CHECKS = []
# LangChain keeps connections for later models, which a second event loop cannot use.
LOOP = asyncio.new_event_loop()


class Person(BaseModel):
    """A person, in a form that any model comes to the end of."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


@tool
def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"18 degrees in {city}"


def check(name, needs_tools=False):
    def register(run):
        CHECKS.append((name, run, needs_tools))
        return run

    return register


def require(condition, message):
    if not condition:
        raise AssertionError(message)


def require_equal(found, expected, what):
    require(found == expected, f"{what}: expected {expected!r}, found {found!r}")


def chat_of(base, **more):
    return ChatOpenAI(model=NAME, base_url=base, **SETTINGS, **LIMITS, **more)


@check("langchain: invoke and stream")
def langchain_answer(base):
    chat = chat_of(base, stream_usage=True)
    whole = chat.invoke(GREETING)
    first, *others = chat.stream(GREETING)
    streamed = sum(others, first)
    require(whole.content, "no text")
    require_equal(streamed.content, whole.content, "streamed text")
    require_equal(streamed.usage_metadata["total_tokens"], whole.usage_metadata["total_tokens"], "tokens of the stream")
    require_equal(streamed.response_metadata["finish_reason"], whole.response_metadata["finish_reason"], "finish reason")


@check("langchain: batch")
def langchain_batch(base):
    chat = chat_of(base)
    asked = [f"{GREETING} My name is {name}." for name in ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")]
    alone = [chat.invoke(text).content for text in asked]
    require_equal([answer.content for answer in chat.batch(asked)], alone, "texts in a batch")


@check("langchain: ainvoke, astream, abatch")
def langchain_async(base):
    chat = chat_of(base)
    whole = chat.invoke(GREETING).content

    async def ask():
        parts = [chunk.content async for chunk in chat.astream(GREETING)]
        return [(await chat.ainvoke(GREETING)).content, "".join(parts), *[one.content for one in await chat.abatch([GREETING] * 4)]]

    require_equal(LOOP.run_until_complete(ask()), [whole] * 6, "texts")


@check("langchain: a chain of a prompt, the model and a parser")
def langchain_chain(base):
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{text}")]) | chat_of(base) | StrOutputParser()
    text = chain.invoke({"text": GREETING})
    require(text and text == "".join(chain.stream({"text": GREETING})), f"text {text!r}")


@check("langchain: completions")
def langchain_completion(base):
    model = OpenAI(model=NAME, base_url=base, **SETTINGS, **LIMITS)
    whole = model.invoke("Once upon a time")
    require(whole and "".join(model.stream("Once upon a time")) == whole, f"text {whole!r}")


@check("langchain: log-probabilities and stop texts")
def langchain_logprobs(base):
    tokens = chat_of(base, logprobs=True, top_logprobs=2).invoke(GREETING).response_metadata["logprobs"]["content"]
    require(tokens and all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens), f"{tokens[:2]}")
    whole = chat_of(base).invoke(GREETING).content
    stop = whole[len(whole) // 2 :][:3]
    require_equal(chat_of(base).invoke(GREETING, stop=[stop]).content, whole.split(stop)[0], "text before a stop text")


@check("langchain: bind_tools, whole and streamed", needs_tools=True)
def langchain_tools(base):
    chat = chat_of(base).bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    whole = chat.invoke(WEATHER)
    first, *others = chat.stream(WEATHER)
    for message in (whole, sum(others, first)):
        require(message.tool_calls and not message.invalid_tool_calls, f"calls {message}")
        require(all(call["name"] == "get_weather" and set(call["args"]) == {"city"} for call in message.tool_calls), f"{message}")
    results = [get_weather.invoke(call) for call in whole.tool_calls]
    answer = chat_of(base).bind_tools([get_weather]).invoke([("user", WEATHER), whole, *results])
    require(answer.content or answer.tool_calls, "no answer to results")


@check("langchain: with_structured_output by a schema, whole, streamed and in asyncio")
def langchain_schema(base):
    for asked in (Person, Person.model_json_schema()):
        found = chat_of(base).with_structured_output(asked, method="json_schema").invoke(ADA)
        Person.model_validate(found if isinstance(found, dict) else found.model_dump())
    person = chat_of(base).with_structured_output(Person)
    *_, last = person.stream(ADA)
    require_equal(last, person.invoke(ADA), "streamed person")
    require_equal(LOOP.run_until_complete(person.ainvoke(ADA)), last, "person in asyncio")


@check("langchain: with_structured_output as JSON")
def langchain_json(base):
    found = chat_of(base).with_structured_output(Person, method="json_mode", include_raw=True).invoke(ADA)
    is_cut = found["raw"].response_metadata["finish_reason"] == "length"
    require(is_cut or isinstance(json.loads(found["raw"].content), dict), f"{found['raw'].content!r}")


@check("langchain: with_structured_output by a tool", needs_tools=True)
def langchain_class_by_tool(base):
    found = chat_of(base).with_structured_output(Person, method="function_calling").invoke(ADA)
    require(isinstance(found, Person), f"{found!r}")


@check("langchain: embeddings")
def langchain_embeddings(base):
    # Without this, texts are cut into tokens of another model, and sent as those.
    embeddings = OpenAIEmbeddings(model=NAME, base_url=base, check_embedding_ctx_length=False, **SETTINGS)
    one = embeddings.embed_query("Once upon a time")
    several = embeddings.embed_documents(["Once upon a time", "The sea is deep."])
    require(abs(sum(number * number for number in one) - 1) < 1e-3, "length")
    require(len(several) == 2 and several[0] != several[1], "embeddings of two texts")
    require(all(abs(a - b) < 1e-4 for a, b in zip(one, several[0])), "embeddings of one text differ")
    require_equal(LOOP.run_until_complete(embeddings.aembed_query("Once upon a time")), one, "embedding in asyncio")


@check("langchain: a wrong parameter is refused by name")
def langchain_refusal(base):
    for wrong in ({"top_p": 7}, {"extra_body": {"nonsense": 1}}):
        try:
            chat_of(base, **wrong).invoke(GREETING)
        except openai.BadRequestError as error:
            name = next(iter(wrong.get("extra_body", wrong)))
            require(name in str(error), f"{error}")
        else:
            raise AssertionError(f"{wrong} is taken")


class Program:
    """The program `llm` with a folder of its own, so that the model is configured as its documentation says."""

    def __init__(self, base, folder):
        common = {"model_name": NAME, "api_base": base}
        chat = {"model_id": "chat", **common, "supports_tools": True, "supports_schema": True}
        completion = {"model_id": "completion", **common, "completion": True}
        # JSON is YAML.
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps([chat, completion]))
        self.environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "unused"}

    def run(self, *arguments, text=None):
        program = Path(sys.executable).with_name("llm")
        pipes = {"input": text or "", "capture_output": True, "text": True, "check": False, "timeout": 300, "env": self.environment}
        done = subprocess.run([program, *arguments], **pipes)
        require_equal(done.returncode, 0, f"exit code, with {done.stderr[-800:]}")
        return done.stdout.strip()

    def ask(self, *arguments, model="chat", most=60, **more):
        return self.run("-m", model, "-o", "temperature", "0", "-o", "max_tokens", str(most), *arguments, **more)


def with_llm(run):
    def run_in_folder(base):
        with tempfile.TemporaryDirectory() as folder:
            return run(Program(base, folder))

    return run_in_folder


@check("llm: the models of extra-openai-models.yaml")
@with_llm
def llm_models(llm):
    listed = llm.run("models")
    require("OpenAI Chat: chat" in listed and "OpenAI Completion: completion" in listed, listed)


@check("llm: a prompt, streamed, whole, from standard input, with a system prompt")
@with_llm
def llm_answer(llm):
    streamed = llm.ask(GREETING)
    require(streamed, "no text")
    require_equal(llm.ask("--no-stream", GREETING), streamed, "whole text")
    require_equal(llm.ask(text=GREETING), streamed, "text for standard input")
    require(llm.ask("-s", "Answer with one word.", GREETING), "no text with a system prompt")
    usage = json.loads(llm.run("logs", "-n", "1", "--json"))[0]
    require(usage["input_tokens"] > 0 and usage["output_tokens"] > 0, f"usage {usage}")


@check("llm: completions")
@with_llm
def llm_completion(llm):
    streamed = llm.ask("Once upon a time", model="completion")
    require(streamed and llm.ask("--no-stream", "Once upon a time", model="completion") == streamed, f"text {streamed!r}")


@check("llm: a conversation, with -c and as a chat")
@with_llm
def llm_conversation(llm):
    first = llm.ask("My name is Ada. Say hello.")
    second = llm.ask("-c", "What is my name?")
    logged = json.loads(llm.run("logs", "-n", "0", "--json"))
    require_equal(len({turn["conversation_id"] for turn in logged}), 1, "conversations")
    require_equal([turn["response"].strip() for turn in logged], [first, second], "answers in the log")
    # The second prompt has the first one in it, and its answer.
    require(logged[1]["input_tokens"] > logged[0]["input_tokens"] + logged[0]["output_tokens"], "the first turn was not sent")
    limits = ["-o", "temperature", "0", "-o", "max_tokens", "60"]
    chat = llm.run("chat", "-m", "chat", *limits, text="My name is Ada. Say hello.\nWhat is my name?\nquit\n")
    require(first in chat and second in chat, f"chat {chat!r} without {first!r} and {second!r}")


@check("llm: --schema, as JSON and in its short form")
@with_llm
def llm_schema(llm):
    Person.model_validate_json(llm.ask("--schema", json.dumps(Person.model_json_schema()), ADA))
    Person.model_validate_json(llm.ask("--no-stream", "--schema", json.dumps(Person.model_json_schema()), ADA))
    short = llm.ask("--schema", "is_adult bool, age int", ADA, most=200)
    require({"age", "is_adult"} <= set(json.loads(short)), f"fields of the short form: {short}")


@check("llm: tools", needs_tools=True)
@with_llm
def llm_tools(llm):
    for arguments in ([], ["--no-stream"]):
        llm.ask(*arguments, "--functions", WEATHER_FUNCTION, "--chain-limit", "0", WEATHER, most=400)
    calls = [call for turn in json.loads(llm.run("logs", "-n", "0", "--json")) for call in turn["tool_calls"]]
    require(all(call["name"] == "get_weather" for call in calls), f"calls {calls}")
    return f"{len(calls)} calls"


@check("llm: an endpoint without configuration")
@with_llm
def llm_endpoint(llm):
    base = json.loads(Path(llm.environment["LLM_USER_PATH"], "extra-openai-models.yaml").read_text())[0]["api_base"]
    require(NAME in llm.run("openai", "endpoint", base, "--models"), "the model is not listed")
    require(llm.run("openai", "endpoint", base, "-m", NAME, "-o", "max_tokens", "20", GREETING), "no text")


def start(arguments, log):
    command = [arguments.braidinfer, "serve", *([arguments.model] if arguments.model else []), "--port", "0"]
    process = subprocess.Popen([*command, "--served-model-name", NAME], stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        found = re.search(r" is served at (http://[0-9.]+:[0-9]+)", Path(log.name).read_text())
        if found:
            return process, f"{found[1]}/v1"
        time.sleep(0.2)
    process.kill()
    raise SystemExit(f"the server does not start: {Path(log.name).read_text()[-800:]}")


def takes_tools(base):
    """Whether the model's template has a place for tools. Where it has none, they are described in a text, which small models may
    not follow."""
    address = base.removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/models", timeout=60) as reply:
        body = json.dumps({"model": json.load(reply)["data"][0]["id"]}).encode()
    request = urllib.request.Request(f"{address}/api/show", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return "tools" in json.load(reply)["capabilities"]


def passed(name, run, base):
    started = time.monotonic()
    try:
        remark = run(base)
    except Exception:
        print(f"FAILED  {name}: {traceback.format_exc()}", flush=True)
        return False
    print(f"ok      {name}{f': {remark}' if remark else ''} ({time.monotonic() - started:.1f} s)", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braidinfer", default="braidinfer")
    parser.add_argument("--model")
    parser.add_argument("--only", default="", help="run the checks whose names contain this")
    arguments = parser.parse_args()
    print(", ".join(f"{package} {version(package)}" for package in ("langchain-openai", "langchain-core", "llm", "openai")))
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process, base = start(arguments, log)
        try:
            has_tools = takes_tools(base)
            chosen = [(name, run) for name, run, needs_tools in CHECKS if arguments.only in name and (has_tools or not needs_tools)]
            if not has_tools:
                print("the model has no place for tools: checks of tools are left out")
            results = [passed(name, run, base) for name, run in chosen]
        finally:
            process.terminate()
            process.wait()
    print(f"{results.count(True)} of {len(results)} checks passed")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
