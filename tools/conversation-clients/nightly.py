"""Drives a server with benchmarks and routers, which are too heavy for every change, and prints a dated record.

    python nightly.py PROGRAM WEATHER [--model MODEL] [--only WORD]

PROGRAM is the braidinfer program, WEATHER the folder of the model of scripts/weather.json. Exits with 1 if one failed.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = pathlib.Path(sys.executable).parent
# What is not here is not fetched.
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
REQUESTS, TOKENS = 8, 16
CHECKS = []


def check(name, package):
    def register(run):
        CHECKS.append((name, package, run))
        return run

    return register


def require(condition, message):
    if not condition:
        raise AssertionError(message)


def wait_until(is_so, seconds, otherwise):
    """Looks until it is so. The only sleep here: whatever else is waited for is waited for with this."""
    deadline = time.monotonic() + seconds
    while not is_so():
        require(time.monotonic() < deadline, f"{otherwise()} after {seconds} s")
        time.sleep(0.1)


def fetch(address):
    with urllib.request.urlopen(address, timeout=10) as reply:
        return reply.read().decode()


@contextlib.contextmanager
def started(command):
    """A program while it runs, and how to read what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT, text=True)

        def printed():
            output.seek(0)
            return output.read()

        try:
            yield process, printed
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


@contextlib.contextmanager
def served(program, *arguments):
    """The address of a server."""
    with started([program, "serve", *arguments, "--port", "0"]) as (process, printed):

        def address():
            require(process.poll() is None, f"the server ended: {printed()}")
            return re.search(r" is served at (http://127\.0\.0\.1:\d+)", printed())

        wait_until(address, 60, lambda: f"the server is not ready: {printed()}")
        yield address()[1]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def routed(command, workers):
    """The address of a router in front of these workers."""
    port = free_port()
    places = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    with started([*command, *places, "--policy", "round_robin", "--worker-urls", *workers]) as (process, printed):

        def has_model():
            require(process.poll() is None, f"the router ended: {printed()}")
            with contextlib.suppress(OSError):
                return json.loads(fetch(f"http://127.0.0.1:{port}/v1/models"))["data"]
            return False

        wait_until(has_model, 60, lambda: f"the router is not ready: {printed()}")
        yield f"http://127.0.0.1:{port}"


def run(*command):
    done = subprocess.run(command, env=ENVIRONMENT, cwd=HERE / "nightly", capture_output=True, text=True, timeout=300)
    require(done.returncode == 0, f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def words(options):
    return [word for option in options.items() for word in option]


def requests_of(worker):
    return sum(map(float, re.findall(r"^braidinfer_requests_total{.*} (\S+)$", fetch(f"{worker}/metrics"), re.MULTILINE)))


def drive_through(command, arguments, *options):
    """The checks of the OpenAI client through a router in front of servers with these options."""
    worker = [arguments.program, arguments.weather, "--served-model-name", "weather", *options]
    with served(*worker) as first, served(*worker) as second, routed(command, [first, second]) as address:
        output = run(sys.executable, HERE / "drive.py", address, "--scripted", "--only", "openai:")
        shares = [requests_of(first), requests_of(second)]
        require(all(shares), f"requests of the workers: {shares}")
    return f"{output.splitlines()[-1]}, requests of the workers: {shares[0]:.0f} and {shares[1]:.0f}"


@check("vllm-router in front of two workers", "vllm-router")
def vllm_router(arguments):
    return drive_through([PROGRAMS / "vllm-router"], arguments)


@check("smg in front of two workers", "smg")
def smg(arguments):
    # It takes both names of reasoning for the same field, and refuses messages that have both.
    return drive_through([PROGRAMS / "smg", "launch"], arguments, "--reasoning-field", "reasoning_content")


def benchmark(address, request_format):
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.json")
        options = {
            "--backend": f"kind=openai_http,target={address},max_tokens={TOKENS},request_format={request_format}",
            "--profile": "kind=concurrent,streams=2",
            "--constraint": f"kind=max_requests,count={REQUESTS}",
            "--data": "kind=json_file,path=prompts.jsonl",
            "--output": f"kind=json,path={report}",
        }
        run(PROGRAMS / "guidellm", "run", "--disable-console", *words(options))
        found = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    totals = found["request_totals"]
    require(totals["successful"] == totals["total"] == REQUESTS, f"requests: {totals}")
    written = found["output_token_count"]["successful"]["total_sum"]
    require(written > 0, "no tokens were written")
    require(found["time_to_first_token_ms"]["successful"]["min"] > 0, "no time to the first token")
    return f"{REQUESTS} requests, {written:.0f} tokens of {request_format}"


@check("guidellm", "guidellm")
def guidellm(arguments):
    with served(arguments.program, *arguments.model) as address:
        return ", ".join(benchmark(address, where) for where in ("/v1/chat/completions", "/v1/completions"))


def evaluated(kind, address, tasks, *more):
    """The results of lm_eval for these tasks."""
    model = json.loads(fetch(f"{address}/v1/models"))["data"][0]["id"]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--model": kind,
            "--model_args": ",".join([f"model={model}", "num_concurrent=2", *more]),
            "--include_path": ".",
            "--tasks": ",".join(tasks),
            "--limit": "4",
            "--output_path": folder,
        }
        flags = ["--log_samples", *(["--apply_chat_template"] if "chat" in kind else [])]
        run(PROGRAMS / "lm_eval", "run", *words(options), *flags)
        (results,) = pathlib.Path(folder).rglob("results_*.json")
        samples = [json.loads(line) for path in pathlib.Path(folder).rglob("samples_*.jsonl") for line in path.open()]
        return json.loads(results.read_text())["results"], samples


