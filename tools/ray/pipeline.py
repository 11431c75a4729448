"""A model in stages that are actors of Ray, beside the same model in one process: the same answers, what the way between stages
costs, and what happens when a stage is killed.

    python tools/ray/pipeline.py [--model MODEL] [--stages 2] [--threads 1]

All processes are on this machine. With as many stages as cores, and a thread for each, the stages take turns as machines would.
The last table says what the measured cost means for answers of larger models on several machines.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from pathlib import Path

import ray

from braidinfer import LLM, ModelError
from braidinfer.ray_pipeline import RayPipelineLLM

DEMO_MODEL = Path(__file__).parents[2] / "crates/braidinfer-cli/demo-model"
GREEDY = {"temperature": 0, "ignore_eos": True}
# Bytes of weights and hidden size of models with 8, 32 and 70 thousand million parameters in 4 bits.
SIZES = {"8B": (4.9e9, 4096), "32B": (19.8e9, 5120), "70B": (42.5e9, 8192)}
# Bytes in a second that a machine with two channels of memory reads.
READS = 60e9


def timed(llm, prompt: list[int], count: int) -> tuple[float, float, list[int]]:
    """Seconds for a new prompt, seconds for each further token, and the answer."""
    times, answer = [], []
    started = time.perf_counter()
    for token in llm.stream(prompt, max_tokens=count, **GREEDY):
        times.append(time.perf_counter())
        answer.append(token.token_id)
    return times[0] - started, (times[-1] - times[0]) / (count - 1), answer


def compare(alone, pipeline, rounds: int, length: int, count: int) -> tuple[list, list]:
    """Times of both, one round each in turn. Raises `SystemExit` unless the answers are the same."""
    of_alone, of_pipeline = [], []
    for number in range(rounds):
        prompt = [(number * 7919 + place * 31) % (alone.vocab_size - 1) for place in range(length)]
        one, other = timed(alone, prompt, count), timed(pipeline, prompt, count)
        if one[2] != other[2]:
            raise SystemExit(f"round {number}: {other[2]}, alone {one[2]}")
        of_alone.append(one)
        of_pipeline.append(other)
    return of_alone, of_pipeline


def killed(pipeline, expected: list[int]) -> None:
    """Kills the last stage between two requests and within one, and looks at the errors and at what is served after that."""
    for within in (False, True):
        prompt = list(range(1, 9))
        stream = pipeline.stream(prompt, max_tokens=2000 if within else 8, **GREEDY)
        if within:
            next(iter(stream))
        os.kill(ray.get(pipeline.actors[-1].process.remote()), signal.SIGKILL)
        try:
            for _ in stream:
                pass
            print("killed:  the answer had ended before")
        except ModelError as error:
            print(f"killed:  {error}")
        started = time.perf_counter()
        again = pipeline.generate(prompt, max_tokens=len(expected), **GREEDY).token_ids
        print(f"after:   the same answer: {again == expected}, {time.perf_counter() - started:.1f} s with the start of the stage")
        if again != expected:
            raise SystemExit(1)


def arithmetic(hop: float) -> None:
    print(f"\nExpected of machines that read {READS / 1e9:.0f} GB/s, {hop * 1e3:.2f} ms a hop:")
    print(f"{'model':8}{'machines':>9}{'GB each':>9}{'tokens/s at 1':>15}{'10 Gbit/s':>11}")
    for name, (size, width) in SIZES.items():
        for machines in (1, 2, 4, 8, 16):
            # From the engine to the first stage, from stage to stage, and back.
            hops = machines + 1 if machines > 1 else 0
            speeds = [1 / (size / READS + hops * (hop + width * 32 / rate)) for rate in (1e9, 1e10)]
            print(f"{name:8}{machines:9}{size / machines / 1e9:9.1f}{speeds[0]:15.2f}{speeds[1]:11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    ray.init(num_cpus=arguments.stages, include_dashboard=False, log_to_driver=False)
    # The verdict is measured here, and the stages use it.
    alone = LLM(arguments.model, threads=arguments.threads, prefix_cache=False, prompt_lookup=False)
    options = {"prefix_cache": False, "prompt_lookup": False}
    with RayPipelineLLM(arguments.model, stages=arguments.stages, threads=arguments.threads, **options) as pipeline:
        print(f"stages:  {', '.join(f'layers {of.start} to {of.stop - 1}' for of in pipeline.layers)}")
        compare(alone, pipeline, 1, arguments.prompt_tokens, 8)
        rounds = compare(alone, pipeline, arguments.rounds, arguments.prompt_tokens, arguments.tokens)
        medians = [[statistics.median(round_[part] for round_ in of) for part in (0, 1)] for of in rounds]
        for name, (prompt, token) in zip(("alone", "stages"), medians):
            print(f"{name + ':':9}{prompt * 1e3:8.1f} ms for a prompt of {arguments.prompt_tokens}, {token * 1e3:7.2f} ms a token")
        prompt_hop, hop = ((other - one) / (arguments.stages + 1) for one, other in zip(*medians))
        print(
            f"the same answers in {arguments.rounds} rounds; a hop costs {hop * 1e3:.2f} ms, of a prompt {prompt_hop * 1e3:.2f} ms"
        )
        expected = alone.generate(list(range(1, 9)), max_tokens=8, **GREEDY).token_ids
        killed(pipeline, expected)
    arithmetic(max(hop, 0.0))


if __name__ == "__main__":
    main()
