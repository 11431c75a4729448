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
    "gpu_layers": None,
    "gpu_memory": None,
    "threads": None,
    "context": None,
    "max_sequences": 16,
    "kv_cache_tokens": None,
    "prefix_cache": True,
    "prompt_lookup": True,
    "chat_template": None,
    "packed_cache": True,
    "kv_events": None,
}

# The largest whole number of each.
_COUNTS = {
    "gpu_memory": 2**63 - 1,
    "threads": 2**32 - 1,
    "context": 2**32 - 1,
    "max_sequences": 2**32 - 1,
    "kv_cache_tokens": 2**32 - 1,
}


def load_options(model_kwargs: Mapping | None, **options) -> dict:
    """The native part's options. What is in `model_kwargs` wins. Raises `ValueError` for a name that is none."""
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise ValueError(f"model_kwargs: expected a dictionary, found {model_kwargs!r}")
    more = {str(name): value for name, value in (model_kwargs or {}).items()}
    custom = {name: more.pop(name) for name in _CUSTOM_KERNELS if name in more}
    unknown = sorted(more.keys() - options.keys())
    if unknown:
        known = ", ".join([*_CUSTOM_KERNELS, *options])
        raise ValueError(f"model_kwargs: expected names among {known}, found `{unknown[0]}`")
    options.update(_kernels(custom))
    options.update(more)
    if options["chat_template"] is not None:
        options["chat_template"] = fspath(options["chat_template"])
    for name, value in options.items():
        _check(name, value)
    if options["gpu_layers"] is not None:
        layers = options["gpu_layers"]
        options["gpu_layers"] = [layers] if isinstance(layers, int) else list(layers)
    return {**options, "worker": worker()}


def _check(name: str, value) -> None:
    """Raises `ValueError` for a value of another type than the option's. Names are looked at later."""
    if name in _COUNTS:
        most = _COUNTS[name]
        is_right = value is None and DEFAULTS[name] is None or type(value) is int and 0 <= value <= most
        expected = f"a whole number from 0 to {most}"
    elif name == "gpu_layers":
        layers = value if isinstance(value, (list, tuple)) else [0 if value is None else value]
        is_right = len(layers) > 0 and all(type(count) is int and 0 <= count < 1 << 32 for count in layers)
        expected = "a whole number from 0 to 4294967295, or a list with one for each GPU"
    elif isinstance(DEFAULTS[name], bool):
        is_right, expected = isinstance(value, bool), "True or False"
    else:
        is_right, expected = isinstance(value, str) or value is None and DEFAULTS[name] is None, "a name"
    if not is_right:
        raise ValueError(f"{name}: expected {expected}, found {value!r}")


def _kernels(custom: Mapping) -> dict:
    if custom.get("force_custom_kernels"):
        if not custom.get("use_custom_kernels", True):
            raise ValueError("model_kwargs: expected use_custom_kernels beside force_custom_kernels, found it off")
        return {"kernels": "fused", "force": True}
    if "use_custom_kernels" not in custom:
        return {}
    return {"kernels": "auto" if custom["use_custom_kernels"] else "standard"}
