"""Runs language models locally and shows that its fast path gives the right answers.

>>> from braidinfer import LLM
>>> llm = LLM()  # the small built-in model; or a path, or a Hub id
>>> print(llm.generate("Once upon a time").text)  # doctest: +SKIP
"""

from braidinfer._braidinfer import ModelError, __version__
from braidinfer.llm import LLM
from braidinfer.outputs import CompletionOutput, Logprob, RequestOutput, Score, StreamOutput
from braidinfer.sampling_params import SamplingParams
from braidinfer.token_stream import TokenStream

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "ModelError",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "StreamOutput",
    "TokenStream",
    "__version__",
]
