"""Answers token by token."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from braidinfer import event_loop
from braidinfer.outputs import Logprob, StreamOutput


class TokenStream:
    """New tokens of one or several answers, for `for` and for `async for`. To close it, or to forget it, cancels what is
    unfinished. Like a generator, it is read by one thread or one task at a time.
    """

    def __init__(self, submit: Callable):
        """`submit` queues the prompts and gives their stream, and for each answer its prompt and which of its answers it is. Within
        an event loop, which it would block, it is called on another thread, once the first token is asked for.
        """
        self._submit = submit
        self._stream = None
        self._answers: list[tuple[int, int]] = []
        self._read: deque = deque()
        self._is_closed = False
        if not event_loop.is_running():
            self._start()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> StreamOutput:
        if not self._read and not self._is_closed:
            try:
                self._start()
                self._read.extend(self._stream.read())
            except BaseException:
                self.close()
                raise
        return self._next(StopIteration)

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> StreamOutput:
        if not self._read and not self._is_closed:
            try:
                if self._stream is None:
                    await asyncio.to_thread(self._start)
                self._read.extend(await event_loop.read(self._stream, self._stream.poll))
            except BaseException:
                self.close()
                raise
        return self._next(StopAsyncIteration)

    def _start(self) -> None:
        if self._stream is None:
            stream, self._answers = self._submit()
            self._stream = stream
            # Closed while it was queued.
            if self._is_closed:
                stream.cancel()

    def _next(self, end: type[Exception]) -> StreamOutput:
        if not self._read or self._is_closed:
            raise end
        output = self._read.popleft()
        if output.error is not None:
            self.close()
            raise output.error
        prompt, answer = self._answers[output.index]
        return StreamOutput(
            text=output.text,
            token_id=output.token_id,
            prompt_index=prompt,
            index=answer,
            reasoning=output.reasoning,
            finish_reason=output.finish_reason,
            logprob=Logprob(*output.logprobs) if output.logprobs is not None else None,
        )

    def close(self) -> None:
        """Cancels what is unfinished."""
        self._is_closed = True
        if self._stream is not None:
            self._stream.cancel()

    async def aclose(self) -> None:
        """Like `close`."""
        self.close()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(self, *_) -> None:
        self.close()
