"""Checks of clients that speak other APIs than OpenAI's chat completions: Anthropic's, Ollama's, and OpenAI's Responses.

`drive.py` runs them with its own.
"""

import json

import jsonschema

from checks import (
    ABOUT_ADA,
    ABOUT_ROME,
    ABOUT_WEATHER,
    CITY,
    GREETING,
    KNOWS,
    MOST_TOKENS,
    MOST_TURNS,
    OPENAI_3,
    QUESTION,
    REMEMBERS,
    SCRIPTED_CALLS,
    SCRIPTED_GREETING,
    SCRIPTED_ROME,
    WEATHER,
    Person,
    agent_of,
    allowed_to_go_on,
    check,
    require,
    require_equal,
    weather,
    weather_agent,
)

# Anthropic.

ANTHROPIC_TOOL = {"name": "get_weather", "description": "Tells the weather in a city.", "input_schema": CITY}


class Claude:
    """The server as Anthropic's client sees it."""

    def __init__(self, server):
        import anthropic

        self.server = server
        self.client = anthropic.Anthropic(base_url=server.address, api_key="unused", max_retries=0, timeout=120)

    def fields(self, messages, **more):
        # The client has no temperature any more.
        extra = {"temperature": 0, **more.pop("extra_body", {})}
        return {
            "model": self.server.model,
            "messages": messages,
            "max_tokens": MOST_TOKENS,
            "extra_body": extra,
            **more,
        }

    def create(self, messages, **more):
        return self.client.messages.create(**self.fields(messages, **more))

    def streamed(self, messages, **more):
        """The message that the client puts together from a stream, and its text."""
        with self.client.messages.stream(**self.fields(messages, **more)) as stream:
            return "".join(stream.text_stream), stream.get_final_message()


def blocks(message, kind):
    return [block for block in message.content if block.type == kind]


def text_of(message):
    return "".join(block.text for block in blocks(message, "text"))


def content_of(message):
    """What two messages have in common that say the same: all but the ids of calls."""
    return [block.model_dump(exclude={"id"}) for block in message.content]


def tool_uses(message):
    return [(block.name, block.input) for block in blocks(message, "tool_use")]


@check("anthropic: a message and its reasoning", OPENAI_3)
def anthropic_message(server):
    message = Claude(server).create(GREETING, system="Be kind.")
    require(text_of(message), f"no text: {message}")
    require_equal(message.stop_reason in ("end_turn", "max_tokens"), True, f"stop reason {message.stop_reason}")
    require(message.usage.input_tokens + message.usage.cache_read_input_tokens > 0, f"usage {message.usage}")
    if server.scripted:
        thoughts = [block.thinking for block in blocks(message, "thinking")]
        require_equal((*thoughts, text_of(message)), SCRIPTED_GREETING, "answer")


@check("anthropic: a streamed message and its reasoning", OPENAI_3)
def anthropic_stream(server):
    claude = Claude(server)
    text, message = claude.streamed(GREETING)
    whole = claude.create(GREETING)
    require_equal(text, text_of(whole), "streamed text")
    require_equal(content_of(message), content_of(whole), "streamed blocks")
    require_equal(message.stop_reason, whole.stop_reason, "stop reason")
    require_equal(message.usage.output_tokens, whole.usage.output_tokens, "streamed usage")


@check("anthropic: tokens are counted", OPENAI_3)
def anthropic_count(server):
    claude = Claude(server)
    counted = claude.client.messages.count_tokens(model=server.model, messages=GREETING).input_tokens
    usage = claude.create(GREETING).usage
    require_equal(counted, usage.input_tokens + usage.cache_read_input_tokens, "tokens of the prompt")


