"""A worker for NVIDIA Dynamo, whose frontend serves the OpenAI API from any number of workers.

    pip install ai-dynamo
    python -m braidinfer.dynamo ./Qwen3-0.6B --served-model-name qwen --discovery-backend file
    python -m dynamo.frontend --discovery-backend file --migration-limit 3

Start more workers for more load. If one dies, the frontend gives its unfinished requests to another, each up to `--migration-limit`
times. What has been answered is then part of the prompt: greedy answers are the same as without, sampled ones and those with
penalties or `min_tokens` may differ.

The frontend renders chats, cuts texts into tokens and joins them again, by the files of the model: a directory in the layout of the
Hugging Face Hub, or a Hub id. The worker takes token ids and gives token ids, and refuses by name what it does not support: several
answers to one prompt, JSON schemas and other guided decoding, log-probabilities of prompts, cache salts, priorities and LoRA.
`--help` has its options: those of `braidinfer.LLM`, and those that all workers of Dynamo have.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from dynamo.common.backend import EngineConfig, GenerateChunk, GenerateRequest, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.common.backend.health_check import build_health_check_payload
from dynamo.common.backend.publisher import KvEventSource, ZmqSource
from dynamo.common.backend.run import run
from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup, DynamoRuntimeConfig
from dynamo.common.utils.runtime import parse_endpoint
from dynamo.common.utils.token_ids import token_ids_to_list
from dynamo.llm.exceptions import EngineShutdown, InvalidArgument
from dynamo.runtime import Context

from braidinfer.llm import LLM
from braidinfer.load_options import DEFAULTS
from braidinfer.outputs import Logprob, StreamOutput
from braidinfer.token_stream import TokenStream

logger = logging.getLogger(__name__)

# The frontend renders chats: its own option is `--custom-jinja-template`. Only this process reads events of the prefix cache, and
# passes them on to routers.
_LOAD_OPTIONS = {name: default for name, default in DEFAULTS.items() if name not in ("chat_template", "kv_events")}

# The parts of a request in which parameters stand, beside those at its top; the last is a part of the one before it.
_GROUPS = {"sampling_options", "stop_conditions", "output_options", "routing", "extra_args", "nvext"}
_PASSED_ON = {
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "max_tokens",
    "min_tokens",
    "stop",
    "ignore_eos",
    "logprobs",
}
# They differ in what the frontend shows of them.
_STOP_TOKEN_IDS = {"stop_token_ids", "stop_token_ids_visible", "stop_token_ids_hidden"}
# What the frontend or its router does itself.
_OF_FRONTEND = {
    "model",
    "token_ids",
    "eos_token_ids",
    "mdc_sum",
    "annotations",
    "router",
    "router_config_override",
    "migration_link",
    "agent_context",
    "request_timestamp_ms",
    "_HEALTH_CHECK",
    "skip_special_tokens",
    "formatted_prompt",
    "return_tokens_as_token_ids",
    "no_stop_trim",
    "extra_fields",
    "detokenize",
    "backend_instance_id",
    "prefill_worker_id",
    "decode_worker_id",
    "dp_rank",
    "prefill_dp_rank",
    "expected_output_tokens",
    "priority_jump",
    "strict_priority",
    "allowed_worker_ids",
    "routing_constraints",
}
# Values that ask for what is so anyway. Several answers are not among it: the first that ends would end the stream of all.
_NEUTRAL = {"n": 1, "best_of": 1, "length_penalty": 1, "priority": 0}


class BraidinferEngine(LLMEngine):
    """Answers the requests of a Dynamo worker. `options` are those of `braidinfer.LLM`."""

    def __init__(self, model: str, options: Mapping[str, Any]):
        self._model = model
        self._options = dict(options)
        self._llm: LLM | None = None
        self._running: dict[TokenStream, str] = {}  # with the ids of their requests

    @classmethod
    async def from_args(cls, argv: Sequence[str] | None = None) -> tuple[BraidinferEngine, WorkerConfig]:
        arguments = _parser().parse_args(argv)
        runtime = DynamoRuntimeConfig.from_cli_args(arguments)
        runtime.validate()
        endpoint = runtime.endpoint or f"{runtime.namespace}.backend.generate"
        namespace, component, name = parse_endpoint(endpoint)
        config = WorkerConfig.from_runtime_config(
            runtime,
            model_name=arguments.model,
            served_model_name=arguments.served_model_name or arguments.model,
            namespace=namespace,
            component=component,
            endpoint=name,
        )
        return cls(arguments.model, {name: getattr(arguments, name) for name in _LOAD_OPTIONS}), config

    async def start(self, worker_id: int) -> EngineConfig:
        self._llm = await asyncio.to_thread(self._load)
        logger.info("loaded %s, %s kernels", self._model, self._llm.kernels)
        for note in self._llm.notes:
            logger.info("%s", note)
        llm = LlmRegistration(
            context_length=self._llm.context,
            kv_cache_block_size=self._llm.block_size,
            max_num_seqs=self._options.get("max_sequences"),
        )
        return EngineConfig(model=self._model, llm=llm)

    async def kv_event_sources(self) -> list[KvEventSource]:
        """What the prefix cache holds, for a frontend with `--router-mode kv`."""
        address = self._llm.kv_events if self._llm is not None else None
        return [] if address is None else [ZmqSource(endpoint=f"tcp://{address}")]

    def _load(self) -> LLM:
        try:
            return LLM(self._model, **self._options, kv_events="127.0.0.1:0")
        except ValueError as error:
            if not str(error).startswith("kv_events:"):
                raise
            # There is no prefix cache to tell of.
            return LLM(self._model, **self._options)

    async def generate(self, request: GenerateRequest, context: Context) -> AsyncGenerator[GenerateChunk, None]:
        """The tokens of an answer, one by one. An answer that is cancelled ends with a chunk that says so."""
        llm = self._llm
        if llm is None:
            raise EngineShutdown("the model is not loaded")
        prompt = token_ids_to_list(request["token_ids"])
        stream = llm.stream(prompt, sampling_params(request))
        generated, is_finished = 0, False
        self._running[stream] = context.id()
        try:
            # Before the request is queued: `abort` finds the stream from here on.
            if context.is_stopped():
                stream.close()
            async for token in stream:
                generated += 1
                is_finished = token.finish_reason is not None
                yield _chunk(llm, token, _usage(len(prompt), generated))
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        except RuntimeError:
            # `cleanup` has ended it.
            if self._llm is not None:
                raise
        finally:
            del self._running[stream]
            stream.close()
        if is_finished:
            return
        if self._llm is None:
            # The frontend lets another worker go on.
            raise EngineShutdown("the worker shuts down")
        yield {"token_ids": [], "index": 0, "finish_reason": "cancelled", "completion_usage": _usage(len(prompt), generated)}

    async def abort(self, context: Context) -> None:
        """Cancels the answer to a request."""
        for stream, request_id in self._running.items():
            if request_id == context.id():
                logger.debug("request %s is cancelled", request_id)
                stream.close()

    async def health_check_payload(self) -> dict[str, Any] | None:
        bos = self._llm.bos_token_id if self._llm is not None else None
        return build_health_check_payload(bos if bos is not None else 0)

    async def cleanup(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.close)
        # What they end with is lost if the event loop ends before.
        for _ in range(100):
            if not self._running:
                break
            await asyncio.sleep(0.01)


def sampling_params(request: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters of a request. Raises `InvalidArgument` for what is asked for and not supported."""
    params: dict[str, Any] = {}
    stop_token_ids: set[int] = set()
    for name, value in _asked(request):
        if name in _PASSED_ON:
            params[name] = value
        elif name in _STOP_TOKEN_IDS:
            stop_token_ids.update(value)
        elif name not in _OF_FRONTEND and _NEUTRAL.get(name) != value:
            raise InvalidArgument(f"{name}: not supported by braidinfer, found {value!r:.100}")
    if stop_token_ids:
        params["stop_token_ids"] = sorted(stop_token_ids)
    if "logit_bias" in params:
        params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
    return params