@check("lm_eval with the server's tokenizer", "lm_eval")
def lm_eval_completions(arguments):
    with served(arguments.program, *arguments.model) as address:
        place = f"base_url={address}/v1/completions"
        tasks = ["sentence_ends", "sentences"]
        results, samples = evaluated("local-completions", address, tasks, place, "tokenizer_backend=remote")
    require(sorted(results) == tasks, f"results {results}")
    scored = [response for sample in samples if sample["metrics"] == ["acc"] for response in sample["filtered_resps"]]
    require(len(scored) == 8 and all(float(likelihood) < 0 for likelihood, _ in scored), f"likelihoods {scored}")
    return f"accuracy {results['sentence_ends']['acc,none']}"


@check("lm_eval with chats", "lm_eval")
def lm_eval_chats(arguments):
    with served(arguments.program, *arguments.model) as address:
        place = f"base_url={address}/v1/chat/completions"
        results, samples = evaluated("local-chat-completions", address, ["sentences"], place)
    require(len(samples) == 4 and "sentences" in results, f"results {results}")
    require(any(sample["resps"][0][0] for sample in samples), "no text at all")
    return f"{len(samples)} answers"


def passed(name, package, one, arguments):
    started_at = time.monotonic()
    title = f"{name} ({package} {importlib.metadata.version(package)})"
    try:
        remark = one(arguments)
    except Exception as error:
        told = error if isinstance(error, AssertionError) else traceback.format_exc()
        print(f"FAILED  {title}: {told}", flush=True)
        return False
    print(f"ok      {title}: {remark} ({time.monotonic() - started_at:.0f} s)", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=os.path.abspath, help="the braidinfer program")
    parser.add_argument("weather", help="folder of the model of scripts/weather.json")
    parser.add_argument("--model", nargs=1, default=[], help="model for the benchmarks; the built-in one if left out")
    parser.add_argument("--only", default="", help="run the checks whose names contain this")
    arguments = parser.parse_args()
    arguments.weather = os.path.abspath(arguments.weather)
    version = subprocess.run([arguments.program, "--version"], capture_output=True, text=True).stdout.strip()
    print(f"{datetime.date.today()}, {version}", flush=True)
    results = [passed(*one, arguments) for one in CHECKS if arguments.only in one[0]]
    print(f"{results.count(True)} of {len(results)} checks passed")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