@check("anthropic: tools are called, and take back their results", OPENAI_3, needs_tools=True)
def anthropic_tools(server):
    claude = Claude(server)
    for ask in (claude.create, lambda *args, **more: claude.streamed(*args, **more)[1]):
        message = ask(ABOUT_WEATHER, tools=[ANTHROPIC_TOOL])
        uses = tool_uses(message)
        if message.stop_reason != "tool_use":
            require(not server.scripted, f"no calls: {message}")
            continue
        server.require_calls(uses, SCRIPTED_CALLS)
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": weather(block.input.get("city"))}
            for block in blocks(message, "tool_use")
        ]
        history = [
            *ABOUT_WEATHER,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
        ]
        server.require_reply(text_of(ask(history, tools=[ANTHROPIC_TOOL])), REMEMBERS)


@check("anthropic: a call is required", OPENAI_3, needs_tools=True)
def anthropic_required(server):
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        message = Claude(server).create(ABOUT_ROME, tools=[ANTHROPIC_TOOL], tool_choice=choice)
        server.require_calls(tool_uses(message), SCRIPTED_ROME)
        jsonschema.validate(tool_uses(message)[0][1], CITY)


@check("anthropic: answers of a class", OPENAI_3)
def anthropic_parse(server):
    message = Claude(server).client.messages.parse(**Claude(server).fields(ABOUT_ADA, output_format=Person))
    server.require_person(message.parsed_output)


