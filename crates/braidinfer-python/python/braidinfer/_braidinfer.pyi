from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

from numpy import float32
from numpy.typing import NDArray

_Prompt = Union[str, Sequence[int], tuple[str, str]]
_Logprobs = tuple[int, float, list[tuple[int, float]]]
_Worker = Optional[tuple[str, list[str]]]
_Progress = Optional[Callable[[int, int], object]]

__version__: str

class ModelError(RuntimeError): ...

class TokenOutput:
    index: int
    token_id: int | None
    text: str
    reasoning: str
    finish_reason: str | None
    logprobs: _Logprobs | None
    prompt_logprobs: list[_Logprobs] | None
    num_cached_tokens: int | None
    embedding: NDArray[float32] | None
    error: BaseException | None

class Stream:
    def read(self) -> list[TokenOutput]: ...
    def poll(self) -> Optional[list[TokenOutput]]: ...
    def fileno(self) -> int: ...
    def cancel(self) -> None: ...

class Engine:
    label: str
    kernels: str
    context: int
    vocab_size: int
    hidden_size: int
    notes: list[str]
    compat: str | None
    eos_token_ids: list[int]
    bos_token_id: int | None
    def __init__(self, model: str | None, options: dict[str, Any], progress: _Progress) -> None: ...
    def submit(
        self, prompts: Sequence[_Prompt], params: Sequence[dict[str, Any]]
    ) -> tuple[Stream, list[tuple[str | None, list[int]]]]: ...
    def validate(self, prompt: _Prompt, params: dict[str, Any]) -> None: ...
    def submit_embeddings(self, prompts: Sequence[_Prompt], pooling: str) -> Stream: ...
    def logits(self, prompt: _Prompt, all: bool) -> NDArray[float32]: ...
    def encode(self, text: str, special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    def render_chat(self, messages: str, variables: str) -> str: ...
    def close(self) -> None: ...

def check(model: str | None, options: dict[str, Any], depth: str, progress: _Progress) -> tuple[str, list[str]]: ...
def run_program(arguments: Sequence[str], worker: _Worker) -> int: ...
def sampling_parameters() -> list[tuple[str, str]]: ...
