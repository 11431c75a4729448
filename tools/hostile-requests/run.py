"""Hostile requests beside honest ones: does anything that one client does reach another?

    python run.py PROGRAM MODEL [--requests 10000] [--seed 1]
    python run.py PROGRAM MODEL --minutes 10 [--honest 24] [--hostile 4]
    python run.py PROGRAM MODEL --kv-cache-tokens 32768 ...

Starts `PROGRAM serve MODEL`. Honest clients ask a fixed set of questions, whose answers alone are known; first without, then
with hostile clients beside them, which send what generator.py makes. Every client has a loopback address of its own. Fails if
the server ends, answers with a 5xx, or says anything else to an honest client than it says alone; prints times, and the memory
before, at most and a minute after. Options that are not known here are given to the server. The room for keys and values fills
up over time and stays; with `--kv-cache-tokens` it is filled before memory is looked at first. Only the standard library is
used.
"""

import argparse
import collections
import http.client
import json
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import generator

QUESTIONS = 12
TOKENS = 32
# How long a client waits for a part of an answer before it is a failure.
TIMEOUT = 300
# Hostile requests that may ask for hours of work: their clients leave after this time.
ENDLESS = {"prompts", "a long prompt", "embeddings"}
PATIENCE = 60


class Server:
    def __init__(self, program, model, more):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)
        command = [program, "serve", *([model] if model != "demo" else []), "--port", "0", "--log-format", "none", *more]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=subprocess.DEVNULL)
        self.address = None
        while self.address is None:
            if self.process.poll() is not None:
                sys.exit(f"the server did not start: {open(self.log.name).read()}")
            found = re.search(r"is served at http://(127\.0\.0\.1):(\d+)", open(self.log.name).read())
            if found:
                self.address = (found[1], int(found[2]))
            time.sleep(0.1)

    def memory(self):
        """Resident MiB of the server, and of it with its workers."""
        own = resident(self.process.pid)
        return own, own + sum(resident(pid) for pid in children(self.process.pid))

    def ask(self, path, body, client=1, timeout=TIMEOUT):
        """Status, text, and seconds to the first part and to the end."""
        connection = http.client.HTTPConnection(*self.address, timeout=timeout, source_address=(f"127.0.1.{client}", 0))
        began = time.perf_counter()
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            first = answer.readline()
            # Comments keep a connection alive while there is nothing to say.
            while first.strip() == b"" and not answer.isclosed() or first.startswith(b":"):
                first = answer.readline()
            to_first = time.perf_counter() - began
            text = first + answer.read()
            return answer.status, text.decode("utf-8", "replace"), to_first, time.perf_counter() - began
        finally:
            connection.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        if code != 0:
            sys.exit(f"the server ended with {code}: {open(self.log.name).read()[-3000:]}")


def resident(pid):
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:  # It has ended.
        return 0


def children(parent):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(pid))
        except OSError:
            pass
    return found


def questions():
    """Prompts of several lengths; some answers have a form."""
    rng = random.Random(7)
    asked = []
    for index in range(QUESTIONS):
        body = {"prompt": [rng.randint(5, 250) for _ in range(rng.choice([8, 30, 120]))], "max_tokens": TOKENS,
                "ignore_eos": True, "seed": index, "temperature": rng.choice([0, 1]), "stream": True}
        if index % 4 == 0:
            body["structured_outputs"] = {"regex": f"[a-z{index}]{{40}}"}
        asked.append(body)
    return asked


