"""Waiting in asyncio, without threads that would call Python."""

from __future__ import annotations

import asyncio


def is_running() -> bool:
    """Whether this code runs in an event loop, which must not be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def read(stream, poll):
    """What a method of a stream gives, `poll` or `poll_answers`, once it does; an empty list if all answers have ended."""
    while True:
        outputs = poll()
        if outputs is not None:
            return outputs
        await _readable(stream.fileno())


async def _readable(socket: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(socket, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)


def _set(future) -> None:
    if not future.done():
        future.set_result(None)
