"""A model that is ready to run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Union, overload

from braidinfer import event_loop
from braidinfer import prompts as forms
from braidinfer._braidinfer import Engine
from braidinfer.answers import Answers
from braidinfer.load_options import load_options
from braidinfer.outputs import RequestOutput, Score
from braidinfer.progress import Progress, reported
from braidinfer.prompts import Chat, Prompt
from braidinfer.sampling_params import SamplingParams, given
from braidinfer.token_stream import TokenStream

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

Params = Union[SamplingParams, Mapping[str, Any], Sequence[Union[SamplingParams, Mapping[str, Any], None]], None]
"""Sampling parameters for all prompts, or a list with those of each."""


class LLM:
    """A model that is ready to run, for any number of threads and asyncio tasks at once; what they ask for is computed together.

    `model` is a directory in the layout of the Hugging Face Hub, a GGUF file, or a Hub id (`org/name`, `org/name@revision`,
    `org/name:QUANT`); without it, the small built-in model tells stories. The other arguments are the flags of the command line
    with the same names; `gpu_memory` is a number of bytes. In `model_kwargs` they may be given as a dictionary, beside
    `use_custom_kernels` and `force_custom_kernels`: kernels `auto` or `standard`, and `fused` whatever a check finds. `kv_events` is
    an address (`127.0.0.1:5557`, port 0 for a free one) at which routers learn over ZeroMQ what the prefix cache holds; whoever can reach it can read prompts.

    Raises `FileNotFoundError` if there is no such model, `ModelError` if it cannot be read or run, `ValueError` for an argument
    that is none, and `MemoryError` if there is too little memory for it.
    """

    def __init__(
        self,
        model: str | PathLike | None = None,
        model_kwargs: Mapping | None = None,
        *,
        kernels: str = "auto",
        force: bool = False,
        precision: str = "auto",
        dtype: str = "auto",
        kv_dtype: str = "auto",
        quantize: str | None = None,
        device: str = "cpu",
        gpu_layers: int | list[int] | tuple[int, ...] | None = None,
        gpu_memory: int | None = None,
        threads: int | None = None,
        context: int | None = None,
        max_sequences: int = 16,
        kv_cache_tokens: int | None = None,
        prefix_cache: bool = True,
        prompt_lookup: bool = True,
        chat_template: str | PathLike | None = None,
        packed_cache: bool = True,
        kv_events: str | None = None,
        progress: Progress = False,
    ):
        options = load_options(
            model_kwargs,
            kernels=kernels,
            force=force,
            precision=precision,
            dtype=dtype,
            kv_dtype=kv_dtype,
            quantize=quantize,
            device=device,
            gpu_layers=gpu_layers,
            gpu_memory=gpu_memory,
            threads=threads,
            context=context,
            max_sequences=max_sequences,
            kv_cache_tokens=kv_cache_tokens,
            prefix_cache=prefix_cache,
            prompt_lookup=prompt_lookup,
            chat_template=chat_template,
            packed_cache=packed_cache,
            kv_events=kv_events,
        )
        path = None if model is None else fspath(model)
        with reported(progress, f"loading {path or 'the built-in model'}", "layer") as callback:
            self._engine = Engine(path, options, callback)

    @overload
    def generate(
        self,
        prompts: Prompt,
        sampling_params: Params = None,
        *,
        progress: Progress = False,
        return_exceptions: bool = False,
        **others: Any,
    ) -> RequestOutput: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling_params: Params = None,
        *,
        progress: Progress = False,
        return_exceptions: bool = False,
        **others: Any,
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        progress: Progress = False,
        return_exceptions: bool = False,
        **others,
    ) -> RequestOutput | list[RequestOutput]:
        """Answers one prompt, or each of a list of prompts; the answer is one `RequestOutput`, or a list in the same order.

        A prompt is a text, a sequence of token ids, or the messages of a chat. Sampling parameters apply to all prompts, or are a
        list with one for each; single ones can be given by name: `llm.generate("Once", max_tokens=20)`. `progress` counts answers.

        A prompt that cannot be answered raises an exception, and none is answered; with `return_exceptions`, the exception stands
        in the place of its answer. Ctrl-C cancels what is unfinished.
        """
        if return_exceptions and not forms.is_one(prompts):
            return self._generate_each(list(prompts), sampling_params, others, progress)
        stream, answers, is_one = self._submit(prompts, sampling_params, others)
        with reported(progress, "generating", "answer") as callback:
            _collect(stream, answers, callback)
        results = answers.or_errors() if return_exceptions else answers.or_raise()
        return results[0] if is_one else results

    @overload
    async def generate_async(self, prompts: Prompt, sampling_params: Params = None, **others: Any) -> RequestOutput: ...

    @overload
    async def generate_async(
        self, prompts: Sequence[Prompt], sampling_params: Params = None, **others: Any
    ) -> list[RequestOutput]: ...

    async def generate_async(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, **others
    ) -> RequestOutput | list[RequestOutput]:
        """Like `generate`, for asyncio. To cancel the task cancels the answers."""
        # Another thread cuts prompts into tokens, and waits for the end of the engine's current step.
        stream, answers, is_one = await asyncio.to_thread(self._submit, prompts, sampling_params, others)
        try:
            while answers.unfinished and not answers.errors:
                answers.take(await event_loop.read(stream, stream.poll_answers))
        finally:
            stream.cancel()
        results = answers.or_raise()
        return results[0] if is_one else results

    def stream(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, **others) -> TokenStream:
        """Like `generate`, token by token: `for token in llm.stream("Once"): print(token, end="")`, or `async for`."""

        def submit():
            stream, answers, _ = self._submit(prompts, sampling_params, others)
            return stream, answers.indices()

        return TokenStream(submit)

    @overload
    def chat(
        self,
        messages: Chat,
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping] | None = None,
        chat_template_kwargs: Mapping | None = None,
        progress: Progress = False,
        **others: Any,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Chat],
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping] | None = None,
        chat_template_kwargs: Mapping | None = None,
        progress: Progress = False,
        **others: Any,
    ) -> list[RequestOutput]: ...

    def chat(
        self,
        messages: Chat | Sequence[Chat],
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping] | None = None,
        chat_template_kwargs: Mapping | None = None,
        progress: Progress = False,
        **others,
    ) -> RequestOutput | list[RequestOutput]:
        """Answers a chat, or each of a list of chats: lists of messages `{"role": "user", "content": "Hello"}`.

        `tools` are functions that the model may call, as in the OpenAI API; calls stand in the text of the answer, in the
        model's own way of writing. `chat_template_kwargs` are variables for the chat template, such as `enable_thinking`.
        """
        chats = self._conversations(messages, tools, chat_template_kwargs)
        return self.generate(chats, sampling_params, progress=progress, **others)

    def stream_chat(
        self,
        messages: Chat | Sequence[Chat],
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping] | None = None,
        chat_template_kwargs: Mapping | None = None,
        **others,
    ) -> TokenStream:
        """Like `chat`, token by token."""
        return self.stream(self._conversations(messages, tools, chat_template_kwargs), sampling_params, **others)

    def embed(self, prompts: Prompt | Sequence[Prompt], *, pooling: str = "last") -> NDArray[float32]:
        """Embeddings as an array `[hidden_size]` for one prompt or `[prompts, hidden_size]` for several, in float32, each of
        length 1. `pooling` is `last`, the state of the last token, or `mean`, the mean of all.
        """
        import numpy

        is_one = forms.is_one(prompts)
        wanted = [forms.encoded(prompt) for prompt in ([prompts] if is_one else prompts)]
        if not wanted:
            return numpy.empty((0, self.hidden_size), numpy.float32)
        stream = self._engine.submit_embeddings(wanted, pooling)
        rows = [None] * len(wanted)
        try:
            while outputs := stream.read():
                for output in outputs:
                    if output.error is not None:
                        raise output.error
                    rows[output.index] = output.embedding
        finally:
            stream.cancel()
        return rows[0] if is_one else numpy.stack(rows)

    @overload
    def score(self, prompts: Prompt, continuations: str | Sequence[int] | None = None) -> Score: ...

    @overload
    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str | Sequence[int]] | None = None) -> list[Score]: ...

    def score(self, prompts: Prompt | Sequence[Prompt], continuations=None) -> Score | list[Score]:
        """How well the model predicts a text, from its second token on, or a continuation after a prompt; or each of a list.

        A prompt and its continuation are cut into tokens one after the other. Give token ids to cut them otherwise.
        """
        is_one = forms.is_one(prompts)
        if is_one:
            prompts, continuations = [prompts], None if continuations is None else [continuations]
        elif isinstance(continuations, str):
            raise ValueError("continuations: expected a list with one for each prompt, found one text")
        prompts = [self._ids(prompt) for prompt in prompts]
        starts = [1] * len(prompts)
        if continuations is not None:
            if len(continuations) != len(prompts):
                raise ValueError(f"continuations: expected {len(prompts)}, one for each prompt, found {len(continuations)}")
            starts = [len(prompt) for prompt in prompts]
            if 0 in starts:
                raise ValueError(f"prompts: expected at least one token before a continuation, found none in {starts.index(0)}")
            more = [self._continuation_ids(continuation) for continuation in continuations]
            prompts = [prompt + ids for prompt, ids in zip(prompts, more)]
        results = self.generate(prompts, max_tokens=1, n=1, prompt_logprobs=1) if prompts else []
        scores = [_score(result, start) for result, start in zip(results, starts)]
        return scores[0] if is_one else scores

    def logits(self, prompt: Prompt, *, all_positions: bool = False) -> NDArray[float32]:
        """Logits after a prompt, as an array `[vocab_size]` in float32; with `all_positions`, after each of its tokens:
        `[tokens, vocab_size]`. Other work waits meanwhile.
        """
        # Here, where Ctrl-C can interrupt it: the native part could not say so.
        import numpy  # noqa: F401

        rows = self._engine.logits(forms.encoded(prompt), all_positions)
        return rows if all_positions else rows[0]

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        return self._engine.encode(forms.unicode(text, "text"), add_special_tokens)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._engine.decode([forms.token_id(token) for token in token_ids], skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping],
        *,
        tools: Sequence[Mapping] | None = None,
        chat_template_kwargs: Mapping | None = None,
    ) -> str:
        """The prompt of a chat, as text."""
        return self._engine.render_chat(*_conversation(messages, tools, chat_template_kwargs).as_json())

    def close(self) -> None:
        """Ends what is unfinished and gives back memory and threads. Otherwise that happens once nobody has the object."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<braidinfer.LLM {self.model}, {self.kernels} kernels>"

    @property
    def model(self) -> str:
        """What the model is called in messages: its path, mostly."""
        return self._engine.label

    @property
    def kernels(self) -> str:
        """The kernels in use: `fused`, `standard` or `mixed`."""
        return self._engine.kernels

    @property
    def compatibility(self) -> dict | None:
        """The report of the check by which kernels were chosen, as `braidinfer check --json` prints it; None without one."""
        report = self._engine.compat
        return None if report is None else json.loads(report)

    @property
    def notes(self) -> list[str]:
        """What was decided or ignored while loading, and what was said since then, such as that a GPU was lost; one line each."""
        return self._engine.notes

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self._engine.context

    @property
    def block_size(self) -> int:
        """Tokens of a block of the prefix cache."""
        return self._engine.block_size

    @property
    def kv_events(self) -> str | None:
        """Where what the prefix cache holds is published over ZeroMQ, as `IP:PORT`; None if it is not."""
        return self._engine.kv_events

    @property
    def vocab_size(self) -> int:
        return self._engine.vocab_size

    @property
    def hidden_size(self) -> int:
        return self._engine.hidden_size

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end an answer."""
        return self._engine.eos_token_ids

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self._engine.bos_token_id

    def _submit(self, prompts, sampling_params, others):
        """Queues prompts. Returns their stream, where their answers are collected, and whether it is one prompt."""
        is_one = forms.is_one(prompts)
        wanted = [forms.encoded(prompt) for prompt in ([prompts] if is_one else prompts)]
        params = _params_for_each(sampling_params, others, len(wanted))
        stream, shown = self._engine.submit(wanted, params)
        return stream, Answers(shown, params), is_one

    def _generate_each(self, prompts: list, sampling_params, others, progress: Progress) -> list:
        """Answers, and exceptions in place of what cannot be answered."""
        params = _params_for_each(sampling_params, others, len(prompts))
        results: list = [None] * len(prompts)
        accepted = list(range(len(prompts)))
        try:
            stream, answers, _ = self._submit(prompts, params, {})
        except Exception:
            # None was queued: those that can be answered are queued again without the others.
            results = [self._refusal(prompt, wanted) for prompt, wanted in zip(prompts, params)]
            accepted = [index for index in accepted if results[index] is None]
            chosen = [prompts[index] for index in accepted], [params[index] for index in accepted]
            stream, answers, _ = self._submit(*chosen, {})
        with reported(progress, "generating", "answer") as callback:
            _collect(stream, answers, callback, stop_at_error=False)
        for index, result in zip(accepted, answers.or_errors()):
            results[index] = result
        return results

    def _refusal(self, prompt, params: dict) -> Exception | None:
        """Why a prompt cannot be answered, if it cannot."""
        try:
            self._engine.validate(forms.encoded(prompt), params)
        except Exception as error:
            return error
        return None

    def _conversations(self, messages, tools, variables):
        if forms.is_one(messages):
            return _conversation(messages, tools, variables)
        return [_conversation(chat, tools, variables) for chat in messages]

    def _ids(self, prompt) -> list[int]:
        prompt = forms.encoded(prompt)
        return self.tokenize(prompt) if isinstance(prompt, str) else prompt

    def _continuation_ids(self, continuation) -> list[int]:
        continuation = forms.encoded(continuation)
        return self.tokenize(continuation, add_special_tokens=False) if isinstance(continuation, str) else continuation


def _collect(stream, answers: Answers, callback, stop_at_error: bool = True) -> None:
    """Reads until all answers are complete, or one has failed."""
    total = answers.unfinished
    try:
        while answers.unfinished and not (stop_at_error and answers.errors):
            if answers.take(stream.read_answers()) and callback:
                callback(total - answers.unfinished, total)
    finally:
        stream.cancel()


def _conversation(messages, tools, variables):
    variables = dict(variables or {})
    if tools is not None:
        variables["tools"] = list(tools)
    return forms.Conversation(messages, variables)


def _params_for_each(params, others: Mapping, prompts: int) -> list[dict]:
    if params is None or isinstance(params, (SamplingParams, Mapping)):
        return [given(params, others)] * prompts
    if not isinstance(params, Sequence) or not all(isinstance(one, (SamplingParams, Mapping, type(None))) for one in params):
        raise ValueError(f"sampling_params: expected SamplingParams, a dictionary, or a list of these, found {params!r}")
    if len(params) != prompts:
        raise ValueError(f"sampling_params: expected {prompts}, one for each prompt, found {len(params)}")
    return [given(of_prompt, others) for of_prompt in params]


def _score(result: RequestOutput, start: int) -> Score:
    of_tokens = result.prompt_logprobs[start - 1 :]
    return Score(
        token_ids=[token.token_id for token in of_tokens],
        logprobs=[token.logprob for token in of_tokens],
        is_greedy=all(token.top[0][0] == token.token_id for token in of_tokens),
    )
