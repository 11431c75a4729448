"""Models of the Language Model Evaluation Harness (`lm_eval`): `import braidinfer.lm_eval` registers the name `braidinfer`.

    import braidinfer.lm_eval
    from lm_eval import simple_evaluate

    simple_evaluate(model="braidinfer", model_args={"pretrained": "Qwen/Qwen3-0.6B"}, tasks=["arc_easy"])

On the command line of `lm_eval`, name the same module: `python -m braidinfer.lm_eval --model braidinfer ..`.
"""

from __future__ import annotations

import logging
import sys

import lm_eval.models  # noqa: F401, without which the harness would know no other models
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from braidinfer.llm import LLM

logger = logging.getLogger(__name__)

# Tasks that set no limit get answers of this length, as with other models of the harness.
_MAX_GEN_TOKS = 256
# What the harness's command line passes where nobody asked for a device.
_UNASKED_DEVICE = "cuda:0"
# Parameters of tasks that say what is so anyway.
_NEUTRAL = {"do_sample": False, "num_beams": 1, "pad_token_id": None}


@register_model("braidinfer")
class BraidinferLM(TemplateLM):
    """`pretrained` is a model as for `braidinfer.LLM`, which gets the other options, too. Batches are made by the engine."""

    def __init__(
        self,
        pretrained: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = _MAX_GEN_TOKS,
        batch_size=None,
        max_batch_size=None,
        device=None,
        **options,
    ):
        super().__init__()
        if device == _UNASKED_DEVICE:
            logger.warning("device %s is what lm_eval says unless told otherwise: cpu is used; `cuda` asks for a GPU", device)
        elif device is not None:
            options["device"] = device
        self.llm = LLM(pretrained, context=max_length, **{"max_sequences": 64, **options})
        self.max_length = self.llm.context
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        return self.llm.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.llm.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        # The harness adds the prefix itself where a text has nothing before it.
        return self.llm.tokenize(string, add_special_tokens=True if add_special_tokens is None else add_special_tokens)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        contexts, continuations = [], []
        for _, context, continuation in requests:
            # Of what is too long, the beginning is left out, as with other models of the harness; a continuation must fit.
            room = max(self.max_length - len(continuation), 1)
            contexts.append(list(context)[-room:])
            continuations.append(list(continuation))
        scores = self.llm.score(contexts, continuations)
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            windows = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(windows)))
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        prompts, params = [], []
        for request in requests:
            context, wanted = request.args
            wanted = {name: value for name, value in wanted.items() if _NEUTRAL.get(name, name) != value}
            until = wanted.pop("until", None) or []
            most = wanted.pop("max_gen_toks", self.max_gen_toks)
            if most >= self.max_length:
                raise ValueError(f"max_gen_toks: expected fewer than the {self.max_length} tokens of the context, found {most}")
            if not wanted.pop("do_sample", wanted.get("temperature", 0) > 0):
                wanted["temperature"] = 0.0
            ids = self.tok_encode(context)
            prompts.append(ids[-(self.max_length - most) :])
            params.append({"stop": until, "max_tokens": most, **wanted})
        return [result.text for result in self.llm.generate(prompts, params)] if prompts else []

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        if not add_generation_prompt:
            raise NotImplementedError("prompts of chats end where an answer begins; gen_prefix is not supported")
        return self.llm.apply_chat_template(chat_history)

    @property
    def tokenizer_name(self) -> str:
        return self.llm.model


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