@check("anthropic: errors", OPENAI_3)
def anthropic_errors(server):
    import anthropic

    claude = Claude(server)
    for error, fields in [
        (anthropic.NotFoundError, {"model": "no-such-model"}),
        (anthropic.BadRequestError, {"extra_body": {"temperature": -1}}),
        (anthropic.BadRequestError, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ]:
        try:
            claude.create(GREETING, **fields)
        except error as found:
            require(found.body["error"]["message"], f"no message: {found}")
        else:
            raise AssertionError(f"no error with {fields}")


# Ollama.


def ollama_of(server):
    import ollama

    return ollama.Client(host=server.address, timeout=120)


def ollama_fields(server, messages, **more):
    options = {"temperature": 0, "num_predict": MOST_TOKENS}
    return {"model": server.model, "messages": messages, "options": options, **more}


def ollama_calls(message):
    return [(call.function.name, dict(call.function.arguments)) for call in message.tool_calls or []]


@check("ollama: an answer and its reasoning", OPENAI_3)
def ollama_chat(server):
    answer = ollama_of(server).chat(**ollama_fields(server, GREETING))
    require(answer.message.content, f"no text: {answer}")
    require(answer.done and answer.eval_count > 0 and answer.total_duration > 0, f"the end of {answer}")
    if server.scripted:
        require_equal((answer.message.thinking, answer.message.content), SCRIPTED_GREETING, "answer")


@check("ollama: a streamed answer and its reasoning", OPENAI_3)
def ollama_stream(server):
    client = ollama_of(server)
    parts = list(client.chat(**ollama_fields(server, GREETING), stream=True))
    whole = client.chat(**ollama_fields(server, GREETING))
    require_equal("".join(part.message.content or "" for part in parts), whole.message.content, "streamed text")
    thoughts = "".join(part.message.thinking or "" for part in parts)
    require_equal(thoughts, whole.message.thinking or "", "streamed reasoning")
    require_equal([part.done for part in parts].index(True), len(parts) - 1, "place of the end")
    require_equal(parts[-1].eval_count, whole.eval_count, "tokens")


@check("ollama: a completion", OPENAI_3)
def ollama_generate(server):
    client = ollama_of(server)
    options = {"temperature": 0, "num_predict": 20}
    whole = client.generate(model=server.model, prompt="Once upon a time", raw=True, options=options)
    parts = client.generate(model=server.model, prompt="Once upon a time", raw=True, options=options, stream=True)
    require_equal("".join(part.response for part in parts), whole.response, "streamed text")
    answer = client.generate(model=server.model, prompt=GREETING[0]["content"], options=options)
    require(answer.response or answer.thinking, f"no text: {answer}")


@check("ollama: tools are called, and take back their results", OPENAI_3, needs_tools=True)
def ollama_tools(server):
    client = ollama_of(server)
    answer = client.chat(**ollama_fields(server, ABOUT_WEATHER, tools=[WEATHER]))
    parts = list(client.chat(**ollama_fields(server, ABOUT_WEATHER, tools=[WEATHER]), stream=True))
    streamed = [call for part in parts for call in ollama_calls(part.message)]
    require_equal(streamed, ollama_calls(answer.message), "streamed calls")
    if answer.done_reason == "length":
        return "the answer was cut"
    server.require_calls(streamed, SCRIPTED_CALLS)
    results = [
        {"role": "tool", "tool_name": name, "content": weather(arguments.get("city"))} for name, arguments in streamed
    ]
    if results:
        history = [*ABOUT_WEATHER, answer.message, *results]
        server.require_reply(client.chat(**ollama_fields(server, history, tools=[WEATHER])).message.content, REMEMBERS)


@check("ollama: answers of a class", OPENAI_3)
def ollama_format(server):
    answer = ollama_of(server).chat(**ollama_fields(server, ABOUT_ADA, format=Person.model_json_schema()))
    server.require_person(Person.model_validate_json(answer.message.content))


@check("ollama: vectors", OPENAI_3)
def ollama_embed(server):
    vectors = ollama_of(server).embed(model=server.model, input=["one", "two"]).embeddings
    require_equal(len(vectors), 2, "vectors")
    for vector in vectors:
        require(abs(sum(value * value for value in vector) - 1) < 1e-3, "a vector is not of length one")


@check("ollama: models are listed and described", OPENAI_3)
def ollama_models(server):
    client = ollama_of(server)
    names = [model.model for model in client.list().models]
    require(f"{server.model}:latest" in names, f"names {names}")
    shown = client.show(names[0])
    require("completion" in shown.capabilities, f"capabilities {shown.capabilities}")
    require_equal("tools" in shown.capabilities, server.has_tools, "whether it takes tools")
    require(client.ps().models[0].context_length > 0, "no context")


@check("ollama: errors", OPENAI_3)
def ollama_errors(server):
    import ollama

    for status, fields in [(404, {"model": "no-such-model"}), (400, {"format": "xml"})]:
        for stream in (False, True):
            try:
                list(ollama_of(server).chat(**{**ollama_fields(server, GREETING), **fields}, stream=stream))
            except ollama.ResponseError as found:
                require_equal(found.status_code, status, "status")
                require(found.error, "no message")
            except ValueError:
                # The client knows better than to send it.
                require_equal(status, 400, "status")
            else:
                raise AssertionError(f"no error with {fields}")


# OpenAI's Responses.

RESPONSES_TOOL = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": False}


def response_fields(server, asked, **more):
    return {"model": server.model, "input": asked, "temperature": 0, "max_output_tokens": MOST_TOKENS, **more}


def output_calls(response):
    calls = [item for item in response.output if item.type == "function_call" and item.status == "completed"]
    return [(item.name, json.loads(item.arguments)) for item in calls]


def reasoning_texts(response):
    return [item.content[0].text for item in response.output if item.type == "reasoning"]


@check("openai: a response and its reasoning", OPENAI_3)
def responses_create(server):
    response = server.client.responses.create(**response_fields(server, GREETING))
    require(response.output_text, f"no text: {response}")
    require_equal(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens, "usage")
    if server.scripted:
        require_equal((*reasoning_texts(response), response.output_text), SCRIPTED_GREETING, "answer")


@check("openai: a streamed response", OPENAI_3)
def responses_stream(server):
    whole = server.client.responses.create(**response_fields(server, GREETING))
    with server.client.responses.stream(**response_fields(server, GREETING)) as stream:
        events = list(stream)
    final = events[-1].response
    require_equal(final.output_text, whole.output_text, "text at the end")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    require_equal(text, whole.output_text, "streamed text")
    require_equal(final.status, whole.status, "status")


@check("openai: responses go on from one another", OPENAI_3)
def responses_go_on(server):
    responses = server.client.responses
    first = responses.create(**response_fields(server, GREETING))
    require_equal(responses.retrieve(first.id).output_text, first.output_text, "the stored text")
    second = responses.create(**response_fields(server, "Say hello again.", previous_response_id=first.id))
    require(second.usage.input_tokens > first.usage.input_tokens, "the first response is not in the prompt")
    responses.delete(first.id)
    try:
        responses.retrieve(first.id)
    except Exception as error:
        require_equal(getattr(error, "status_code", None), 404, "status")
    else:
        raise AssertionError("it is still there")


@check("openai: a response of a class", OPENAI_3)
def responses_parse(server):
    parsed = server.client.responses.parse(**response_fields(server, ABOUT_ADA, text_format=Person))
    server.require_person(parsed.output_parsed)


@check("openai: tools of responses are called, and take back their results", OPENAI_3, needs_tools=True)
def responses_tools(server):
    responses = server.client.responses
    response = responses.create(**response_fields(server, ABOUT_WEATHER, tools=[RESPONSES_TOOL]))
    with responses.stream(**response_fields(server, ABOUT_WEATHER, tools=[RESPONSES_TOOL])) as stream:
        streamed = list(stream)[-1].response
    require_equal(output_calls(streamed), output_calls(response), "streamed calls")
    server.require_calls(output_calls(response), SCRIPTED_CALLS)
    calls = [item for item in response.output if item.type == "function_call"]
    if response.status != "completed" or not calls:
        require(not server.scripted, f"no calls: {response}")
        return "no whole calls"
    results = [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": weather(json.loads(item.arguments).get("city")),
        }
        for item in calls
    ]
    ask = {"tools": [RESPONSES_TOOL]}
    again = responses.create(**response_fields(server, [*ABOUT_WEATHER, *response.output, *results], **ask))
    server.require_reply(again.output_text, REMEMBERS)
    from_stored = responses.create(**response_fields(server, results, previous_response_id=response.id, **ask))
    require_equal(from_stored.output_text, again.output_text, "what goes on from the stored response")


