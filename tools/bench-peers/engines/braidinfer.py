"""Braidinfer, through `braidinfer bench`."""

import json

from engines.engine import Engine, existing
from engines.program import executable, output
from work import WEIGHTS, Figure, refused


class Adapter(Engine):
    weights = {name: name for name in WEIGHTS}

    def available(self):
        executable(self.settings.braidinfer, "--braidinfer (or BRAIDINFER)")

    def describe(self):
        version = output(self.settings.braidinfer, "--version").strip()
        return {"version": version, "flags": f"bench --repetitions 1 --kernels {self.settings.braidinfer_kernels}"}

    def load(self, models, model, weights):
        self.file = existing(models / f"{model}-{weights}.gguf")

    def measure(self, work):
        prompt, generate = (work.tokens, 1) if work.phase == "prefill" else (1, work.tokens)
        text = output(
            self.settings.braidinfer, "bench", self.file, "--json",
            "--kernels", self.settings.braidinfer_kernels, "--threads", self.settings.threads,
            "--prompt-tokens", prompt, "--gen-tokens", generate, "--batch", work.batch, "--depth", work.context,
            "--repetitions", 1,
        )  # fmt: skip
        return read_figure(json.loads(text), work, self.settings.braidinfer_kernels)


def read_figure(document, work, kernels):
    """The one place that knows the form of `braidinfer bench --json`."""
    for entry in document["results"]:
        same_kernels = entry.get("kernels", kernels) == kernels
        same_work = entry["phase"] == work.phase and entry.get("batch", 1) == work.batch
        if same_kernels and same_work:
            return figure(entry, work)
    return refused(f"bench reports no {work.phase} with batch {work.batch} on {kernels} kernels")


def figure(entry, work):
    """Refuses a figure that was measured after another number of tokens than the other engines'."""
    context = entry.get("context", work.context)
    if work.phase == "decode" and not work.context <= context <= work.context + work.tokens:
        return refused(f"bench decoded after {context} tokens, not {work.context}")
    return Figure(entry["tok_s"]["median"])
