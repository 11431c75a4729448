"""Batch inference on Ray Data: `Dataset.map_batches` with a pool of actors, each with a model of its own.

    import ray
    from braidinfer.ray import BatchPredictor

    prompts = ray.data.read_json("prompts.jsonl")
    answers = prompts.map_batches(
        BatchPredictor,
        fn_constructor_kwargs={"model": "Qwen/Qwen3-0.6B", "sampling_params": {"max_tokens": 64}},
        concurrency=2,
        num_cpus=8,
        batch_size=64,
    )
    answers.write_json("answers")

Each row keeps its columns and gets those of its answer. If an actor dies, Ray gives its batch to another one: every row is there
once in the result, because a batch is one unit of work without effects outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from braidinfer.llm import LLM
from braidinfer.outputs import RequestOutput

_NO_ANSWER = {"text": "", "finish_reason": "error", "num_prompt_tokens": 0, "num_generated_tokens": 0}


class BatchPredictor:
    """Answers the prompts of a batch.

    `prompt_column` has texts, lists of token ids, or lists of chat messages. `params_column`, if there is one, has sampling
    parameters of each row as dictionaries, which win over `sampling_params`. The columns `text`, `finish_reason`,
    `num_prompt_tokens`, `num_generated_tokens` and `error` are added, with `prefix` before their names. A row that cannot be
    answered has its reason in `error`, which is empty elsewhere, and `finish_reason` `error`. `options` are those of
    `braidinfer.LLM`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        sampling_params: Mapping | None = None,
        prompt_column: str = "prompt",
        params_column: str | None = None,
        prefix: str = "",
        **options,
    ):
        self._llm = LLM(model, **{"max_sequences": 64, **options})
        self._params = dict(sampling_params or {})
        self._prompt_column = prompt_column
        self._params_column = params_column
        self._prefix = prefix

    def __call__(self, batch: Mapping) -> dict:
        """A batch as a dictionary of columns, with those of the answers."""
        for column in (self._prompt_column, self._params_column):
            if column is not None and column not in batch:
                raise ValueError(f"batch: expected a column `{column}`, found {', '.join(batch)}")
        prompts = [_plain(prompt) for prompt in batch[self._prompt_column]]
        own = batch[self._params_column] if self._params_column else [None] * len(prompts)
        params = [{**self._params, **_given(params)} for params in own]
        results = self._llm.generate(prompts, params, return_exceptions=True)
        rows = [_row(result) for result in results]
        names = (*_NO_ANSWER, "error")
        columns = {self._prefix + name: _column([row[name] for row in rows]) for name in names}
        return {**batch, **columns}


def _column(values: list):
    """Texts as they are: in an array of NumPy's own kind of text, all are as long as the longest."""
    return numpy.array(values, dtype=object if values and isinstance(values[0], str) else None)


def _plain(prompt):
    """A prompt without the arrays of Arrow and NumPy."""
    return prompt.tolist() if hasattr(prompt, "tolist") else prompt


def _given(params: Mapping | None) -> dict:
    """Parameters of a row. In a table of several kinds of rows, those that a row does not have are None."""
    return {name: value for name, value in (params or {}).items() if value is not None}


def _row(result: RequestOutput | Exception) -> dict:
    if isinstance(result, Exception):
        return {**_NO_ANSWER, "error": f"{type(result).__name__}: {result}"}
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "num_prompt_tokens": len(result.prompt_token_ids),
        "num_generated_tokens": len(result.token_ids),
        "error": "",
    }
