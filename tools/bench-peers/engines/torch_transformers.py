"""Hugging Face transformers in PyTorch, eager, with its default attention."""

import time

from engines.engine import Engine, existing, package_version
from work import Figure


class Adapter(Engine):
    weights = {"bf16": "bf16"}

    def available(self):
        package_version("torch")
        package_version("transformers")

    def describe(self):
        import torch

        return {
            "version": f"transformers {package_version('transformers')}, torch {package_version('torch')}",
            "flags": f"eager, default attention, {torch.backends.cpu.get_cpu_capability()}",
        }

    def load(self, models, model, weights):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(self.settings.threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        path = existing(models / model)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, local_files_only=True)
        self.model.eval()
        self.prefill(1, 64)

    def measure(self, work):
        if work.phase == "prefill":
            seconds, _ = self.prefill(work.batch, work.tokens)
        else:
            seconds = self.decode(work)
        return Figure(work.batch * work.tokens / seconds)

    def prefill(self, batch, tokens):
        """Seconds, and the model's answer. Like all others it computes the logits of the last position only."""
        ids = self.torch.randint(self.model.config.vocab_size, (batch, tokens))
        started = time.perf_counter()
        answer = self.model(ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started, answer

    def decode(self, work):
        _, answer = self.prefill(work.batch, work.context)
        answer = self.step(answer)  # the first step allocates
        started = time.perf_counter()
        for _ in range(work.tokens):
            answer = self.step(answer)
        return time.perf_counter() - started

    def step(self, answer):
        ids = answer.logits[:, -1:].argmax(-1)
        return self.model(ids, past_key_values=answer.past_key_values, use_cache=True)
