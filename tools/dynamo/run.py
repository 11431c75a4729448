"""Two workers behind the frontend of NVIDIA Dynamo: what comes back unchanged, and what is lost when a worker is killed.

    pip install ai-dynamo httpx
    python tools/dynamo/run.py [--model MODEL] [--streams 200] [--signal KILL]

Needs neither etcd nor NATS: the processes find each other by files. Greedy answers through the frontend are compared with those of
`braidinfer.LLM`. Then streams run, one worker is killed midway, and the table says how many streams ended whole, with the same text as
without, of those that had begun and of those sent after; and how many requests the frontend gave to another worker. With `--signal
TERM`, the worker is asked to end, for which `DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS` (5) gives it time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from braidinfer import LLM

DEMO_MODEL = Path(__file__).parents[2] / "crates/braidinfer-cli/demo-model"
STORY = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
# Each with what it is compared with: the same parameters, as `braidinfer.LLM` knows them.
COMPLETIONS: dict[str, dict[str, Any]] = {
    "completion": GREEDY,
    "to its end": {"temperature": 0, "max_tokens": 400},
    "max_tokens": {"temperature": 0, "max_tokens": 3},
    "stop": {**GREEDY, "stop": [" who", "One"]},
    "stop_token_ids": {**GREEDY, "stop_token_ids": [349]},
    "ignore_eos": {"temperature": 0, "max_tokens": 300, "ignore_eos": True},
    "min_tokens": {"temperature": 0, "max_tokens": 200, "min_tokens": 170},
    "repetition_penalty": {**GREEDY, "repetition_penalty": 1.5},
    "frequency_penalty": {**GREEDY, "frequency_penalty": 1.5},
    "seed": {"seed": 7, "temperature": 1.25, "max_tokens": 60},
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "n": ("completions", {"prompt": STORY, "n": 2}),
    "guided_decoding": ("chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}),
    "cache_salt": ("chat/completions", {"messages": MESSAGES, "cache_salt": "mine"}),
    "prompt": ("completions", {"prompt": STORY * 300}),
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(stack: contextlib.ExitStack, log, folder: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "DYN_FILE_KV": folder, "DYN_DISCOVERY_BACKEND": "file", "DYN_LOG": "info"}
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=log, env=environment)
    stack.callback(process.kill)
    return process


def wait_for(base: str, workers: int, processes: list[subprocess.Popen]) -> None:
    """Waits until the frontend knows the model and so many workers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        with contextlib.suppress(httpx.TransportError):
            instances = httpx.get(base + "/health").json().get("instances", [])
            known = {instance["instance_id"] for instance in instances}
            if len(known) == workers and httpx.get(base + "/v1/models").json()["data"]:
                return
        time.sleep(0.2)
    raise SystemExit(f"{base}: not ready; the processes ended with {[process.poll() for process in processes]}")


def streamed(response: httpx.Response) -> tuple[str, str | None, bool]:
    """The text of a stream, why it ended, and whether it ended as it should."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    text, reason = "", None
    for line in lines[:-1]:
        for choice in json.loads(line).get("choices", []):
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            reason = choice.get("finish_reason") or reason
    return text, reason, lines[-1:] == ["[DONE]"]


def compare(client: httpx.Client, llm: LLM) -> dict[str, str]:
    rows = {}

    def check(name, path, body, expected):
        whole = client.post(path, json={"model": "demo", **body})
        stream = client.post(path, json={"model": "demo", **body, "stream": True})
        rows[name] = _difference(whole, stream, expected)

    for name, params in COMPLETIONS.items():
        check(name, "/v1/completions", {"prompt": STORY, **params}, llm.generate(STORY, params))
    check("chat", "/v1/chat/completions", {"messages": MESSAGES, **GREEDY}, llm.chat(MESSAGES, GREEDY))
    for name, (path, body) in REFUSED.items():
        response = client.post(f"/v1/{path}", json={"model": "demo", "max_tokens": 4, **body})
        named = response.status_code == 400 and name in response.text
        rows[f"{name} refused"] = "by name" if named else f"no: {response.status_code} {response.text[:200]}"
    return rows


def _difference(whole: httpx.Response, stream: httpx.Response, expected) -> str:
    if not whole.is_success:
        return f"failed: {whole.status_code} {whole.text[:200]}"
    choice = whole.json()["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    found = (text, choice["finish_reason"], whole.json()["usage"]["completion_tokens"])
    wanted = (expected.text, expected.finish_reason, len(expected.token_ids))
    if found != wanted:
        return f"differs: {found}, expected {wanted}"
    if streamed(stream) != (expected.text, expected.finish_reason, True):
        return f"differs when streamed: {streamed(stream)}, expected {wanted}"
    return "the same"


async def one_stream(client: httpx.AsyncClient, index: int, begun: asyncio.Event) -> tuple[str, str]:
    """How a stream ended, and its text. Like OpenAI's own client, it asks up to two more times if the server has failed."""
    for tries in range(3):
        end, text = await _once(client, index, begun)
        if not end.startswith("refused with 5"):
            break
    return end if tries == 0 else f"{end} when asked again", text


