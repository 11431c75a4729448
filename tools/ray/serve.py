"""Two replicas on Ray Serve: what they answer, that clients who leave cost nothing more, and what is lost when one is killed.

    pip install braidinfer "ray[serve]"
    python tools/ray/serve.py [--model MODEL] [--streams 64]

Streams run while first a replica is killed, then the server inside of another one (SIGKILL). The tables say how many streams ended
whole, were cut, or got an error, of those that ran and of those that were sent after. Exits with 1 if anything else is wrong.
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp
import ray
from ray import serve

from braidinfer.ray_serve import Server

BASE = "http://127.0.0.1:8000"
GREETING = [{"role": "user", "content": "Tell me a story about a dog."}]
# Long enough that streams run when a replica is killed.
STORY = 300
GREEDY = {"temperature": 0, "max_tokens": 16}
PATHS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/embeddings"}


class Watched(Server.func_or_class):
    """Says which process it is, and what became of its requests."""

    async def ends(self):
        """This process, its server's, and how many answers ended in which way."""
        answer = await self._send("GET", "/metrics")
        lines = (await answer.text()).splitlines()
        lines = [line for line in lines if line.startswith("braidinfer_requests_total{")]
        reasons = [line.split('finish_reason="')[1].split('"')[0] for line in lines]
        return os.getpid(), self._process.pid, {reason: int(line.split()[-1]) for reason, line in zip(reasons, lines)}


def require(condition, message):
    if not condition:
        raise SystemExit(f"FAILED: {message}")


def path_of(body):
    return next(path for field, path in PATHS.items() if field in body)


async def post(client, body):
    async with client.post(BASE + path_of(body), json=body) as response:
        return response.status, await response.json()


async def stream(client, body, begun=None):
    """Chunks of a stream, and how it ended."""
    chunks = []
    try:
        async with client.post(BASE + path_of(body), json={**body, "stream": True}) as response:
            if response.status != 200:
                return chunks, f"refused with {response.status}"
            async for line in response.content:
                line = line.strip()
                if line == b"data: [DONE]":
                    return chunks, "whole"
                if b'"error"' in line:
                    return chunks, "ended by an error in the stream"
                if line.startswith(b"data: "):
                    chunks.append(json.loads(line[6:]))
                    if begun:
                        begun.set()
    except (aiohttp.ClientError, ConnectionError) as error:
        return chunks, f"connection: {type(error).__name__}"
    return chunks, "cut in silence"


def text_of(choices):
    return "".join(
        choice.get("text") or (choice.get("message") or choice.get("delta", {})).get("content") or "" for choice in choices
    )


def merged(chunks):
    return text_of([choice for chunk in chunks for choice in chunk["choices"]])


async def check_answers(client, handle):
    """Whole answers, streams and those by the handle are the same."""
    for name, body, method in (
        ("chat", {**GREEDY, "messages": GREETING}, handle.chat),
        ("completion", {**GREEDY, "prompt": "Once upon a time"}, handle.complete),
    ):
        status, whole = await post(client, body)
        require(status == 200 and whole["usage"]["completion_tokens"] > 0, f"{name}: {status} {whole}")
        chunks, end = await stream(client, {**body, "stream_options": {"include_usage": True}})
        require(end == "whole" and chunks[-1]["usage"] == whole["usage"], f"streamed {name}: {end}, {chunks[-1:]}")
        reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        require(reasons == [whole["choices"][0]["finish_reason"]], f"streamed {name}: finish reasons {reasons}")
        by_handle = await method.remote(**body)
        streamed = [chunk async for chunk in handle.options(stream=True).stream.remote(**body)]
        texts = {text_of(whole["choices"]), merged(chunks), text_of(by_handle["choices"]), merged(streamed)}
        require(len(texts) == 1, f"{name}: texts differ: {texts}")
        print(f"{name}: whole, streamed and by the handle are the same; {reasons[0]}, {whole['usage']['total_tokens']} tokens")


async def check_others(client, handle):
    async with client.get(BASE + "/v1/models") as response:
        models = [model["id"] for model in (await response.json())["data"]]
    status, embedding = await post(client, {"input": "Once upon a time"})
    require(status == 200, f"embedding: {embedding}")
    size = len((await handle.embed.remote(input="Once upon a time"))["data"][0]["embedding"])
    require(len(embedding["data"][0]["embedding"]) == size, "embeddings differ in size")
    print(f"models {', '.join(models)}; an embedding of {size} numbers")


async def check_refusals(client, handle):
    for field, value in (("nonsense", 1), ("temperature", -1)):
        body = {**GREEDY, "messages": GREETING, field: value}
        for status, answer in (await post(client, body), await post(client, {**body, "stream": True})):
            named = status == 400 and field in answer["error"]["message"]
            require(named, f"{field}={value}: {status} {answer}")
        try:
            await handle.chat.remote(**body)
        except ValueError as error:
            require(field in str(error), f"{field} by the handle: {error}")
        else:
            require(False, f"{field}={value} is taken by the handle")
        print(f"{field}={value}: 400, {answer['error']['message']}")


