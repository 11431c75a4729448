"""Measures Braidinfer beside other engines: the same work, in one interleaved run.

    python tools/bench-peers/run.py --models DIR --engines braidinfer,llama.cpp,openvino --threads 2 --repetitions 3 \\
        --out figures.json --markdown figures.md

Each repetition goes round all engines, one process at a time, so that a slow minute of the machine hits all alike.
The README says how to make the models and the engines.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import engines
import machine
import report
from engines.engine import Settings
from work import WEIGHTS, chosen_work, refused

WORKER = Path(__file__).with_name("worker.py")


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text):
    return [int(name) for name in names(text)]


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=Path, required=True, help="holds NAME/, NAME-TYPE.gguf and openvino/NAME-FORMAT/")
    add("--names", type=names, help="the models (all subdirectories of --models with a config.json)")
    add("--engines", type=names, default=list(engines.MODULES), help=", ".join(engines.MODULES))
    add("--weights", type=names, default=list(WEIGHTS), help=", ".join(WEIGHTS))
    add("--threads", type=int, default=os.cpu_count())
    add("--repetitions", type=int, default=3)
    add("--prompt-tokens", type=int, default=512, help="tokens of the prefill (512)")
    add("--gen-tokens", type=int, default=64, help="tokens that each sequence decodes (64)")
    add("--batch", type=numbers, default=[1, 8], help="sequences that decode at once (1,8)")
    add("--context", type=int, default=32, help="tokens in the cache before decoding (32)")
    add("--depth", type=int, help="also decode one sequence after this many tokens, for example 4096")
    add("--timeout", type=int, default=1800, help="seconds for one engine with one model in one repetition (1800)")
    add("--braidinfer", default=os.environ.get("BRAIDINFER"), help="the program (BRAIDINFER)")
    add("--braidinfer-kernels", default="fused", help="for `braidinfer bench --kernels` (fused)")
    add("--llama-cpp", default=os.environ.get("LLAMA_CPP_BIN"), help="llama.cpp's build/bin (LLAMA_CPP_BIN)")
    add("--ik-llama-cpp", default=os.environ.get("IK_LLAMA_CPP_BIN"), help="ik_llama.cpp's build/bin (IK_LLAMA_CPP_BIN)")
    add("--out", type=Path, required=True, help="the record, as JSON")
    add("--markdown", type=Path, help="tables for people")
    arguments = parser.parse_args()
    check(parser, arguments)
    return arguments


def check(parser, arguments):
    """What would otherwise show only in the middle of a long run."""
    for option, known in (("engines", engines.MODULES), ("weights", WEIGHTS)):
        unknown = [name for name in getattr(arguments, option) if name not in known]
        if unknown:
            parser.error(f"--{option}: {', '.join(unknown)} is none of {', '.join(known)}")
    if not arguments.names:
        arguments.names = sorted(path.parent.name for path in arguments.models.glob("*/config.json"))
    missing = [name for name in arguments.names if not (arguments.models / name / "config.json").exists()]
    if missing or not arguments.names:
        parser.error(f"--models: no model {', '.join(missing)} in {arguments.models}")


def settings(arguments):
    programs = (arguments.llama_cpp, arguments.ik_llama_cpp)
    return Settings(arguments.threads, arguments.braidinfer, arguments.braidinfer_kernels, *programs)


def environment(threads):
    """Threads for libraries that read them from here, and no way to a hub."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    return os.environ | limits | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def ask(task, timeout):
    """The answer of a fresh process. Its last line is JSON; if it dies before that, its last words are the reason."""
    try:
        done = subprocess.run(
            [sys.executable, WORKER], input=json.dumps(task), capture_output=True, text=True,
            timeout=timeout, env=environment(task["settings"]["threads"]),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"unavailable": f"no answer within {timeout} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    words = done.stderr.strip().splitlines() or ["no message"]
    return {"unavailable": f"its process ended with {done.returncode}: {words[-1]}"}


def describe_engines(arguments):
    answers = {}
    for name in arguments.engines:
        answers[name] = ask({"engine": name, "settings": asdict(settings(arguments))}, arguments.timeout)
        say(name, answers[name].get("unavailable") or answers[name]["description"].get("version", ""))
    return answers


def measure_once(arguments, work, engine, model, weights):
    """A sample for each piece of work."""
    task = {
        "engine": engine, "settings": asdict(settings(arguments)), "models": str(arguments.models.resolve()),
        "model": model, "weights": weights, "work": [item.as_json() for item in work],
    }  # fmt: skip
    load = machine.OtherLoad()
    answer = ask(task, arguments.timeout)
    others = load.cores()
    figures = answer.get("figures") or [missing(answer["unavailable"])] * len(work)
    return [figure | {"others_cores": others} for figure in figures]


def missing(reason):
    return refused(reason).as_json() | {"others_cores": None}


def measure(arguments, work, described):
    """(engine, model, weights, work name) to samples, in the order of the tables."""
    able = [name for name in arguments.engines if "unavailable" not in described[name]]
    samples = {}
    for model in arguments.names:
        for weights in arguments.weights:
            for repetition in range(arguments.repetitions):
                for engine in rotated(able, repetition):
                    if weights in described[engine]["weights"]:
                        taken = measure_once(arguments, work, engine, model, weights)
                    else:
                        taken = [missing("no such weights in this engine")] * len(work)
                    say(model, weights, repetition + 1, engine, *map(report.short, taken))
                    for item, sample in zip(work, taken, strict=True):
                        samples.setdefault((engine, model, weights, item.name), []).append(sample)
    return samples


def rotated(items, by):
    """No engine always follows the same one, with the caches and the heat that it leaves."""
    by %= max(len(items), 1)
    return items[by:] + items[:by]


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def main():
    arguments = read_arguments()
    work = chosen_work(
        arguments.prompt_tokens, arguments.gen_tokens, arguments.batch, arguments.context, arguments.depth
    )
    described = describe_engines(arguments)
    record = {
        "machine": machine.describe(),
        "threads": arguments.threads,
        "repetitions": arguments.repetitions,
        "work": [item.name for item in work],
        "engines": described,
        "results": report.results(measure(arguments, work, described)),
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(record))


if __name__ == "__main__":
    main()
