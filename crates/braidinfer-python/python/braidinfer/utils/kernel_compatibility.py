"""Do fused kernels change a model's answers?

>>> can_use, result = check_model_compatibility("path/to/model")  # doctest: +SKIP
>>> result.status, result.score, result.reason  # doctest: +SKIP
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike, fspath

from braidinfer import _braidinfer
from braidinfer.llm import LLM
from braidinfer.load_options import DEFAULTS, load_options
from braidinfer.progress import Progress, reported


@dataclass(frozen=True)
class CompatibilityResult:
    """The verdict on one model on this machine."""

    status: str
    """`COMPATIBLE`, `WARNING` or `INCOMPATIBLE`."""
    score: float
    """From 0 to 1; above 0.8 is compatible, below 0.5 incompatible."""
    reason: str
    """In one sentence."""
    same_answers: bool
    """Whether the measurement shows that answers do not change."""
    predicted: dict
    """What the weights let expect."""
    measured: dict | None
    """What was measured; None if only the weights were looked at."""
    recommendations: list[str]
    report: dict
    """All of it, as `braidinfer check --json` prints it."""
    notes: list[str]
    """What was decided or ignored meanwhile."""

    @classmethod
    def of(cls, report: dict, notes: list[str]) -> CompatibilityResult:
        names = ("status", "score", "reason", "same_answers", "predicted", "measured", "recommendations")
        return cls(**{name: report[name] for name in names}, report=report, notes=notes)


class FusedKernelCompatibilityChecker:
    """Measures whether fused kernels change a model's answers, on its own checkpoint and this machine.

    `depth` is `normal`, `brief` (what loading does), `full`, or `static`, which looks at the weights alone and only predicts. The
    other arguments are as those of `braidinfer.LLM`.
    """

    def __init__(self, *, depth: str = "normal", progress: Progress = False, **options):
        self._depth = depth
        self._progress = progress
        self._options = load_options(options, **DEFAULTS)

    def check_model(self, model: str | PathLike | LLM | None) -> CompatibilityResult:
        """Checks a model by its path or Hub id; of an `LLM`, gives the report by which it chose its kernels. None is the built-in
        model. Raises as `braidinfer.LLM` does.
        """
        if isinstance(model, LLM):
            report = model.compatibility
            if report is None:
                raise ValueError(f"model: expected one that was checked, found {model.kernels} kernels by choice")
            return CompatibilityResult.of(report, model.notes)
        path = None if model is None else fspath(model)
        with reported(self._progress, f"checking {path or 'the built-in model'}", "layer") as callback:
            report, notes = _braidinfer.check(path, self._options, self._depth, callback)
        return CompatibilityResult.of(json.loads(report), notes)


def check_model_compatibility(
    model: str | PathLike | LLM | None, model_name: str | None = None, **options
) -> tuple[bool, CompatibilityResult]:
    """Whether fused kernels can be used with a model, and the verdict. `model_name` is ignored: reports call models by their path.
    The other arguments are those of `FusedKernelCompatibilityChecker`.
    """
    result = FusedKernelCompatibilityChecker(**options).check_model(model)
    return result.status != "INCOMPATIBLE", result
