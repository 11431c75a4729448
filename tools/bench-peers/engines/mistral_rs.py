"""mistral.rs, through its Python package, from the safetensors directory, quantized in situ.

It refuses GGUF files without a vocabulary, which models of random weights do not have. The blocks are of the
same types.
"""

import json
import random
import tempfile
import time
from pathlib import Path

import placeholder_tokenizer
from engines.engine import Engine, existing, package_version
from work import Figure

IN_SITU = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4K", "bf16": None}
# What it requires of a config.json and generated models leave to the defaults of their class.
REQUIRED = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "max_window_layers": 28,
        "sliding_window": None,
        "use_sliding_window": False,
    },
}


class Adapter(Engine):
    weights = {"q8_0": "q8_0, in situ", "q4_0": "q4_0, in situ", "q4_k_m": "q4_k, in situ", "bf16": "bf16"}

    def available(self):
        package_version("mistralrs")

    def describe(self):
        return {
            "version": f"mistralrs {package_version('mistralrs')}",
            "flags": f"streaming, no prefix cache, RAYON_NUM_THREADS={self.settings.threads}",
        }

    def load(self, models, model, weights):
        import mistralrs

        self.mistralrs = mistralrs
        directory = existing(models / model)
        config = json.loads((directory / "config.json").read_text())
        self.vocabulary = config["vocab_size"]
        with tempfile.TemporaryDirectory() as folder:
            folder = with_tokenizer(directory, config, Path(folder))
            which = mistralrs.Which.Plain(str(folder), dtype=mistralrs.ModelDType.Auto)
            self.runner = mistralrs.Runner(which, in_situ_quant=IN_SITU[weights], prefix_cache_n=0, token_source="none")
        self.token_times(1, 64, 4)

    def measure(self, work):
        if work.phase == "prefill":
            started, times = self.token_times(work.batch, work.tokens, 1)
            return Figure(work.tokens / (times[0][0] - started))
        # It fails on longer prompts of several quantized sequences, so these decode their way to the context too.
        prompt = work.context if work.batch == 1 else 1
        _, times = self.token_times(work.batch, prompt, work.context - prompt + work.tokens + 1)
        # All began together and go on together: the times of the last tokens are those of the whole batch.
        begun, ended = (max(own[i] for own in times) for i in (-work.tokens - 1, -1))
        return Figure(work.batch * work.tokens / (ended - begun))

    def token_times(self, batch, prompt, generate):
        """When the first request was sent, and for each sequence when its tokens came, in seconds."""
        started = time.perf_counter()
        streams = [self.stream(prompt, generate) for _ in range(batch)]
        times = [[] for _ in streams]
        running = list(range(batch))
        while running:
            # All advance together, so waiting for one costs the others nothing.
            running = [i for i in running if self.next_token(streams[i], times[i])]
        for own in times:
            if len(own) != generate:
                raise RuntimeError(f"{len(own)} tokens came, {generate} were asked for")
        return started, times

    def stream(self, prompt, generate):
        words = [random.randrange(100, self.vocabulary) for _ in range(prompt)]
        request = self.mistralrs.ChatCompletionRequest(
            messages=placeholder_tokenizer.text(words),
            model="default", max_tokens=generate, temperature=0.0, stream=True, ignore_eos=True,
        )  # fmt: skip
        return self.runner.send_chat_completion_request(request)

    def next_token(self, stream, times):
        chunk = next(stream, None)
        if chunk is None:
            return False
        if chunk.choices and chunk.choices[0].delta.content:
            times.append(time.perf_counter())
        return True


def with_tokenizer(directory, config, folder):
    """The model's weights with a tokenizer that can make any prompt, without touching the model's own directory."""
    for file in directory.glob("*.safetensors"):
        (folder / file.name).symlink_to(file.resolve())
    config = REQUIRED.get(config["model_type"], {}) | config
    (folder / "config.json").write_text(json.dumps(config))
    placeholder_tokenizer.write(folder, config["vocab_size"])
    return folder
