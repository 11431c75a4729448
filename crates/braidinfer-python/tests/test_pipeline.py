"""Models whose layers are computed by stages give the bits of one process."""

import threading

import numpy
import pytest
from conftest import FIXTURES

from braidinfer import LLM, ModelError
from braidinfer.pipeline import PipelineLLM, Plan, Stage

FORCED = {"kernels": "fused", "force": True, "threads": 1}
# Layers have inputs, or keys and values, in common.
INSEPARABLE = {"gemma3n", "gemma4"}


def over(plan, layers, each=lambda stage, run: run, **options):
    """A pipeline of stages in this process; `each` may put something in their way."""
    stages = [Stage(plan, of_stage) for of_stage in layers]
    runs = [each(stage, stage.run) for stage in stages]

    def run(step, hidden):
        for of_stage in runs:
            hidden = of_stage(step, hidden)
        return hidden

    return PipelineLLM(plan, run, min(stage.fitting_tokens for stage in stages), **options)


@pytest.mark.parametrize("model", sorted((FIXTURES / "models").iterdir()), ids=lambda path: path.name)
def test_every_architecture_has_the_bits_of_one_process(model):
    if model.name in INSEPARABLE:
        with pytest.raises(ModelError, match="cannot be computed apart"):
            Plan(model, **FORCED)
        return
    plan = Plan(model, **FORCED)
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
    with LLM(model, **FORCED) as alone, over(plan, plan.split(min(3, plan.num_layers))) as pipeline:
        for prompt in prompts:
            assert numpy.array_equal(alone.logits(prompt, all_positions=True), pipeline.logits(prompt, all_positions=True))
        wanted = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 2}
        for one, other in zip(alone.generate(prompts, **wanted), pipeline.generate(prompts, **wanted)):
            assert (one.token_ids, one.outputs[0].logprobs) == (other.token_ids, other.outputs[0].logprobs)


def test_a_verdict_is_needed_and_used():
    model = FIXTURES / "models" / "qwen3-extreme"
    with pytest.raises(ModelError, match="was not measured on this machine"):
        Plan(model, context=48)
    with LLM(model, context=48) as alone:
        plan = Plan(model, context=48)
        with over(plan, plan.split(2)) as pipeline:
            assert pipeline.compatibility["plan"] == alone.compatibility["plan"]
            assert "measured earlier" in pipeline.notes[-1]
            prompt = [3, 1, 4, 1, 5, 9]
            assert numpy.array_equal(alone.logits(prompt), pipeline.logits(prompt))


def test_a_verdict_from_a_process_with_little_room_is_used():
    model = FIXTURES / "models" / "qwen3-window"
    with LLM(model, context=48, kv_cache_tokens=48) as alone:
        plan = Plan(model, context=48)
        with over(plan, plan.split(2)) as pipeline:
            assert pipeline.compatibility["plan"] == alone.compatibility["plan"]


def test_stages_of_another_model_are_refused():
    models = FIXTURES / "models"
    plan = Plan(models / "qwen3", **FORCED)
    plan.model = str(models / "llama")
    with pytest.raises(ValueError, match="that the pipeline was planned for"):
        Stage(plan, range(1))


def test_arguments_are_refused_by_name():
    model = FIXTURES / "models" / "llama"
    plan = Plan(model, **FORCED)
    with pytest.raises(ValueError, match=f"stages: expected from 1 to {plan.num_layers}"):
        plan.split(plan.num_layers + 1)
    with pytest.raises(ValueError, match=f"layers: expected a range within 0 to {plan.num_layers}"):
        Stage(plan, range(1, plan.num_layers + 1))
    with pytest.raises(ValueError, match="quantize: expected none for a pipeline"):
        Plan(model, **FORCED, quantize="q8_0")
    with pytest.raises(ValueError, match="kernels: expected fused ones"):
        Plan(model, kernels="standard")
    stage = Stage(plan, range(1))
    with pytest.raises(ValueError, match="step: expected"):
        stage.run(b"\xc1nonsense", numpy.zeros(4, numpy.float32))


