"""What the checks of all clients share: the server under test, its model, and what is expected of it."""

import asyncio
import contextlib
import json
import traceback
import urllib.request
from collections import Counter
from dataclasses import dataclass

import openai
from pydantic import BaseModel, ConfigDict, Field

GREETING = [{"role": "user", "content": "Say hello to me."}]
# The cities beside Rome are of the scripted model.
QUESTION = "What is the weather in Paris and in Oslo? Use the tool."
ABOUT_WEATHER = [{"role": "user", "content": QUESTION}]
ABOUT_ROME = [{"role": "user", "content": "What is the weather in Rome?"}]
ABOUT_ADA = [{"role": "user", "content": "Ada is 36 years old. Describe her as JSON."}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather in a city.", "parameters": CITY},
}
MOST_TOKENS = 200
MOST_TURNS = 5
# What the scripted model says.
SCRIPTED_GREETING = ("A greeting will do.", "Hello! How can I help?")
SCRIPTED_CALLS = [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Oslo"})]
SCRIPTED_ROME = [("get_weather", {"city": "Rome"})]
# Where results came back with the calls they belong to, and where the reasoning before the calls came back, too.
KNOWS = "It is 18 degrees in Paris and in Oslo."
REMEMBERS = "Plainly 18 degrees, here and there."

EVERY, OPENAI_2, OPENAI_3 = "every", "openai-2", "openai-3"
# The packages of the clients that names of checks begin with.
PACKAGES = {
    "openai": "openai",
    "agents": "openai-agents",
    "anthropic": "anthropic",
    "ollama": "ollama",
    "langchain": "langchain-openai",
    "pydantic-ai": "pydantic-ai-slim",
    "llm": "llm",
    "llama-index": "llama-index-llms-openai-like",
    "instructor": "instructor",
}
CHECKS = []


@dataclass
class Check:
    name: str
    run: object
    environment: str
    needs_tools: bool


def check(name, environment=EVERY, needs_tools=False):
    def register(run):
        CHECKS.append(Check(name, run, environment, needs_tools))
        return run

    return register


class Person(BaseModel):
    """A person, in a form that any model comes to the end of."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def require(condition, message):
    if not condition:
        raise AssertionError(message)


def require_equal(found, expected, what):
    require(found == expected, f"{what}: expected {expected!r}, found {found!r}")


def weather(city):
    return f"18 degrees in {city}"


def capabilities(address, model):
    """What the server says that a model can."""
    body = json.dumps({"model": model}).encode()
    request = urllib.request.Request(f"{address}/api/show", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["capabilities"]


class Server:
    """The server under test, as the clients see it."""

    def __init__(self, address, scripted):
        self.address = address.rstrip("/")
        self.base_url = f"{self.address}/v1"
        self.scripted = scripted
        # A retry would hide the first answer.
        self.settings = {"base_url": self.base_url, "api_key": "unused", "max_retries": 0, "timeout": 120}
        self.client = openai.OpenAI(**self.settings)
        self.model = self.client.models.list().data[0].id
        self.has_tools = scripted or self.takes_tools()

    def takes_tools(self):
        """Whether the model's template has a place for tools. Where it has none, they are described in a text, which small models
        may not follow."""
        return "tools" in capabilities(self.address, self.model)

    def fields(self, messages, **more):
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": MOST_TOKENS, **more}

    def chat(self, messages, **more):
        return self.client.chat.completions.create(**self.fields(messages, **more))

    def events(self, messages, **more):
        """Events of the stream manager, and the completion that it puts together."""
        with self.client.chat.completions.stream(**self.fields(messages, **more)) as stream:
            return list(stream), stream.get_final_completion()

    def asynchronously(self, ask):
        """What is answered to it, given a client."""

        async def with_client():
            async with openai.AsyncOpenAI(**self.settings) as client:
                return await ask(client)

        return asyncio.run(with_client())

    def require_reply(self, found, *expected):
        """The text of an answer: one of these with a scripted model, any otherwise."""
        require(isinstance(found, str), f"text {found!r}")
        require(not self.scripted or found in expected, f"text: expected one of {expected!r}, found {found!r}")

    def require_calls(self, found, expected):
        """Calls as (name, arguments): these with a scripted model, any of the tool otherwise."""
        if self.scripted:
            require_equal(found, expected, "calls")
        for name, arguments in found:
            require_equal(name, "get_weather", "tool")
            require(isinstance(arguments, dict), f"arguments {arguments!r}")

    def require_asked(self, cities):
        """The cities that a client called the tool for, as the model told it to."""
        if self.scripted:
            require_equal(Counter(cities), Counter(["Paris", "Oslo"]), "calls that were run")
        return f"{len(cities)} calls" if cities else "no calls"

    def require_person(self, found):
        require(isinstance(found, Person), f"no person: {found!r}")
        if self.scripted:
            require_equal(found.model_dump(), {"name": "Ada", "age": 36}, "person")


@contextlib.contextmanager
def allowed_to_go_on(server, *errors):
    """A real model may go on and on, or call tools in a wrong way, so that the client stops it."""
    try:
        yield
    except errors:
        require(not server.scripted, f"the client stopped the model: {traceback.format_exc()}")


def agent_of(server, kind, client, **more):
    """An agent of the Agents SDK, with this class of its models."""
    import agents

    agents.set_tracing_disabled(True)
    settings = agents.ModelSettings(temperature=0, max_tokens=MOST_TOKENS)
    model = getattr(agents, kind)(server.model, client)
    return agents.Agent("reporter", model=model, model_settings=settings, **more)


def weather_agent(server, kind, client, cities):
    """One with a tool, which notes the cities that it was called for."""
    import agents

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        cities.append(city)
        return weather(city)

    return agent_of(server, kind, client, tools=[get_weather])
