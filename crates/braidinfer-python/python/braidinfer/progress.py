"""Progress of work that takes a while."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Union

Progress = Union[bool, Callable[[int, int], object]]
"""False: none. True: a bar, by `tqdm`. Or a function, which is called with how much is done and how much there is."""


@contextmanager
def reported(progress: Progress, what: str, unit: str):
    """Yields the function to call with what is done and what there is, or None."""
    if progress is False or progress is None:
        yield None
    elif progress is True:
        yield from _bar(what, unit)
    else:
        yield progress


def _bar(what: str, unit: str):
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        words = "progress: expected the package tqdm for True, found none: pip install braidinfer[progress]"
        raise ModuleNotFoundError(words) from None

    with tqdm(desc=what, unit=unit) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(max(done, bar.n) - bar.n)

        yield show
