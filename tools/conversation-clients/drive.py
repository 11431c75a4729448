"""Drives a running server with the client libraries that hold conversations, and checks what their users rely on.

    python drive.py http://127.0.0.1:8181 [--scripted] [--openai-2] [--only WORD]

Prints a line for each check; exits with 1 if one failed.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

import jsonschema
import openai
from pydantic import ValidationError

import apis  # noqa: F401, registers its checks
from checks import (
    ABOUT_ADA,
    ABOUT_ROME,
    ABOUT_WEATHER,
    CHECKS,
    CITY,
    EVERY,
    GREETING,
    KNOWS,
    MOST_TOKENS,
    MOST_TURNS,
    OPENAI_2,
    OPENAI_3,
    PACKAGES,
    QUESTION,
    REMEMBERS,
    SCRIPTED_CALLS,
    SCRIPTED_GREETING,
    SCRIPTED_ROME,
    WEATHER,
    Person,
    Server,
    agent_of,
    allowed_to_go_on,
    check,
    require,
    require_equal,
    weather,
    weather_agent,
)


def calls_of(choice):
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return read_calls(calls, choice.finish_reason)


def read_calls(calls, finish_reason):
    """The calls with their arguments, but for the one that the length limit cut."""
    whole = calls[:-1] if finish_reason == "length" else calls
    return [(name, json.loads(arguments)) for name, arguments in whole]


def results_of(message):
    return [
        {"role": "tool", "tool_call_id": call.id, "content": weather(json.loads(call.function.arguments).get("city"))}
        for call in message.tool_calls
    ]


@dataclass
class Streamed:
    """A streamed message, put together from its parts."""

    reasoning: str = ""
    content: str = ""
    finish_reasons: list = field(default_factory=list)
    calls: dict = field(default_factory=dict)
    parts_of_arguments: int = 0

    @classmethod
    def of(cls, chunks):
        found = cls()
        for chunk in chunks:
            for choice in chunk.choices:
                found.add(choice)
        return found

    def add(self, choice):
        self.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        self.content += choice.delta.content or ""
        self.finish_reasons += [choice.finish_reason] if choice.finish_reason else []
        for part in choice.delta.tool_calls or []:
            self.add_call(part)

    def add_call(self, part):
        if part.index not in self.calls:
            require(part.id and part.type == "function" and part.function.name, f"first part of a call: {part}")
            self.calls[part.index] = [part.function.name, ""]
        self.calls[part.index][1] += part.function.arguments or ""
        self.parts_of_arguments += bool(part.function.arguments)

    def named_calls(self):
        require_equal(sorted(self.calls), list(range(len(self.calls))), "indices of calls")
        return read_calls(list(self.calls.values()), *self.finish_reasons)


def reasoning_of(message):
    return getattr(message, "reasoning_content", None)


# The OpenAI client.


@check("openai: an answer and its reasoning")
def openai_chat(server):
    answer = server.chat(GREETING)
    message = answer.choices[0].message
    require(message.content, "no text")
    require(answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, "usage")
    if server.scripted:
        require_equal((reasoning_of(message), message.content), SCRIPTED_GREETING, "answer")
        require(answer.usage.completion_tokens_details.reasoning_tokens > 0, "no tokens of reasoning counted")


@check("openai: a streamed answer and its reasoning")
def openai_stream(server):
    require_same(Streamed.of(server.chat(GREETING, stream=True)), server.chat(GREETING).choices[0])


def require_same(streamed, whole):
    require_equal(streamed.content, whole.message.content or "", "streamed text")
    require_equal(streamed.reasoning, reasoning_of(whole.message) or "", "streamed reasoning")
    require_equal(streamed.named_calls(), calls_of(whole), "streamed calls")
    require_equal(streamed.finish_reasons, [whole.finish_reason], "finish reasons of the stream")


@check("openai: the stream manager")
def openai_stream_manager(server):
    # The manager takes a cut answer for an error.
    with allowed_to_go_on(server, openai.LengthFinishReasonError):
        events, final = server.events(GREETING)
        text = "".join(event.delta for event in events if event.type == "content.delta")
        whole = server.chat(GREETING).choices[0].message.content
        require_equal((text, final.choices[0].message.content), (whole, whole), "text")


@check("openai: answers of a class")
def openai_parse(server):
    parse = server.client.chat.completions.parse
    server.require_person(parse(**server.fields(ABOUT_ADA, response_format=Person)).choices[0].message.parsed)


@check("openai: streamed answers of a class")
def openai_parse_stream(server):
    events, final = server.events(ABOUT_ADA, response_format=Person)
    done = [event.parsed for event in events if event.type == "content.done"]
    require_equal(done, [final.choices[0].message.parsed], "what is parsed")
    server.require_person(done[0])


@check("openai: tools are called", needs_tools=True)
def openai_tools(server):
    choice = server.chat(ABOUT_WEATHER, tools=[WEATHER]).choices[0]
    server.require_calls(calls_of(choice), SCRIPTED_CALLS)
    ids = [call.id for call in choice.message.tool_calls or []]
    require_equal(len(set(ids)), len(ids), "different ids")
    if ids:
        require(choice.finish_reason in ("tool_calls", "length"), f"finish reason {choice.finish_reason}")
    if server.scripted:
        require_equal(choice.message.content, "Let me look.", "text before the calls")


@check("openai: tool calls are streamed", needs_tools=True)
def openai_tools_stream(server):
    streamed = Streamed.of(server.chat(ABOUT_WEATHER, tools=[WEATHER], stream=True))
    require_same(streamed, server.chat(ABOUT_WEATHER, tools=[WEATHER]).choices[0])
    if server.scripted:
        require(streamed.parts_of_arguments > 4, "arguments come whole")


@check("openai: a call is required", needs_tools=True)
def openai_required(server):
    for tool_choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        fields = {"tools": [WEATHER], "tool_choice": tool_choice}
        whole = server.chat(ABOUT_ROME, **fields).choices[0]
        require(calls_of(whole), f"no calls with {tool_choice}: {whole}")
        server.require_calls(calls_of(whole), SCRIPTED_ROME)
        jsonschema.validate(calls_of(whole)[0][1], CITY)
        require_same(Streamed.of(server.chat(ABOUT_ROME, stream=True, **fields)), whole)


@check("openai: one call at a time", needs_tools=True)
def openai_single_calls(server):
    fields = {"tools": [WEATHER], "parallel_tool_calls": False}
    whole = server.chat(ABOUT_WEATHER, **fields).choices[0]
    server.require_calls(calls_of(whole), SCRIPTED_CALLS[:1])
    require(len(calls_of(whole)) <= 1, f"calls {whole}")
    require_same(Streamed.of(server.chat(ABOUT_WEATHER, stream=True, **fields)), whole)


@check("openai: results are sent back as the client has the calls", needs_tools=True)
def openai_round_trip(server):
    choice = server.chat(ABOUT_WEATHER, tools=[WEATHER]).choices[0]
    if choice.finish_reason != "tool_calls":
        require(not server.scripted, f"no calls: {choice}")
        return "no whole calls"
    first, results = choice.message, results_of(choice.message)
    second = server.chat([*ABOUT_WEATHER, first, *results], tools=[WEATHER]).choices[0].message
    server.require_reply(second.content or "", REMEMBERS)
    without_reasoning = first.model_dump(include={"role", "content", "tool_calls"})
    second = server.chat([*ABOUT_WEATHER, without_reasoning, *results], tools=[WEATHER]).choices[0].message
    server.require_reply(second.content or "", KNOWS)


@check("openai: results are sent back as the stream manager has the calls", needs_tools=True)
def openai_stream_manager_round_trip(server):
    with allowed_to_go_on(server, openai.LengthFinishReasonError):
        events, final = server.events(ABOUT_WEATHER, tools=[WEATHER])
        choice = final.choices[0]
        server.require_calls(calls_of(choice), SCRIPTED_CALLS)
        done = [(event.name, json.loads(event.arguments)) for event in events if event.type.endswith("arguments.done")]
        require_equal(done, calls_of(choice), "calls of the events")
        if done:
            answer = server.chat([*ABOUT_WEATHER, choice.message, *results_of(choice.message)], tools=[WEATHER])
            server.require_reply(answer.choices[0].message.content or "", REMEMBERS)


@check("openai: arguments of a class", needs_tools=True)
def openai_parse_arguments(server):
    tool = openai.pydantic_function_tool(Person)
    fields = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "Person"}}}
    message = server.client.chat.completions.parse(**server.fields(ABOUT_ADA, **fields)).choices[0].message
    server.require_person(message.tool_calls[0].function.parsed_arguments)
    _, final = server.events(ABOUT_ADA, **fields)
    server.require_person(final.choices[0].message.tool_calls[0].function.parsed_arguments)


@check("openai: the asynchronous client", needs_tools=True)
def openai_asynchronous(server):
    async def ask(client):
        chunks = await client.chat.completions.create(**server.fields(ABOUT_WEATHER, tools=[WEATHER], stream=True))
        return Streamed.of([chunk async for chunk in chunks])

    server.require_calls(server.asynchronously(ask).named_calls(), SCRIPTED_CALLS)


# The Agents SDK.


@check("agents: a tool loop", OPENAI_3, needs_tools=True)
def agents_loop(server):
    import agents

    cities = []

    async def run(client):
        return await agents.Runner.run(
            weather_agent(server, "OpenAIChatCompletionsModel", client, cities), QUESTION, max_turns=MOST_TURNS
        )

    with allowed_to_go_on(server, agents.MaxTurnsExceeded, agents.ModelBehaviorError):
        server.require_reply(server.asynchronously(run).final_output, KNOWS, REMEMBERS)
    return server.require_asked(cities)


@check("agents: a streamed tool loop", OPENAI_3, needs_tools=True)
def agents_stream(server):
    import agents

    cities, deltas = [], []

    async def run(client):
        result = agents.Runner.run_streamed(
            weather_agent(server, "OpenAIChatCompletionsModel", client, cities), QUESTION, max_turns=MOST_TURNS
        )
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                deltas.append(event.data.delta)
        return result.final_output

    with allowed_to_go_on(server, agents.MaxTurnsExceeded, agents.ModelBehaviorError):
        final = server.asynchronously(run)
        server.require_reply(final, KNOWS, REMEMBERS)
        require("".join(deltas).endswith(final), f"streamed {deltas}, at last {final!r}")
    return server.require_asked(cities)


@check("agents: an answer of a class", OPENAI_3)
def agents_class(server):
    import agents

    async def run(client):
        return await agents.Runner.run(
            agent_of(server, "OpenAIChatCompletionsModel", client, output_type=Person), ABOUT_ADA[0]["content"]
        )

    server.require_person(server.asynchronously(run).final_output)


# LangChain.


def langchain_chat(server, **more):
    import langchain_openai

    settings = {"base_url": server.base_url, "api_key": "unused", "max_retries": 0, "timeout": 120}
    return langchain_openai.ChatOpenAI(model=server.model, temperature=0, max_tokens=MOST_TOKENS, **settings, **more)


def langchain_calls(message):
    is_cut = message.response_metadata["finish_reason"] == "length"
    require(is_cut or not message.invalid_tool_calls, f"invalid calls {message.invalid_tool_calls}")
    return [(call["name"], call["args"]) for call in message.tool_calls]


def added(chunks):
    first, *more = chunks
    return sum(more, first)


@check("langchain: an answer, whole and streamed", OPENAI_3)
def langchain_answer(server):
    chat = langchain_chat(server)
    whole = chat.invoke(GREETING)
    server.require_reply(whole.content, SCRIPTED_GREETING[1])
    require_equal(added(chat.stream(GREETING)).content, whole.content, "streamed text")
    require(whole.usage_metadata["output_tokens"] > 0, "no usage")


@check("langchain: tools and their results", OPENAI_3, needs_tools=True)
def langchain_tools(server):
    chat = langchain_chat(server).bind_tools([WEATHER])
    whole = chat.invoke(ABOUT_WEATHER)
    streamed = added(chat.stream(ABOUT_WEATHER))
    for message in (whole, streamed):
        server.require_calls(langchain_calls(message), SCRIPTED_CALLS)
    require_equal(langchain_calls(streamed), langchain_calls(whole), "streamed calls")
    for message in (whole, streamed) if whole.tool_calls and not whole.invalid_tool_calls else ():
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": weather(call["args"].get("city"))}
            for call in message.tool_calls
        ]
        server.require_reply(chat.invoke([*ABOUT_WEATHER, message, *results]).content, KNOWS, REMEMBERS)


@check("langchain: a call is required", OPENAI_3, needs_tools=True)
def langchain_required(server):
    for tool_choice in ("any", "get_weather"):
        chat = langchain_chat(server).bind_tools([WEATHER], tool_choice=tool_choice)
        calls = langchain_calls(chat.invoke(ABOUT_ROME))
        require(calls, f"no calls with {tool_choice}")
        server.require_calls(calls, SCRIPTED_ROME)


@check("langchain: an answer of a class by its schema", OPENAI_3)
def langchain_schema(server):
    server.require_person(langchain_chat(server).with_structured_output(Person, method="json_schema").invoke(ABOUT_ADA))


@check("langchain: an answer of a class by a tool", OPENAI_3, needs_tools=True)
def langchain_class_by_tool(server):
    chat = langchain_chat(server).with_structured_output(Person, method="function_calling")
    server.require_person(chat.invoke(ABOUT_ADA))


# Pydantic AI.


def run_with_pydantic_ai(server, text, events=None, tools=(), **more):
    from pydantic_ai import Agent, UsageLimits
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    settings, limits = {"temperature": 0, "max_tokens": MOST_TOKENS}, UsageLimits(request_limit=MOST_TURNS)

    async def run(client):
        model = OpenAIChatModel(server.model, provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, model_settings=settings, tools=tools, **more)
        return await agent.run(text, usage_limits=limits, event_stream_handler=events)

    return server.asynchronously(run)


def run_weather_with_pydantic_ai(server, events=None):
    from pydantic_ai import exceptions

    cities = []

    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        cities.append(city)
        return weather(city)

    with allowed_to_go_on(server, exceptions.UsageLimitExceeded, exceptions.UnexpectedModelBehavior):
        result = run_with_pydantic_ai(server, QUESTION, events, [get_weather])
        server.require_reply(result.output, KNOWS, REMEMBERS)
    return server.require_asked(cities)


@check("pydantic-ai: an answer and its reasoning", OPENAI_3)
def pydantic_answer(server):
    result = run_with_pydantic_ai(server, GREETING[0]["content"])
    server.require_reply(result.output, SCRIPTED_GREETING[1])
    if server.scripted:
        require_equal(result.response.thinking, SCRIPTED_GREETING[0], "reasoning")


@check("pydantic-ai: a tool loop", OPENAI_3, needs_tools=True)
def pydantic_loop(server):
    return run_weather_with_pydantic_ai(server)


@check("pydantic-ai: a streamed tool loop", OPENAI_3, needs_tools=True)
def pydantic_stream(server):
    kinds = Counter()

    async def count(_, events):
        async for event in events:
            kinds[event.event_kind, getattr(getattr(event, "delta", None), "part_delta_kind", None)] += 1

    remark = run_weather_with_pydantic_ai(server, count)
    if server.scripted:
        for kind in ("thinking", "text", "tool_call"):
            require(kinds["part_delta", kind] > 1, f"{kind} is not streamed: {kinds}")
    return remark


@check("pydantic-ai: an answer of a class by its schema", OPENAI_3)
def pydantic_schema(server):
    from pydantic_ai import NativeOutput

    server.require_person(
        run_with_pydantic_ai(server, ABOUT_ADA[0]["content"], output_type=NativeOutput(Person)).output
    )


@check("pydantic-ai: an answer of a class by a tool", OPENAI_3, needs_tools=True)
def pydantic_class_by_tool(server):
    from pydantic_ai import ToolOutput

    output_type = ToolOutput(Person, name="Person")
    server.require_person(run_with_pydantic_ai(server, ABOUT_ADA[0]["content"], output_type=output_type).output)


# The program llm.


WEATHER_FUNCTION = '''
def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"18 degrees in {city}"
'''


def asked_with_llm(server, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model_id": "tested",
            "model_name": server.model,
            "api_base": server.base_url,
            "supports_tools": True,
            "supports_schema": True,
        }
        # JSON is YAML.
        pathlib.Path(folder, "extra-openai-models.yaml").write_text(json.dumps([settings]))
        program = pathlib.Path(sys.executable).with_name("llm")
        limits = ["-o", "temperature", "0", "-o", "max_tokens", str(MOST_TOKENS)]
        command = [program, "-m", "tested", *limits, *arguments]
        environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "unused"}
        pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(command, env=environment, timeout=120, **pipes)


def require_done(done):
    require_equal(done.returncode, 0, f"exit code, with {done.stderr[-800:]}")
    return done.stdout.strip()


@check("llm: an answer, whole and streamed", OPENAI_3)
def llm_answer(server):
    for arguments in ([], ["--no-stream"]):
        text = require_done(asked_with_llm(server, *arguments, GREETING[0]["content"]))
        server.require_reply(text, SCRIPTED_GREETING[1])


@check("llm: a tool loop, whole and streamed", OPENAI_3, needs_tools=True)
def llm_loop(server):
    for arguments in ([], ["--no-stream"]):
        tools = ["--functions", WEATHER_FUNCTION, "-T", "llm_time", "--chain-limit", str(MOST_TURNS), "--tools-debug"]
        done = asked_with_llm(server, *arguments, *tools, QUESTION)
        if not server.scripted and "Chain limit" in done.stderr:
            continue
        text = require_done(done)
        if server.scripted:
            require(text.endswith((KNOWS, REMEMBERS)), f"text {text!r}")
            require_equal(done.stderr.count("Tool call: get_weather"), 2, f"calls that were run, of {done.stderr}")


@check("llm: an answer by a schema", OPENAI_3)
def llm_schema(server):
    text = require_done(
        asked_with_llm(server, "--schema", json.dumps(Person.model_json_schema()), ABOUT_ADA[0]["content"])
    )
    server.require_person(Person.model_validate_json(text))


# LlamaIndex.


def llama_index_chat(server):
    from llama_index.llms.openai_like import OpenAILike

    kinds = {"is_chat_model": True, "is_function_calling_model": True, "should_use_structured_outputs": True}
    limits = {"temperature": 0, "max_tokens": MOST_TOKENS, "max_retries": 0, "timeout": 120, "context_window": 4096}
    return OpenAILike(model=server.model, api_base=server.base_url, api_key="unused", **kinds, **limits)


def llama_index_tool(cities):
    from llama_index.core.tools import FunctionTool

    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        cities.append(city)
        return weather(city)

    return FunctionTool.from_defaults(get_weather)


@check("llama-index: an answer, whole and streamed", OPENAI_2)
def llama_index_answer(server):
    from llama_index.core.llms import ChatMessage

    chat, messages = llama_index_chat(server), [ChatMessage.model_validate(GREETING[0])]
    whole = chat.chat(messages).message.content
    server.require_reply(whole, SCRIPTED_GREETING[1])
    *_, last = chat.stream_chat(messages)
    require_equal(last.message.content, whole, "streamed text")


@check("llama-index: tools and their results", OPENAI_2, needs_tools=True)
def llama_index_tools(server):
    from llama_index.core.llms import ChatMessage

    chat, tool = llama_index_chat(server), llama_index_tool([])
    whole = chat.chat_with_tools([tool], user_msg=QUESTION, allow_parallel_tool_calls=True)
    *_, streamed = chat.stream_chat_with_tools([tool], user_msg=QUESTION, allow_parallel_tool_calls=True)
    for answer in (whole, streamed):
        calls = chat.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
        server.require_calls([(call.tool_name, call.tool_kwargs) for call in calls], SCRIPTED_CALLS)
        results = [
            ChatMessage(
                role="tool", content=str(tool(**call.tool_kwargs)), additional_kwargs={"tool_call_id": call.tool_id}
            )
            for call in calls
            if "city" in call.tool_kwargs
        ]
        if calls and len(results) == len(calls):
            history = [ChatMessage(role="user", content=QUESTION), answer.message, *results]
            server.require_reply(
                chat.chat_with_tools([tool], chat_history=history).message.content or "", KNOWS, REMEMBERS
            )


@check("llama-index: a call is required", OPENAI_2, needs_tools=True)
def llama_index_required(server):
    chat = llama_index_chat(server)
    answer = chat.chat_with_tools([llama_index_tool([])], user_msg=ABOUT_ROME[0]["content"], tool_required=True)
    calls = [(call.tool_name, call.tool_kwargs) for call in chat.get_tool_calls_from_response(answer)]
    server.require_calls(calls, SCRIPTED_ROME)


@check("llama-index: an agent", OPENAI_2, needs_tools=True)
def llama_index_agent(server):
    from llama_index.core.agent.workflow import FunctionAgent
    from workflows.errors import WorkflowRuntimeError

    cities = []

    async def run():
        agent = FunctionAgent(tools=[llama_index_tool(cities)], llm=llama_index_chat(server))
        return (await agent.run(user_msg=QUESTION, max_iterations=MOST_TURNS)).response.content

    with allowed_to_go_on(server, WorkflowRuntimeError):
        server.require_reply(asyncio.run(run()), KNOWS, REMEMBERS)
    return server.require_asked(cities)


@check("llama-index: an answer of a class by its schema", OPENAI_2)
def llama_index_schema(server):
    chat = llama_index_chat(server).as_structured_llm(Person)
    server.require_person(chat.complete(ABOUT_ADA[0]["content"]).raw)


# Instructor.


def create_with_instructor(server, mode):
    import instructor

    client = instructor.from_openai(server.client, mode=instructor.Mode[mode])
    fields = server.fields(ABOUT_ADA, response_model=Person, max_retries=0)
    server.require_person(client.chat.completions.create(**fields))
    *_, last = client.chat.completions.create_partial(**fields)
    require_equal(
        (last.name is None, last.age is None), (False, False), "fields that are missing at the end of a stream"
    )


@check("instructor: by a tool", OPENAI_2, needs_tools=True)
def instructor_tools(server):
    create_with_instructor(server, "TOOLS")


@check("instructor: by a schema", OPENAI_2)
def instructor_schema(server):
    create_with_instructor(server, "JSON_SCHEMA")


@check("instructor: as JSON", OPENAI_2)
def instructor_json(server):
    from instructor.core import InstructorError

    # The schema is in the prompt alone.
    with allowed_to_go_on(server, InstructorError, ValidationError):
        create_with_instructor(server, "JSON")


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="such as http://127.0.0.1:8181")
    parser.add_argument("--scripted", action="store_true", help="the model is that of scripts/weather.json")
    parser.add_argument("--openai-2", action="store_true", help="the clients of requirements-openai-2.txt")
    parser.add_argument("--only", default="", help="run the checks whose names contain this")
    arguments = parser.parse_args()
    environment = OPENAI_2 if arguments.openai_2 else OPENAI_3
    asked = [one for one in CHECKS if one.environment in (EVERY, environment) and arguments.only in one.name]
    packages = dict.fromkeys(PACKAGES[one.name.split(":")[0]] for one in asked)
    print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages))
    server = Server(arguments.address, arguments.scripted)
    skipped = [one for one in asked if one.needs_tools and not server.has_tools]
    if skipped:
        print(f"skipped {len(skipped)} checks of tools: the model has no place for them")
    results = [passed(one, server) for one in asked if one not in skipped]
    print(f"{results.count(True)} of {len(results)} checks passed")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
