"""A model over several machines of a Ray cluster: each stage of the pipeline is an actor.

    from braidinfer.ray_pipeline import RayPipelineLLM

    llm = RayPipelineLLM("/models/Qwen3-32B", stages=4, actor_options={"num_cpus": 16, "scheduling_strategy": "SPREAD"})
    print(llm.generate("Once upon a time", max_tokens=20).text)

Every machine reads the layers of its stages from the same path. Hidden states go from actor to actor as buffers of Ray. If a stage
dies, the requests that are being computed end with an error that names it, Ray starts it again, and the next requests are served.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import ray

from braidinfer import ModelError
from braidinfer.pipeline import PipelineLLM, Plan, Stage


class StageError(ModelError):
    """A stage of a pipeline that failed, or cannot be started."""


class StageActor:
    """One stage in a process of its own. `birth` tells whether it was started again meanwhile."""

    def __init__(self, plan: Plan, layers: range, threads: int | None):
        self._stage = Stage(plan, layers, threads=threads)
        self._birth = uuid.uuid4().hex

    def birth(self) -> str:
        return self._birth

    def process(self) -> int:
        return os.getpid()

    def fitting_tokens(self) -> int:
        return self._stage.fitting_tokens

    def run(self, birth: str, step: bytes, hidden):
        if birth != self._birth:
            raise StageError("it was started again, and has lost its keys and values")
        return self._stage.run(step, hidden)


class RayPipelineLLM(PipelineLLM):
    """An `LLM` whose layers are computed by `stages` actors, or by one for each of the given ranges of layers.

    `actor_options` are Ray's, for each actor (`num_cpus`, `resources`, `scheduling_strategy`, ...), or a list with those of each.
    `threads` is the number of compute threads of a stage; if None, its `num_cpus`. All stages must be there within `start_timeout`
    seconds, and within `restart_timeout` after one has died; else requests end with an error. The other `options` are those of `LLM`.
    """

    def __init__(
        self,
        model: str | PathLike | None = None,
        *,
        stages: int | Sequence[range] = 2,
        actor_options: Mapping | Sequence[Mapping] = (),
        threads: int | None = None,
        start_timeout: float = 3600,
        restart_timeout: float = 300,
        **options: Any,
    ):
        plan = Plan(model, **options)
        layers = plan.split(stages) if isinstance(stages, int) else _whole(stages, plan.num_layers)
        each = [actor_options] * len(layers) if isinstance(actor_options, Mapping) else list(actor_options) or [{}] * len(layers)
        if len(each) != len(layers):
            raise ValueError(f"actor_options: expected {len(layers)}, one for each stage, found {len(each)}")
        self._stages = _Stages(plan, layers, each, threads, start_timeout, restart_timeout)
        super().__init__(plan, self._stages, self._stages.fitting_tokens())

    @property
    def layers(self) -> list[range]:
        """The layers of each stage."""
        return self._stages.layers

    @property
    def actors(self) -> list:
        """The actors of Ray, in the order of their layers."""
        return self._stages.actors

    def close(self) -> None:
        # First, so that nothing waits for them.
        self._stages.close()
        super().close()


class _Stages:
    """The actors, in the order of their layers."""

    def __init__(
        self,
        plan: Plan,
        layers: list[range],
        options: list,
        threads: int | None,
        start_timeout: float,
        restart_timeout: float,
    ):
        self.layers = layers
        self._restart_timeout = restart_timeout
        self.actors = [
            # A step is never run again: keys and values of others may be lost meanwhile.
            ray.remote(StageActor)
            .options(**{"num_cpus": 1, **own, "max_restarts": -1, "max_task_retries": 0})
            .remote(plan, of_stage, threads or int(own.get("num_cpus", 1)) or 1)
            for of_stage, own in zip(layers, options)
        ]
        self._births: list | None = self._ask("birth", start_timeout)

    def fitting_tokens(self) -> int:
        return min(self._ask("fitting_tokens", self._restart_timeout))

    def __call__(self, step: bytes, hidden):
        if self._births is None:
            self._births = self._ask("birth", self._restart_timeout)
        results = [hidden]
        for actor, birth in zip(self.actors, self._births):
            results.append(actor.run.remote(birth, step, results[-1]))
        try:
            return ray.get(results[-1])
        except Exception:
            self._births = None
            raise self._failure(results[1:]) from None

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _ask(self, method: str, timeout: float) -> list:
        """What a method of each actor returns, once all are started."""
        deadline = time.monotonic() + timeout
        # Until an actor that died is there again.
        asked = [getattr(actor, method).options(max_task_retries=-1).remote() for actor in self.actors]
        answers = []
        for index, answer in enumerate(asked):
            try:
                answers.append(ray.get(answer, timeout=max(deadline - time.monotonic(), 0)))
            except Exception as error:
                raise StageError(f"{self._name(index)} cannot be started: {_reason(error)}") from None
        return answers

    def _failure(self, results: list) -> StageError:
        """The failure of the first stage that failed."""
        for index, result in enumerate(results):
            try:
                ray.get(result)
            except Exception as error:
                return StageError(f"{self._name(index)} failed: {_reason(error)}")
        return StageError("a stage of the pipeline failed, and then did not")

    def _name(self, index: int) -> str:
        layers = self.layers[index]
        return f"stage {index + 1} of {len(self.layers)} (layers {layers.start} to {layers.stop - 1})"


def _reason(error: Exception) -> str:
    """An error in one line, without the traces of other processes."""
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process has ended, or cannot be reached"
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def _whole(stages: Sequence[range], num_layers: int) -> list[range]:
    """Fails with `ValueError` unless the ranges are all layers, in order."""
    covered = [layer for of_stage in stages for layer in of_stage]
    if covered != list(range(num_layers)) or not all(stages):
        raise ValueError(f"stages: expected ranges of the layers 0 to {num_layers - 1}, in order, found {list(stages)}")
    return list(stages)
