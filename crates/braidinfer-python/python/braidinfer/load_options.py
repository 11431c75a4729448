"""How a model is to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from os import fspath

from braidinfer.worker import worker

# What the options are called in `model_kwargs`, besides their own names.
_CUSTOM_KERNELS = ("use_custom_kernels", "force_custom_kernels")

# Of `braidinfer.LLM`.
DEFAULTS = {
    "kernels": "auto",
    "force": False,
    "precision": "auto",
    "dtype": "auto",
    "kv_dtype": "auto",
    "quantize": None,
    "device": "cpu",
    "threads": None,
    "context": None,
    "max_sequences": 16,
    "kv_cache_tokens": None,
    "prefix_cache": True,
    "prompt_lookup": True,
    "chat_template": None,
    "packed_cache": True,
}


def load_options(model_kwargs: Mapping | None, **options) -> dict:
    """The native part's options. What is in `model_kwargs` wins. Raises `ValueError` for a name that is none."""
    more = dict(model_kwargs or {})
    custom = {name: more.pop(name) for name in _CUSTOM_KERNELS if name in more}
    unknown = sorted(more.keys() - options.keys())
    if unknown:
        known = ", ".join([*_CUSTOM_KERNELS, *options])
        raise ValueError(f"model_kwargs: expected names among {known}, found `{unknown[0]}`")
    options.update(_kernels(custom))
    options.update(more)
    if options["chat_template"] is not None:
        options["chat_template"] = fspath(options["chat_template"])
    return {**options, "worker": worker()}


def _kernels(custom: Mapping) -> dict:
    if custom.get("force_custom_kernels"):
        if not custom.get("use_custom_kernels", True):
            raise ValueError("model_kwargs: expected use_custom_kernels beside force_custom_kernels, found it off")
        return {"kernels": "fused", "force": True}
    if "use_custom_kernels" not in custom:
        return {}
    return {"kernels": "auto" if custom["use_custom_kernels"] else "standard"}
