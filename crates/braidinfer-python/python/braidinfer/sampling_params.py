"""How tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when an answer ends. What is None is as the model's `generation_config.json` says; without one,
    the likeliest token is taken, and an answer ends with its end token or with the context.
    """

    max_tokens: int | None = None
    """Most tokens to generate."""
    min_tokens: int | None = None
    """Fewest tokens before an end token may come."""
    temperature: float | None = None
    """Divisor of the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Choose among so many of the likeliest tokens; -1 or 0 among all."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Choose among tokens at least so many times as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Makes tokens seen before less likely; 1 changes nothing."""
    presence_penalty: float | None = None
    """Subtracted from the logits of tokens that are in the answer."""
    frequency_penalty: float | None = None
    """Subtracted from the logits of tokens for each time they are in the answer."""
    seed: int | None = None
    """Repeats the same choices; with several answers, each next one has the next seed."""
    stop: str | Sequence[str] | None = None
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: Sequence[int] | None = None
    """Tokens that end the answer, besides the model's own; they are not part of its text."""
    ignore_eos: bool | None = None
    """Go on past the tokens that end a text."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of tokens before anything else."""
    n: int | None = None
    """How many answers to give to each prompt."""
    logprobs: int | None = None
    """Give the log-probability of each token of the answer, and of so many of the likeliest at its place."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first."""

    def given(self) -> dict:
        """The parameters that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def given(params: SamplingParams | Mapping | None, others: Mapping) -> dict:
    """What is asked for by `params` and by `others`, which win, by name."""
    asked = params.given() if isinstance(params, SamplingParams) else {str(name): value for name, value in (params or {}).items()}
    asked.update(others)
    return {name: value for name, value in asked.items() if value is not None}
