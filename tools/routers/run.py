"""Two workers behind a router: what it passes on unchanged, and what is lost when a worker is killed.

    pip install httpx smg vllm-router
    python tools/routers/run.py smg --braidinfer target/release/braidinfer [--model MODEL] [--streams 200]
    python tools/routers/run.py vllm-router --braidinfer ..

Every answer through the router is compared with the worker's own. Then streams run, one worker is killed midway, and the table says
how many streams ended whole, were cut, or got an error, of those that had begun and of those sent after. With `--signal TERM` the
worker is asked to end, and finishes what it has begun.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
GREEDY = {"model": "demo", "temperature": 0, "max_tokens": 16}
REQUESTS = {
    "chat": ("/v1/chat/completions", {**GREEDY, "messages": MESSAGES}),
    "chat, streamed": ("/v1/chat/completions", {**GREEDY, "messages": MESSAGES, "stream": True}),
    "completion": ("/v1/completions", {**GREEDY, "prompt": "Once upon a time"}),
    "completion, streamed": ("/v1/completions", {**GREEDY, "prompt": "Once upon a time", "stream": True}),
    "tools offered": ("/v1/chat/completions", {**GREEDY, "messages": MESSAGES, "tools": TOOLS}),
    "JSON schema": (
        "/v1/chat/completions",
        {**GREEDY, "messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {
            "name": "age", "schema": {"type": "object", "properties": {"age": {"type": "integer", "maximum": 9}},
                                      "required": ["age"], "additionalProperties": False}}}},
    ),
    "embedding": ("/v1/embeddings", {"model": "demo", "input": "Once upon a time"}),
    "a wrong field": ("/v1/chat/completions", {**GREEDY, "messages": MESSAGES, "temperature": -1}),
}  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{url}: nothing answers; the process ended with {process.poll()}")


def worker(arguments, log):
    port = free_port()
    command = [arguments.braidinfer, "serve", *([arguments.model] if arguments.model else []), "--port", str(port)]
    command += ["--served-model-name", "demo", "--max-sequences", "32"]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for(f"http://127.0.0.1:{port}/ready", process)
    return process, f"http://127.0.0.1:{port}"


def router(arguments, workers, log):
    port = free_port()
    program = [str(Path(sys.executable).with_name(arguments.router))]
    command = {"smg": [*program, "launch"], "vllm-router": program}[arguments.router]
    command += ["--worker-urls", *workers, "--port", str(port), "--host", "127.0.0.1", "--policy", arguments.policy]
    command += ["--prometheus-port", str(free_port())]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for(f"http://127.0.0.1:{port}/health", process)
    return process, f"http://127.0.0.1:{port}"


def content(response):
    """What an answer says, without ids and times."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        chunks = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        whole = chunks[-1:] == ["[DONE]"]
        return whole, [chunk["choices"] for chunk in map(json.loads, chunks[:-1] if whole else chunks)]
    body = response.json()
    return response.status_code, body.get("choices") or body.get("data") or body.get("error")


def compare(client, base, own):
    rows = {}
    for name, (path, body) in REQUESTS.items():
        direct, routed = (client.post(url + path, json=body) for url in (own, base))
        same = content(direct) == content(routed)
        rows[name] = "the same" if same else f"differs: {routed.status_code} {routed.text[:200]}"
    for path in ("/health", "/v1/models"):
        rows[path] = str(client.get(base + path).status_code)
    return rows


async def one_stream(client, base, index, begun):
    body = {**GREEDY, "prompt": f"Once upon a time {index}", "max_tokens": 100, "ignore_eos": True, "stream": True}
    tokens = 0
    try:
        async with client.stream("POST", base + "/v1/completions", json=body, timeout=300) as response:
            if response.status_code != 200:
                return f"refused with {response.status_code}"
            async for line in response.aiter_lines():
                begun.set()
                if line == "data: [DONE]":
                    return "whole"
                if line.startswith("data: ") and '"error"' in line:
                    return "ended by an error in the stream"
                tokens += line.startswith("data: ")
    except httpx.TransportError as error:
        return f"connection: {type(error).__name__}"
    return "cut in silence"


async def kill_midway(base, victim, number, count):
    """Ends of streams that had begun when a worker was killed, and of those that were sent after it."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits) as client:
        begun = [asyncio.Event() for _ in range(count)]
        streams = [asyncio.create_task(one_stream(client, base, index, begun[index])) for index in range(count)]
        half = begun[: count // 2]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in half[:16])), 300)
        os.kill(victim.pid, number)
        had_begun = [event.is_set() for event in begun]
        after = [asyncio.create_task(one_stream(client, base, count + index, asyncio.Event())) for index in range(count // 4)]
        ends = await asyncio.gather(*streams)
        later = await asyncio.gather(*after)
    groups = {"had begun": [], "were waiting": [], "were sent after": later}
    for end, was in zip(ends, had_begun):
        groups["had begun" if was else "were waiting"].append(end)
    return {name: Counter(ends) for name, ends in groups.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router", choices=["smg", "vllm-router"])
    parser.add_argument("--braidinfer", default="braidinfer")
    parser.add_argument("--model")
    parser.add_argument("--policy", default="cache_aware")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--log", default="routers.log")
    arguments = parser.parse_args()
    processes = []
    with open(arguments.log, "w") as log:
        try:
            workers = [worker(arguments, log) for _ in range(2)]
            processes += [process for process, _ in workers]
            routing, base = router(arguments, [url for _, url in workers], log)
            processes.append(routing)
            with httpx.Client(timeout=120) as client:
                for name, row in compare(client, base, workers[0][1]).items():
                    print(f"{name:24}{row}")
            number = getattr(signal, f"SIG{arguments.signal}")
            for name, ends in asyncio.run(kill_midway(base, workers[1][0], number, arguments.streams)).items():
                print(f"{name:24}" + ", ".join(f"{count} {end}" for end, count in ends.most_common()))
        finally:
            for process in processes:
                process.kill()


if __name__ == "__main__":
    main()