async def replicas(handle, count):
    """Process, server and ends of each replica, once there are so many."""
    found = {}
    deadline = time.monotonic() + 180
    while len(found) < count:
        require(time.monotonic() < deadline, f"{len(found)} of {count} replicas answer")
        process, server, ends = await handle.ends.remote()
        found[process] = server, ends
    return found


async def aborted(handle):
    return sum(ends.get("abort", 0) for _, ends in (await replicas(handle, 2)).values())


# Longer than the two seconds in which the server notices who left before there is an answer.
LONG = {"prompt": "Once upon a time", "temperature": 1, "max_tokens": 400, "ignore_eos": True, "n": 64}


async def leave_stream(client, _):
    async with client.post(BASE + "/v1/completions", json={**LONG, "stream": True}) as response:
        await response.content.readline()
        response.close()


async def leave_answer(client, _):
    try:
        await asyncio.wait_for(post(client, LONG), 0.5)
    except asyncio.TimeoutError:
        return
    require(False, "an answer came before its client left")


async def leave_stream_of_handle(_, handle):
    response = handle.options(stream=True).stream.remote(**LONG)
    await response.__anext__()
    response.cancel()


async def check_leaving(client, handle):
    for leave in (leave_stream, leave_answer, leave_stream_of_handle):
        before = await aborted(handle)
        await leave(client, handle)
        started = time.monotonic()
        while (now := await aborted(handle)) == before:
            require(time.monotonic() < started + 20, f"{leave.__name__}: nothing was cancelled")
        print(f"{leave.__name__}: {now - before} answers cancelled after {time.monotonic() - started:.1f} s")


STATES = {True: "was streaming", False: "had not begun"}


def long_story(index):
    return {"prompt": f"Once upon a time {index}", "max_tokens": STORY, "ignore_eos": True, "temperature": 0}


async def check_streams(client, count):
    started = time.monotonic()
    done = await asyncio.gather(*(stream(client, long_story(index)) for index in range(count)))
    seconds = time.monotonic() - started
    require(all(end == "whole" for _, end in done), f"streams: {Counter(end for _, end in done)}")
    print(f"{count} streams at once: all whole, {STORY * count / seconds:.0f} tokens per second")
    return [merged(chunks) for chunks, _ in done]


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def wait_for_end(process):
    deadline = time.monotonic() + 10
    while is_running(process):
        require(time.monotonic() < deadline, f"process {process} runs on")
        await asyncio.sleep(0.05)


async def kill_midway(client, handle, texts, kills_server):
    """Kills a replica, or its server, while streams run. What ended whole must be what it is without that."""
    found = await replicas(handle, 2)
    replica, (server, _) = min(found.items())
    count = len(texts)
    begun = [asyncio.Event() for _ in range(count)]
    streams = [asyncio.create_task(stream(client, long_story(index), begun[index])) for index in range(count)]
    await asyncio.gather(*(event.wait() for event in begun[: count // 4]))
    states = ["had ended before" if task.done() else STATES[event.is_set()] for task, event in zip(streams, begun)]
    os.kill(server if kills_server else replica, signal.SIGKILL)
    after = [asyncio.create_task(stream(client, long_story(index))) for index in range(count // 2)]
    ends, ends_after = await asyncio.gather(*streams), await asyncio.gather(*after)
    for answers in (ends, ends_after):
        wrong = [index for index, (chunks, end) in enumerate(answers) if end == "whole" and merged(chunks) != texts[index]]
        require(not wrong, f"other texts than before: {wrong}")
    await wait_for_end(server)
    await wait_for_end(replica)
    print(f"killed {'the server of a replica' if kills_server else 'a replica'}:")
    rows = Counter((state, end) for state, (_, end) in zip(states, ends)) + Counter(
        ("was sent after", end) for _, end in ends_after
    )
    for (state, end), number in sorted(rows.items()):
        print(f"  {number:3} {state:18}{end}")
    started = time.monotonic()
    await asyncio.gather(*(replicas(handle, 2), check_streams(client, 8)))
    print(f"  two replicas again, {time.monotonic() - started:.1f} s later")


async def drive(handle, count):
    unlimited = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=unlimited) as client:
        await check_answers(client, handle)
        await check_others(client, handle)
        await check_refusals(client, handle)
        await check_leaving(client, handle)
        texts = await check_streams(client, count)
        for kills_server in (False, True):
            await kill_midway(client, handle, texts, kills_server)
        return [server for server, _ in (await replicas(handle, 2)).values()]


async def check_end(servers):
    for server in servers:
        await wait_for_end(server)
    print("after the shutdown no server runs on")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--streams", type=int, default=64)
    arguments = parser.parse_args()
    ray.init(num_cpus=4, log_to_driver=False)
    deployment = serve.deployment(Watched, name="Server", num_replicas=2, max_ongoing_requests=64)
    handle = serve.run(deployment.bind(arguments.model))
    try:
        servers = asyncio.run(drive(handle, arguments.streams))
    finally:
        serve.shutdown()
    asyncio.run(check_end(servers))


if __name__ == "__main__":
    main()
