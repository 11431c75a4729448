"""Speed of OpenAI-compatible servers under load, side by side.

    python load.py NAME=http://127.0.0.1:8080/v1 NAME=http://.. [--clients 1,8,32] [--rounds 3]

Every client asks for completions of random token ids, one after the other, streamed, and measures the time to the first
token and the rate. Servers take turns within each round, so that what disturbs the machine disturbs all alike. Only the
standard library is used.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from urllib.parse import urlsplit


class Server:
    def __init__(self, text):
        self.name, address = text.split("=", 1)
        self.url = urlsplit(address)
        self.model = self.get("/models")["data"][0]["id"]

    def connect(self):
        return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=1200)

    def get(self, path):
        connection = self.connect()
        connection.request("GET", self.url.path + path)
        return json.load(connection.getresponse())

    def stream(self, prompt, tokens):
        """Seconds from the request to each part that has text or is a token."""
        connection = self.connect()
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0,
                "ignore_eos": True, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        connection.request("POST", self.url.path + "/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: {answer.status}: {answer.read()[:300]}")
        times, written = [], None
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            part = json.loads(line[6:])
            if part.get("error"):
                raise RuntimeError(f"{self.name}: {part['error']}")
            if part.get("usage"):
                written = part["usage"]["completion_tokens"]
            if part.get("choices"):
                times.append(time.perf_counter() - began)
        connection.close()
        if written != tokens:
            raise RuntimeError(f"{self.name}: expected {tokens} tokens, found {written}")
        return times, time.perf_counter() - began


def prompt_of(rng, length, vocab):
    return [rng.randrange(3, vocab) for _ in range(length)]


def saturate(server, clients, requests, args):
    """All clients at once, each with its own requests."""
    first, failures = [], []

    def client(index):
        # Tokenizers and caches see other prompts in every run.
        rng = random.Random()
        try:
            for _ in range(requests):
                times, _ = server.stream(prompt_of(rng, args.prompt_tokens, args.vocab), args.tokens)
                first.append(times[0])
        except Exception as error:  # A thread's failure must reach the caller.
            failures.append(error)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if failures:
        raise failures[0]
    total = clients * requests
    ordered = sorted(first)
    return {
        "requests_s": total / took,
        "tok_s": total * args.tokens / took,
        "first_p50": statistics.median(ordered),
        "first_p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


def beside_long_prompt(server, args):
    """Rate of streams that are being written, without and with a long prompt being read."""
    rng = random.Random()
    stamps = []

    def writer():
        times, _ = server.stream(prompt_of(rng, 16, args.vocab), args.beside_tokens)
        stamps.append([began + seconds for seconds in times])

    began = time.perf_counter()
    threads = [threading.Thread(target=writer) for _ in range(args.beside)]
    for thread in threads:
        thread.start()
    time.sleep(args.settle)
    long_began = time.perf_counter()
    times, _ = server.stream(prompt_of(rng, args.long_tokens, args.vocab), 1)
    long_ended = long_began + times[0]
    for thread in threads:
        thread.join()
    everything = [stamp for stream in stamps for stamp in stream]
    written = min(stream[-1] for stream in stamps)
    if written < long_ended:
        raise RuntimeError(f"{server.name}: the streams ended before the long prompt was read: more --beside-tokens")
    quiet = [stamp for stamp in everything if long_began - args.settle / 2 < stamp < long_began]
    beside = [stamp for stamp in everything if long_began < stamp < long_ended]
    return {
        "quiet_tok_s": len(quiet) / (args.settle / 2),
        "beside_tok_s": len(beside) / (long_ended - long_began),
        "long_first_s": times[0],
    }


def shared_prefix(server, args):
    """Time to the first token of a prompt, and of another one that begins alike."""
    rng = random.Random()
    prefix = prompt_of(rng, 1024, args.vocab)
    first, _ = server.stream(prefix + prompt_of(rng, 16, args.vocab), 1)
    second, _ = server.stream(prefix + prompt_of(rng, 16, args.vocab), 1)
    return {"first_s": first[0], "second_s": second[0], "ratio": first[0] / second[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", type=Server, metavar="NAME=ADDRESS")
    parser.add_argument("--clients", default="1,8,32", help="how many at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="of each client in each round")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--long-tokens", type=int, default=0, help="length of a prompt that is read beside streams; 0: none")
    parser.add_argument("--beside", type=int, default=8, help="streams beside it")
    parser.add_argument("--beside-tokens", type=int, default=1500)
    parser.add_argument("--settle", type=float, default=8.0, help="seconds before the long prompt comes")
    parser.add_argument("--prefix", action="store_true", help="also measure a shared prefix")
    args = parser.parse_args()
    cases = [(f"{clients} clients", lambda server, clients=clients: saturate(server, clients, args.requests, args))
             for clients in map(int, args.clients.split(",")) if clients > 0]
    if args.long_tokens:
        cases.append(("long prompt", lambda server: beside_long_prompt(server, args)))
    if args.prefix:
        cases.append(("shared prefix", lambda server: shared_prefix(server, args)))
    found = {}
    for server in args.servers:
        server.stream(prompt_of(random.Random(), 64, args.vocab), 4)
    for _ in range(args.rounds):
        for name, case in cases:
            for server in args.servers:
                found.setdefault((name, server.name), []).append(case(server))
    for (name, server), runs in found.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"{name:14} {server:12} " + "  ".join(f"{key} {value:.3f}" for key, value in medians.items()))


main()
