"""Models on a GPU, or on a program that behaves like one."""

import os

import pytest
from conftest import FIXTURES

from braidinfer import LLM

pytestmark = pytest.mark.skipif(not os.environ.get("BRAIDINFER_TEST_GPU"), reason="BRAIDINFER_TEST_GPU is not set: no GPU is expected")

MODEL = FIXTURES / "models" / "llama"
# In f32, so that both round nothing but sums.
FORCED = {"kernels": "fused", "force": True, "dtype": "f32", "threads": 1}


@pytest.mark.parametrize(
    "share", [{}, {"gpu_layers": 1}, {"gpu_memory": 10**9}, {"device": "gpu:0+gpu:0", "gpu_layers": [1, 2]}]
)
def test_answers_are_those_of_the_cpu(share):
    prompt = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with LLM(MODEL, **FORCED) as on_cpu, LLM(MODEL, **{**FORCED, "device": "gpu", **share}) as on_gpu:
        assert on_gpu.generate([1, 5, 9], prompt).outputs[0].token_ids == on_cpu.generate([1, 5, 9], prompt).outputs[0].token_ids
        assert any(note.startswith("runs on ") for note in on_gpu.notes)
        assert any("layers, from the first one on" in note for note in on_gpu.notes) == ("gpu_layers" in share)


def test_each_gpu_has_a_number_of_layers():
    with pytest.raises(ValueError, match="gpu_layers: expected a number for each of 2 GPUs"):
        LLM(MODEL, **FORCED, device="gpu:0+gpu:0", gpu_layers=1)


def test_too_little_memory_is_said():
    with pytest.raises(MemoryError, match="GPU|llvmpipe"):
        LLM(MODEL, **FORCED, device="gpu", gpu_memory=1000)
