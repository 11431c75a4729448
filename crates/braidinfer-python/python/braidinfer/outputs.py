"""Results, as data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logprob:
    """The natural logarithm of a token's probability, by the model's own logits, and the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """Token ids with their log-probabilities, likeliest first."""


@dataclass
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    """Which of the answers to its prompt it is."""
    text: str = ""
    """Without special tokens and without the text that stopped it."""
    token_ids: list[int] = field(default_factory=list)
    """With the end token."""
    finish_reason: str | None = None
    """`stop` or `length`; None while it goes on."""
    reasoning: str = ""
    """What the model wrote for itself before the answer, if its chat template says how that is marked."""
    logprobs: list[Logprob] | None = None
    """One for each token, if asked for."""


@dataclass
class RequestOutput:
    """The answers to one prompt. `text`, `token_ids` and `finish_reason` are those of the first."""

    prompt: str | None
    """The prompt as text; None if it was given as token ids."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[Logprob] | None = None
    """One for each token of the prompt but the first, if asked for."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were computed for an earlier one."""

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason


@dataclass(frozen=True)
class StreamOutput:
    """One new token."""

    text: str
    """The text that is now certain; often empty, sometimes that of several tokens."""
    token_id: int
    prompt_index: int = 0
    """Which of the prompts it answers."""
    index: int = 0
    """Which of the answers to that prompt it belongs to."""
    reasoning: str = ""
    """Like `text`, before the answer."""
    finish_reason: str | None = None
    """Why the answer ended, with its last token."""
    logprob: Logprob | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    token_ids: list[int]
    """The tokens that were predicted."""
    logprobs: list[float]
    """The natural logarithm of the probability of each."""
    is_greedy: bool
    """Whether each of them is the likeliest at its place."""

    @property
    def logprob(self) -> float:
        """The natural logarithm of the probability of all together."""
        return sum(self.logprobs)
