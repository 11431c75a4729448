"""Models that are larger than one machine: stages, each a range of layers in a process of its own.

A `Plan` says which kernels compute which layer, by the verdict that `braidinfer check` keeps; all stages load by it. An engine
over the stages, `PipelineLLM`, has embedding, output head, scheduling and text, and is used like `LLM`. Hidden states pass from
stage to stage by whatever carries buffers, such as Ray (`braidinfer.ray_pipeline`). The answers are those of one process, bit for
bit.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import selectors
import threading
from collections.abc import Callable
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy

from braidinfer import _braidinfer
from braidinfer.llm import LLM
from braidinfer.load_options import DEFAULTS, load_options
from braidinfer.progress import Progress, reported

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

Run = Callable[[bytes, "NDArray[float32]"], "NDArray[float32]"]
"""Lets each stage in turn run a step: takes and returns hidden states. What it raises ends the requests that are computed."""


class Plan:
    """What all stages of a pipeline agree on; it can be sent to other processes. `options` are those of `LLM`.

    Raises `ModelError` if it was not measured whether fused kernels are right for the model, or if they are not: stages have no
    others. `force=True` with `kernels="fused"` does without.
    """

    def __init__(self, model: str | PathLike | None = None, **options: Any):
        unknown = sorted(options.keys() - DEFAULTS.keys())
        if unknown:
            raise TypeError(f"options: expected names among {', '.join(DEFAULTS)}, found `{unknown[0]}`")
        self.model = None if model is None else fspath(model)
        self.options = {**DEFAULTS, **options}
        self.text = _braidinfer.pipeline_plan(self.model, load_options(None, **self.options))

    def split(self, stages: int) -> list[range]:
        """The layers of each of so many stages, which take about the same memory."""
        return [range(start, end) for start, end, _ in _braidinfer.split_layers(self.text, stages)]

    def weight_bytes(self, stages: int) -> list[int]:
        """Bytes of the weights of each of so many stages."""
        return [size for _, _, size in _braidinfer.split_layers(self.text, stages)]

    @property
    def num_layers(self) -> int:
        return len(json.loads(self.text)["layer_bytes"])

    def native_options(self, threads: int | None) -> dict:
        """The options for a process with so many compute threads."""
        return load_options(None, **{**self.options, **({} if threads is None else {"threads": threads})})


class Stage:
    """Some consecutive layers of a model, with the keys and values of these."""

    def __init__(self, plan: Plan, layers: range, *, threads: int | None = None, progress: Progress = False):
        if layers.step != 1:
            raise ValueError(f"layers: expected consecutive ones, found {layers}")
        name = f"layers {layers.start} to {layers.stop - 1} of {plan.model or 'the built-in model'}"
        with reported(progress, f"loading {name}", "layer") as callback:
            options = plan.native_options(threads)
            self._stage = _braidinfer.Stage(plan.model, options, plan.text, (layers.start, layers.stop), callback)
        self.layers = layers

    @property
    def fitting_tokens(self) -> int:
        """Tokens whose keys and values there is memory for."""
        return self._stage.fitting_tokens

    def run(self, step: bytes, hidden: NDArray[float32]) -> NDArray[float32]:
        """Hidden states after the layers of this stage, from those before them."""
        return self._stage.run(step, hidden)


class PipelineLLM(LLM):
    """An `LLM` whose layers are computed by stages: `run` lets each of them in turn run a step, and is called by one thread.

    `fitting_tokens` is the least of the stages'. If `run` raises, the requests that are being computed end with that error, and the
    next ones are computed anew from their first token. While `run` refers to this object, only `close()` ends it.
    """

    def __init__(self, plan: Plan, run: Run, fitting_tokens: int, *, threads: int | None = None):
        options = plan.native_options(threads)
        self._engine, work = _braidinfer.Engine.over_stages(plan.model, options, plan.text, fitting_tokens)
        threading.Thread(target=_work, args=(work, run), name="pipeline", daemon=True).start()
        # While the interpreter ends, no thread would answer the engine any more.
        atexit.register(work.close)


def _work(work, run: Run) -> None:
    """Lets stages run the steps of an engine, until it is gone."""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(work, selectors.EVENT_READ)
            while True:
                selector.select()
                step = work.take()
                if step is not None:
                    _run(work, run, step)
    except EOFError:
        pass
    finally:
        # Whatever ended this thread: the engine must not wait for it.
        work.close()
        atexit.unregister(work.close)


def _run(work, run: Run, step: tuple) -> None:
    try:
        result = numpy.ascontiguousarray(run(*step), numpy.float32).reshape(-1)
    except BaseException as error:
        _answer(work.failed, _reason(error))
    else:
        _answer(work.done, result)


def _answer(answer: Callable, value) -> None:
    # Closed meanwhile, nobody waits for it.
    with contextlib.suppress(RuntimeError):
        answer(value)


def _reason(error: BaseException) -> str:
    """An error as text, whatever it makes of itself."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return text.encode("utf-8", "replace").decode() or type(error).__name__