def test_a_failed_stage_ends_requests_and_the_next_ones_are_served(llm):
    fails = threading.Event()

    def each(stage, run):
        def stumbling(step, hidden):
            if fails.is_set() and stage.layers.start > 0:
                raise RuntimeError("stage 2 of 2 was unplugged")
            return run(step, hidden)

        return stumbling

    plan = Plan(**FORCED)
    with over(plan, plan.split(2), each) as pipeline:
        before = pipeline.generate("Once upon a time", max_tokens=8, temperature=0)
        fails.set()
        with pytest.raises(ModelError, match="stage 2 of 2 was unplugged; what was being computed is lost"):
            pipeline.generate("Once upon a time there", max_tokens=8, temperature=0)
        fails.clear()
        assert pipeline.generate("Once upon a time", max_tokens=8, temperature=0).token_ids == before.token_ids


@pytest.mark.parametrize("result", [None, "nothing", numpy.zeros(3, numpy.float32)], ids=["none", "text", "too-short"])
def test_a_wrong_result_ends_requests_and_nothing_hangs(result):
    plan = Plan(**FORCED)
    stages = [Stage(plan, of_stage) for of_stage in plan.split(1)]
    with PipelineLLM(plan, lambda step, hidden: result, min(stage.fitting_tokens for stage in stages)) as pipeline:
        for _ in range(2):
            with pytest.raises(ModelError, match="what was being computed is lost"):
                pipeline.generate("Once", max_tokens=4)


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("not to be told")


@pytest.mark.parametrize("error", [OSError("\udcff"), Unspeakable(), SystemExit(1)], ids=["surrogate", "unspeakable", "exit"])
def test_whatever_a_stage_raises_is_told(error):
    plan = Plan(**FORCED)
    stages = [Stage(plan, of_stage) for of_stage in plan.split(1)]

    def run(step, hidden):
        raise error

    with PipelineLLM(plan, run, min(stage.fitting_tokens for stage in stages)) as pipeline:
        for _ in range(2):
            with pytest.raises(ModelError, match="what was being computed is lost"):
                pipeline.generate("Once", max_tokens=4)


@pytest.mark.parametrize("model", ["llama", "qwen3_5", "falcon_h1", "lfm2"])
def test_hostile_steps_are_refused(model):
    """Steps as the engine writes them: whether to release, copies of states, and a batch of token ids, sequences and rows of each kind."""
    msgpack = pytest.importorskip("msgpack")
    stage = Stage(Plan(FIXTURES / "models" / model, **FORCED), range(1))

    def sequence(tokens=1, block=0, slot=0):
        return [tokens, 0, tokens, [block], slot, 0]

    def step(sequences, token_ids, copies=()):
        return msgpack.packb([False, list(copies), [token_ids, sequences, [], [], []]])

    width = 64
    while True:
        try:
            stage.run(step([sequence()], [1]), numpy.zeros(width, numpy.float32))
            break
        except ValueError as error:
            width = int(str(error).split("expected ")[1].split(" ")[0])
    hidden = numpy.zeros(2 * width, numpy.float32)
    for hostile, values in {
        step([], []): hidden[:0],
        step([sequence(2**63), sequence(2**63 + 1)], [1]): hidden[:width],
        step([sequence(block=2**32 - 1)], [1]): hidden[:width],
        step([sequence(slot=2**31)], [1]): hidden[:width],
        step([sequence()], [1], [[0, slot] for slot in range(1, 100_000)]): hidden[:width],
        step([sequence()], [2**32 - 1]): hidden[:width],
        step([sequence()], [1]): hidden,
    }.items():
        with pytest.raises(ValueError):
            stage.run(hostile, values)
    if model != "llama":
        with pytest.raises(ValueError, match="state_slot"):
            stage.run(step([sequence(), sequence(block=1)], [1, 2]), hidden)


def test_results_of_other_kinds_of_numbers_are_taken():
    plan = Plan(**FORCED)
    (stage,) = [Stage(plan, of_stage) for of_stage in plan.split(1)]
    doubled = PipelineLLM(plan, lambda step, hidden: stage.run(step, hidden).astype(numpy.float64)[None], stage.fitting_tokens)
    with doubled as pipeline, LLM(**FORCED) as alone:
        assert numpy.array_equal(alone.logits("Once upon"), pipeline.logits("Once upon"))
