"""Collects what comes of a stream into answers."""

from __future__ import annotations

from braidinfer.outputs import CompletionOutput, Logprob, RequestOutput


class Answers:
    """The answers to prompts, as they come."""

    def __init__(self, prompts, params):
        self.requests = [RequestOutput(text, ids, []) for text, ids in prompts]
        self.errors = {}  # by the index of the prompt: what ended an answer to it
        self._completions = []  # with its request and the index of that
        for prompt, (request, wanted) in enumerate(zip(self.requests, params)):
            for index in range(wanted.get("n", 1)):
                logprobs = [] if "logprobs" in wanted else None
                completion = CompletionOutput(index, logprobs=logprobs)
                request.outputs.append(completion)
                self._completions.append((prompt, completion))
        self.unfinished = len(self._completions)

    def indices(self) -> list[tuple[int, int]]:
        """The index of the prompt of each answer, and which of the answers to that it is."""
        prompts = enumerate(self.requests)
        return [(prompt, completion.index) for prompt, request in prompts for completion in request.outputs]

    def take(self, ended) -> int:
        """Adds answers that have ended, and returns how many they are."""
        for answer in ended:
            self._take(answer)
        self.unfinished -= len(ended)
        return len(ended)

    def or_raise(self) -> list[RequestOutput]:
        """The answers. Raises what ended one before it was complete."""
        for error in self.errors.values():
            raise error
        return self.requests

    def or_errors(self) -> list[RequestOutput | Exception]:
        """The answers, and in place of those that are not complete what ended them."""
        return [self.errors.get(prompt, request) for prompt, request in enumerate(self.requests)]

    def _take(self, answer) -> None:
        prompt, completion = self._completions[answer.index]
        if answer.error is not None:
            self.errors[prompt] = answer.error
        completion.token_ids = answer.token_ids
        completion.text = answer.text
        completion.reasoning = answer.reasoning
        completion.finish_reason = answer.finish_reason
        if completion.logprobs is not None:
            completion.logprobs = [Logprob(*of_token) for of_token in answer.logprobs]
        if completion.index == 0:
            request = self.requests[prompt]
            request.num_cached_tokens = answer.num_cached_tokens or 0
            if answer.prompt_logprobs is not None:
                request.prompt_logprobs = [Logprob(*of_token) for of_token in answer.prompt_logprobs]