# The Agents SDK, as it is set up by itself.


@check("agents: a tool loop over responses", OPENAI_3, needs_tools=True)
def agents_responses_loop(server):
    import agents

    for goes_on_from_stored in (False, True):
        cities = []

        async def run(client, cities=cities, stored=goes_on_from_stored):
            agent = weather_agent(server, "OpenAIResponsesModel", client, cities)
            return await agents.Runner.run(agent, QUESTION, max_turns=MOST_TURNS, auto_previous_response_id=stored)

        with allowed_to_go_on(server, agents.MaxTurnsExceeded, agents.ModelBehaviorError):
            server.require_reply(server.asynchronously(run).final_output, KNOWS, REMEMBERS)
        server.require_asked(cities)


@check("agents: a streamed tool loop over responses", OPENAI_3, needs_tools=True)
def agents_responses_stream(server):
    import agents

    cities, deltas = [], []

    async def run(client):
        result = agents.Runner.run_streamed(
            weather_agent(server, "OpenAIResponsesModel", client, cities), QUESTION, max_turns=MOST_TURNS
        )
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                deltas.append(event.data.delta)
        return result

    with allowed_to_go_on(server, agents.MaxTurnsExceeded, agents.ModelBehaviorError):
        final = server.asynchronously(run).final_output
        server.require_reply(final, KNOWS, REMEMBERS)
        require("".join(deltas).endswith(final), f"streamed text {deltas}")
    return server.require_asked(cities)


@check("agents: an answer of a class over responses", OPENAI_3)
def agents_responses_class(server):
    import agents

    async def run(client):
        agent = agent_of(server, "OpenAIResponsesModel", client, output_type=Person)
        return await agents.Runner.run(agent, ABOUT_ADA[0]["content"], max_turns=1)

    with allowed_to_go_on(server, agents.ModelBehaviorError):
        server.require_person(server.asynchronously(run).final_output)
