"""The interface of an engine."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the command line says about engines."""

    threads: int
    braidinfer: str | None = None
    braidinfer_kernels: str = "fused"
    llama_cpp: str | None = None
    ik_llama_cpp: str | None = None


class Unavailable(Exception):
    """This engine, or this engine with these weights, is not to be had; the text says why."""


class Engine:
    """One engine in one process: `load` once, then `measure` each piece of work.

    `weights` gives the engine's own word for what it does with each of our weight types, so that tables can say where
    the types are only alike. A type that is missing there is recorded as missing.
    """

    weights = {}

    def __init__(self, settings):
        self.settings = settings

    def available(self):
        """Raises Unavailable if a program or a package is missing."""

    def describe(self):
        """Versions and flags, for the record."""
        return {}

    def load(self, models: Path, model: str, weights: str):
        """`models` holds DIR/, DIR-TYPE.gguf and openvino/DIR-TYPE/ for each model DIR."""
        raise NotImplementedError

    def measure(self, work):
        """A Figure for the loaded model, after a warm-up."""
        raise NotImplementedError


def existing(path):
    if not path.exists():
        raise Unavailable(f"{path.name} is missing")
    return path


def package_version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise Unavailable(f"the package {name} is not installed") from None
