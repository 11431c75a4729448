"""OpenVINO GenAI on models that `optimum-cli export openvino` has written; see the README for the exports."""

import numpy as np

from engines.engine import Engine, existing, package_version
from work import Figure

EXPORTS = {"q8_0": "int8", "q4_0": "int4", "bf16": "fp16"}


class Adapter(Engine):
    weights = {
        "q8_0": "int8, one scale per row",
        "q4_0": "int4, groups of 32",
        "bf16": "fp16 weights, arithmetic as OpenVINO chooses",
    }

    def available(self):
        package_version("openvino-genai")

    def describe(self):
        version = f"openvino-genai {package_version('openvino-genai')}, openvino {package_version('openvino')}"
        return {"version": version, "flags": f"LLMPipeline, INFERENCE_NUM_THREADS={self.settings.threads}"}

    def load(self, models, model, weights):
        import openvino_genai

        self.genai = openvino_genai
        path = existing(models / "openvino" / f"{model}-{EXPORTS[weights]}")
        self.pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=self.settings.threads)
        self.token_times(1, 64, 4)

    def measure(self, work):
        if work.phase == "prefill":
            started, times = self.token_times(work.batch, work.tokens, 1)
            return Figure(work.tokens / (times[0] - started))
        # The first token comes from the prompt.
        _, times = self.token_times(work.batch, work.context, work.tokens + 1)
        return Figure(work.batch * work.tokens / (times[-1] - times[0]))

    def token_times(self, batch, prompt, generate):
        """When generation began and when each token came, in seconds, by OpenVINO's own clock."""
        from openvino import Tensor

        # Other ids each time, so that no prefix is found in a cache.
        ids = np.random.default_rng().integers(100, 30000, (batch, prompt))
        inputs = self.genai.TokenizedInputs(Tensor(ids), Tensor(np.ones_like(ids)))
        options = self.genai.GenerationConfig(max_new_tokens=generate, ignore_eos=True, do_sample=False)
        metrics = self.pipeline.generate(inputs, options).perf_metrics
        times = [time / 1000 for time in metrics.raw_metrics.m_new_token_times]
        return times[0] - metrics.get_ttft().mean / 1000, times