def _asked(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a request or a part of it asks for, by name. Names are there, without a value, also of what it does not ask for."""
    for name, value in part.items():
        if name in _GROUPS:
            yield from _asked(value or {})
        # 0 is asked for, though it is equal to False.
        elif value is not False and value not in (None, [], {}):
            yield name, value


def _chunk(llm: LLM, token: StreamOutput, usage: dict[str, int]) -> GenerateChunk:
    chunk: GenerateChunk = {"token_ids": [token.token_id], "index": 0}
    if token.logprob is not None:
        chunk["log_probs"] = [token.logprob.logprob]
        if token.logprob.top:
            chunk["top_logprobs"] = [_top(llm, token.logprob)]
    if token.finish_reason is not None:
        chunk["finish_reason"] = token.finish_reason
        chunk["completion_usage"] = usage
    return chunk


def _top(llm: LLM, logprob: Logprob) -> list[dict[str, Any]]:
    texts = [llm.detokenize([token_id], skip_special_tokens=False) for token_id, _ in logprob.top]
    return [
        {"rank": rank, "token_id": token_id, "token": text, "logprob": value}
        for rank, ((token_id, value), text) in enumerate(zip(logprob.top, texts), 1)
    ]


def _usage(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m braidinfer.dynamo", description="A worker for NVIDIA Dynamo.", allow_abbrev=False)
    parser.add_argument("model", help="a directory in the layout of the Hugging Face Hub, or a Hub id")
    parser.add_argument("--served-model-name", help="the name by which clients ask for it; MODEL by default")
    options = parser.add_argument_group("options of braidinfer.LLM")
    for name, default in _LOAD_OPTIONS.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            options.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            options.add_argument(flag, type=_number_or_name, default=default)
    DynamoRuntimeArgGroup().add_arguments(parser)
    return parser


def _number_or_name(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def main() -> None:
    run(BraidinferEngine)


if __name__ == "__main__":
    main()