async def _once(client: httpx.AsyncClient, index: int, begun: asyncio.Event) -> tuple[str, str]:
    prompt = f"{STORY} {index}"
    body = {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 100, "ignore_eos": True, "stream": True}
    text = ""
    try:
        async with client.stream("POST", "/v1/completions", json=body, timeout=300) as response:
            if response.status_code != 200:
                return f"refused with {response.status_code}", text
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "whole", text
                if line.startswith("data: "):
                    begun.set()
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        return f"ended by an error: {chunk['error'].get('message', '')[:120]}", text
                    text += "".join(choice["text"] for choice in chunk["choices"])
    except httpx.TransportError as error:
        return f"connection: {type(error).__name__}", text
    return "cut in silence", text


async def streams(base: str, count: int, kill=None) -> tuple[list[tuple[str, str]], list[bool]]:
    """Ends of streams, and which had begun when `kill` was called; a quarter more are sent after that."""
    async with httpx.AsyncClient(base_url=base, limits=httpx.Limits(max_connections=None)) as client:
        begun = [asyncio.Event() for _ in range(count + count // 4)]
        running = [asyncio.create_task(one_stream(client, index, begun[index])) for index in range(count)]
        had_begun = [False] * count
        if kill is not None:
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun[: min(32, count)])), 300)
            kill()
            had_begun = [event.is_set() for event in begun[:count]]
        running += [asyncio.create_task(one_stream(client, index, begun[index])) for index in range(count, len(begun))]
        return await asyncio.gather(*running), had_begun


def repeat_prompts(base: str) -> None:
    """Sends prompts three times each, and says how often the router knew a worker that had read a prompt before."""
    metrics = ("router_kv_hit_rate_count", "router_kv_hit_rate_sum")
    before = [metric(base, f"dynamo_component_{name}") for name in metrics]
    for _ in range(3):
        for number in range(6):
            prompt = f"Story {number}. " + "Once upon a time there was a dog named Tom. " * 8
            body = {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 4}
            httpx.post(base + "/v1/completions", json=body, timeout=60).raise_for_status()
    count, hits = (metric(base, f"dynamo_component_{name}") - old for name, old in zip(metrics, before))
    stored = metric(base, "dynamo_component_kv_cache_events_applied", 'event_type="stored",status="ok"')
    print(f"{'prefixes':24}{hits:.1f} of {count:.0f} prompts were known to the router, by {stored:.0f} batches of events")


def metric(base: str, name: str, labels: str = "") -> float:
    lines = httpx.get(base + "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{") and labels in line)


def migrated(base: str) -> Counter[str]:
    """How many requests the frontend has given to another worker, by kind."""
    counts: Counter[str] = Counter()
    for line in httpx.get(base + "/metrics").text.splitlines():
        if match := re.match(r'dynamo_frontend_model_migration_total\{.*migration_type="(\w+)".*\} (\d+)', line):
            counts[match[1]] += int(match[2])
    return counts


def table(undisturbed, disturbed, had_begun) -> tuple[dict[str, Counter], bool]:
    groups: dict[str, Counter] = {"had begun": Counter(), "were waiting": Counter(), "were sent after": Counter()}
    for index, ((_, expected), (end, text)) in enumerate(zip(undisturbed, disturbed)):
        late = index >= len(had_begun)
        group = "were sent after" if late else "had begun" if had_begun[index] else "were waiting"
        same = "same text" if text == expected else "another text"
        groups[group][f"{end}, {same}" if end.startswith("whole") else end] += 1
    ends = {end for group in groups.values() for end in group}
    return groups, all(end.startswith("whole") and end.endswith("same text") for end in ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO_MODEL), help="a directory in the layout of the Hugging Face Hub")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--migration-limit", type=int, default=3)
    parser.add_argument(
        "--router-mode", default="round-robin", help="of the frontend; `kv` chooses by what workers have read before"
    )
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--log", default="dynamo.log")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(arguments.log, "w"))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        limit = ["--migration-limit", str(arguments.migration_limit), "--router-mode", arguments.router_mode]
        worker = ["braidinfer.dynamo", arguments.model, "--served-model-name", "demo", "--max-sequences", "32"]
        processes = [start(stack, log, folder, "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), *limit)]
        processes += [start(stack, log, folder, *worker) for _ in range(2)]
        wait_for(base, 2, processes)
        with httpx.Client(base_url=base, timeout=120) as client, LLM(arguments.model) as llm:
            rows = compare(client, llm)
        for name, row in rows.items():
            print(f"{name:24}{row}")
        if arguments.router_mode == "kv":
            repeat_prompts(base)
        before = migrated(base)
        undisturbed, _ = asyncio.run(streams(base, arguments.streams))
        number = getattr(signal, f"SIG{arguments.signal}")
        disturbed, had_begun = asyncio.run(streams(base, arguments.streams, lambda: os.kill(processes[2].pid, number)))
        groups, is_good = table(undisturbed, disturbed, had_begun)
        for name, ends in groups.items():
            print(f"{name:24}" + ", ".join(f"{count} {end}" for end, count in ends.most_common()))
        given = migrated(base) - before
        print(
            f"{'given to another worker':24}{sum(given.values())}: " + ", ".join(f"{count} {kind}" for kind, count in given.items())
        )
        if not is_good or any(row not in ("the same", "by name") for row in rows.values()):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
