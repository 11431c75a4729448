"""Collects the outputs of a stream into answers."""

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

    def take(self, outputs) -> int:
        """Adds what a step gave, and returns how many answers have ended."""
        ended = sum(self._take(output) for output in outputs)
        self.unfinished -= ended
        return ended

    def or_raise(self) -> list[RequestOutput]:
        """The answers. Raises what ended one before it was complete."""
        for error in self.errors.values():
            raise error
        return self.requests

    def or_errors(self) -> list[RequestOutput | Exception]:
        """The answers, and in place of those that are not complete what ended them."""
        return [self.errors.get(prompt, request) for prompt, request in enumerate(self.requests)]

    def _take(self, output) -> bool:
        prompt, completion = self._completions[output.index]
        if output.error is not None:
            self.errors[prompt] = output.error
            return True
        request = self.requests[prompt]
        completion.token_ids.append(output.token_id)
        completion.text += output.text
        completion.reasoning += output.reasoning
        if output.logprobs is not None:
            completion.logprobs.append(Logprob(*output.logprobs))
        if output.num_cached_tokens is not None and completion.index == 0:
            request.num_cached_tokens = output.num_cached_tokens
            if output.prompt_logprobs is not None:
                request.prompt_logprobs = [Logprob(*of_token) for of_token in output.prompt_logprobs]
        completion.finish_reason = output.finish_reason
        return output.finish_reason is not None