def said(text):
    """What a stream says, without ids and times."""
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    if any("error" in part for part in parts):
        return text[-500:]
    choices = [part["choices"][0] for part in parts if part["choices"]]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def fill(server, tokens):
    """Asks until keys and values of so many tokens were stored."""
    rng, length = random.Random(3), 200
    for _ in range(0, tokens + 2 * length, length):
        server.ask("/v1/completions", {"prompt": [rng.randint(5, 250) for _ in range(length)], "max_tokens": 1})


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, server, answers, kinds=None):
        self.server, self.answers, self.kinds_sent = server, answers, kinds
        self.stopping, self.lock = threading.Event(), threading.Lock()
        self.first, self.whole, self.faults, self.longest = [], [], [], (0, 0, 0, "")
        self.statuses, self.kinds = collections.Counter(), collections.Counter()
        self.slowest = collections.defaultdict(float)

    def honest(self, client):
        rng, asked = random.Random(client), questions()
        while not self.stopping.is_set():
            index = rng.randrange(len(asked))
            try:
                status, text, first, whole = self.server.ask("/v1/completions", asked[index], client)
                fault = None if status == 200 and said(text) == self.answers[index] else f"honest {index}: {status} {text[:300]!r} ... {text[-300:]!r}"
            except (OSError, http.client.HTTPException) as error:
                fault, first, whole = f"honest {index}: {error!r}", TIMEOUT, TIMEOUT
            with self.lock:
                self.first.append(first)
                self.whole.append(whole)
                self.longest = max(self.longest, (whole, first, index, time.strftime("%T")))
                if fault:
                    self.faults.append(fault)

    def hostile(self, client, seed, most=None):
        rng = random.Random(seed)
        while not self.stopping.is_set() and (most is None or most() > 0):
            kind, path, body = generator.request(rng, self.kinds_sent)
            # Some leave before the answer is there.
            leaves = kind in ENDLESS or rng.random() < 0.05
            patience = TIMEOUT if not leaves else PATIENCE if kind in ENDLESS else rng.uniform(0.05, 2)
            began = time.perf_counter()
            try:
                status, text, _, _ = self.server.ask(path, body, client, timeout=patience)
            except (OSError, http.client.HTTPException) as error:
                status, text = ("left" if leaves else "cut"), repr(error)
            with self.lock:
                self.statuses[status] += 1
                self.kinds[kind] += 1
                self.slowest[kind] = max(self.slowest[kind], time.perf_counter() - began)
                if status == "cut" or (isinstance(status, int) and status >= 500) or '"server_error"' in text:
                    self.faults.append(f"hostile {kind} (seed {seed}): {status} {text[-400:]} to {json.dumps(body)[:400]}")

    def run(self, honest, hostile, seconds=None, requests=None, seed=1):
        left = [requests or 0]

        def most():
            with self.lock:
                left[0] -= 1
                return left[0] + 1

        threads = [threading.Thread(target=self.honest, args=(client + 1,)) for client in range(honest)]
        foes = [threading.Thread(target=self.hostile, args=(100 + client, 1000 * seed + client, most if requests else None))
                for client in range(hostile)]
        most_memory, began = [0, 0], (time.time(), time.process_time())
        for thread in threads + foes:
            thread.start()
        end = time.time() + (seconds or 10**9)
        while time.time() < end and (not requests or any(foe.is_alive() for foe in foes)):
            time.sleep(0.5)
            if self.server.process.poll() is not None:
                break
            most_memory = [max(pair) for pair in zip(most_memory, self.server.memory())]
        self.stopping.set()
        for thread in threads + foes:
            thread.join()
        # What the clients take from the server.
        self.cores = (time.process_time() - began[1]) / (time.time() - began[0])
        return most_memory


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def times(name, load):
    print(f"{name}: {len(load.first)} honest answers; first token median {1000 * statistics.median(load.first):.0f} ms, "
          f"99 % {1000 * percentile(load.first, 0.99):.0f} ms, most {1000 * max(load.first):.0f} ms; whole median "
          f"{1000 * statistics.median(load.whole):.0f} ms, 99 % {1000 * percentile(load.whole, 0.99):.0f} ms, most {1000 * max(load.whole):.0f} ms (question "
          f"{load.longest[2]}, first token after {1000 * load.longest[1]:.0f} ms); the clients took {load.cores:.2f} cores", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model", help="a model, or `demo` for the built-in one")
    parser.add_argument("--requests", type=int, help="hostile requests in all")
    parser.add_argument("--minutes", type=float, help="how long hostile clients ask")
    parser.add_argument("--honest", type=int, default=4)
    parser.add_argument("--hostile", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", help="kinds of hostile requests, with commas between them; all if left out")
    parser.add_argument("--rest", type=float, default=60, help="seconds until memory is looked at again")
    parser.add_argument("--kv-cache-tokens", type=int, help="room for keys and values")
    args, more = parser.parse_known_args()
    room = args.kv_cache_tokens or 0
    server = Server(args.program, args.model, more + ([f"--kv-cache-tokens={room}"] if room else []))
    answers = [said(server.ask("/v1/completions", body)[1]) for body in questions()]
    for answer in answers:
        assert isinstance(answer, tuple), answer
    before = Load(server, answers)
    before.run(args.honest, 0, seconds=60 * args.minutes / 4 if args.minutes else 20)
    times("without hostile clients", before)
    fill(server, room)
    start = server.memory()
    load = Load(server, answers, args.kinds and args.kinds.split(","))
    most = load.run(args.honest, args.hostile, 60 * args.minutes if args.minutes else None, args.requests, args.seed)
    if server.process.poll() is not None:
        sys.exit(f"the server ended with {server.process.returncode}: {open(server.log.name).read()[-3000:]}")
    times("with hostile clients", load)
    print(f"hostile: {sum(load.kinds.values())} requests, answered with {dict(load.statuses)}")
    print("slowest, in seconds: " + ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in load.slowest.items()))
    time.sleep(args.rest)
    end = server.memory()
    print(f"memory in MiB, of the server and with its workers: {start[0]:.0f} and {start[1]:.0f} before, {most[0]:.0f} and "
          f"{most[1]:.0f} at most, {end[0]:.0f} and {end[1]:.0f} after {args.rest:.0f} s", flush=True)
    ratio = percentile(load.first, 0.99) / percentile(before.first, 0.99)
    print(f"first token of honest clients, 99 %: {ratio:.2f} times that without hostile ones; whole answers, median: "
          f"{statistics.median(load.whole) / statistics.median(before.whole):.2f} times, 99 %: "
          f"{percentile(load.whole, 0.99) / percentile(before.whole, 0.99):.2f} times")
    for fault in (before.faults + load.faults)[:20]:
        print(f"FAULT: {fault}")
    server.stop()
    if before.faults or load.faults:
        sys.exit(f"{len(before.faults) + len(load.faults)} faults")


if __name__ == "__main__":
    main()
