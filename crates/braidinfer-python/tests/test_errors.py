"""What is refused, and in which words."""

import inspect

import pytest

from braidinfer import LLM, ModelError, SamplingParams, _braidinfer
from braidinfer.load_options import DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernels": "fast"}, "kernels: expected one of auto, standard, fused, found `fast`"),
        ({"precision": "high"}, "precision: expected one of auto, exact, fast, found `high`"),
        ({"dtype": "int8"}, "dtype: expected one of"),
        ({"kv_dtype": "f8"}, "kv_dtype: expected one of"),
        ({"quantize": "q9"}, "quantize: expected a type of weights"),
        ({"device": " "}, "device: expected cpu, auto, gpu, gpu:N, a GPU's name, several GPUs such as gpu:0\\+gpu:1, cuda, cuda:N or metal, found ` `"),
        ({"gpu_layers": -1}, "gpu_layers: expected a whole number from 0 to .*, found -1"),
        ({"gpu_layers": [1, "2"]}, "gpu_layers: expected a whole number from 0 to .*"),
        ({"gpu_layers": []}, "gpu_layers: expected a whole number from 0 to .*"),
        ({"gpu_layers": 1}, "gpu_layers: expected a GPU to compute on, found device cpu"),
        ({"device": "gpu:0+cpu"}, "device: expected cpu, auto, gpu"),
        ({"gpu_memory": "6GB"}, "gpu_memory: expected a whole number from 0 to .*, found '6GB'"),
        ({"max_sequences": 0}, "max_sequences: expected at least 1, found 0"),
        ({"max_sequences": 2**62}, "max_sequences: expected a whole number"),
        ({"max_sequences": None}, "max_sequences: expected a whole number"),
        ({"kv_cache_tokens": 0}, "kv_cache_tokens: expected at least 1, found 0"),
        ({"threads": -1}, "threads: expected a whole number from 0 to .*, found -1"),
        ({"context": 1.5}, "context: expected a whole number"),
        ({"force": "yes"}, "force: expected True or False, found 'yes'"),
        ({"kernels": None}, "kernels: expected a name, found None"),
        ({"model_kwargs": "abc"}, "model_kwargs: expected a dictionary"),
        ({"model_kwargs": {"use_magic": True}}, "model_kwargs: expected names among .* found `use_magic`"),
        ({"model_kwargs": {"use_custom_kernels": False, "force_custom_kernels": True}}, "use_custom_kernels"),
    ],
)
def test_arguments_of_models(arguments, words):
    with pytest.raises(ValueError, match=words):
        LLM(**arguments)


def test_gpus_that_are_not_there():
    with pytest.raises(ModelError, match="no GPU called `tpu`"):
        LLM(device="tpu")
    with pytest.raises(ModelError, match="no GPU number 99"):
        LLM(device="gpu:99")


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        LLM("someone/no-such-model")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json"):
        LLM(tmp_path)
    (tmp_path / "weights.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelError, match="weights.gguf"):
        LLM(tmp_path / "weights.gguf")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"temperature": -1.0}, "temperature: expected a number of at least 0, found -1"),
        ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number of at least 1, found 0"),
        ({"top_k": -2}, "top_k: expected"),
        ({5: 1}, "sampling_params: expected names among .*, found `5`"),
        ({"max_tokens": -3}, "max_tokens: expected a whole number, found -3"),
        ({"top_p": 2}, "top_p: expected"),
        ({"n": 1000}, "n: expected"),
        ({"logprobs": 21}, "logprobs: expected at most 20 tokens, found 21"),
        ({"stop": ""}, "stop: expected"),
        ({"heat": 1}, "sampling_params: expected names among .*, found `heat`"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
    ],
)
def test_sampling_parameters(llm, params, words):
    with pytest.raises(ValueError, match=words):
        llm.generate("Once", params)


@pytest.mark.parametrize(
    "prompt", [3, 2.5, object(), [1.5], ["a", 3], [[True]], {"role": "user"}, b"Once", [b"Once"], "\ud800", [2**40], [-1], None]
)
def test_prompts(llm, prompt):
    with pytest.raises(ValueError, match="prompt: expected"):
        llm.generate(prompt, max_tokens=1)


def test_prompts_that_do_not_fit(llm):
    with pytest.raises(ValueError, match="the prompt has .* tokens, but the context holds"):
        llm.generate([1] * (llm.context + 1))
    with pytest.raises(ValueError, match="vocabulary"):
        llm.generate([llm.vocab_size])
    with pytest.raises(ValueError, match="vocabulary"):
        llm.logits([llm.vocab_size])
    with pytest.raises(ValueError, match="vocabulary"):
        llm.detokenize([llm.vocab_size])
    # It runs on.
    assert llm.generate("Once", max_tokens=1).token_ids


def test_what_cannot_be_answered_can_stand_beside_answers(llm):
    prompts = ["Once", [llm.vocab_size], "The dog", [1] * (llm.context + 1)]
    params = [{"max_tokens": 2}, {}, {"heat": 1}, {}]
    results = llm.generate(prompts, params, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["RequestOutput", "ValueError", "ValueError", "ValueError"]
    assert len(results[0].token_ids) == 2 and "heat" in str(results[2])
    assert llm.generate([], return_exceptions=True) == []


def test_lists_of_other_lengths(llm):
    with pytest.raises(ValueError, match="sampling_params: expected 2"):
        llm.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(ValueError, match="continuations: expected 2"):
        llm.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="continuations: expected a list"):
        llm.score(["a", "b"], "cd")
    with pytest.raises(ValueError, match="at least one token before a continuation"):
        llm.score([[]], [[1, 2]])
    for params in (5, "abc", [5], {"x"}):
        with pytest.raises(ValueError, match="sampling_params: expected"):
            llm.generate("a", params)


def test_parameters_and_options_are_all_there():
    names = [name for name, _ in _braidinfer.sampling_parameters()]
    assert sorted(names) == sorted(SamplingParams.__dataclass_fields__)
    given = inspect.signature(LLM.__init__).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}
    del defaults["progress"]
    assert defaults == DEFAULTS
