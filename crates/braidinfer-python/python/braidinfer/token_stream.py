"""Answers token by token."""

from __future__ import annotations

from collections import deque

from braidinfer.outputs import Logprob, StreamOutput


class TokenStream:
    """New tokens of one or several answers, for `for` and for `async for`. To close it, or to forget it, cancels what is
    unfinished. A generator for one reader: it is to be read by one thread or one task at a time.
    """

    def __init__(self, stream, answers: list[tuple[int, int]]):
        self._stream = stream
        self._answers = answers  # the prompt of each answer, and which of the answers to that it is
        self._read = deque()
        self._is_closed = False

    def __iter__(self):
        return self

    def __next__(self) -> StreamOutput:
        if not self._read and not self._is_closed:
            try:
                self._read.extend(self._stream.read())
            except BaseException:
                self.close()
                raise
        return self._next(StopIteration)

    def __aiter__(self):
        return self

    async def __anext__(self) -> StreamOutput:
        if not self._read and not self._is_closed:
            try:
                self._read.extend(await self._stream.read_async())
            except BaseException:
                self.close()
                raise
        return self._next(StopAsyncIteration)

    def _next(self, end):
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
        self._stream.cancel()

    async def aclose(self) -> None:
        """Like `close`."""
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()
