"""llama.cpp, through its own `llama-bench` and, for several sequences at once, `llama-batched-bench`."""

import json
import re
import subprocess
from pathlib import Path

from engines.engine import Engine, existing
from engines.program import executable, output
from work import WEIGHTS, Figure


class Adapter(Engine):
    weights = {name: name for name in WEIGHTS}
    option = "--llama-cpp (or LLAMA_CPP_BIN)"
    version_program = "llama-bench"
    flags = "llama-bench -r 1 and llama-batched-bench, defaults otherwise"

    def folder(self):
        return self.settings.llama_cpp

    def available(self):
        for name in ("llama-bench", "llama-batched-bench"):
            executable(self.program(name), self.option)

    def program(self, name):
        return self.folder() and str(Path(self.folder()) / name)

    def describe(self):
        return {
            "version": version(self.program(self.version_program)),
            "flags": self.flags,
            "build": build_options(self.program("")),
        }

    def load(self, models, model, weights):
        self.file = existing(models / f"{model}-{weights}.gguf")

    def measure(self, work):
        return Figure(self.one_sequence(work) if work.batch == 1 else self.several_sequences(work))

    def one_sequence(self, work):
        amounts = (work.tokens, 0) if work.phase == "prefill" else (0, work.tokens)
        text = output(
            self.program("llama-bench"), "-m", self.file, "-t", self.settings.threads, "-r", 1, "-o", "json",
            "-p", amounts[0], "-n", amounts[1], "-d", work.context,
        )  # fmt: skip
        return json.loads(text)[0]["avg_ts"]

    def several_sequences(self, work):
        length = work.batch * (work.context + work.tokens)
        text = output(
            self.program("llama-batched-bench"), "-m", self.file, "-t", self.settings.threads, "-c", length,
            "-npp", work.context, "-ntg", work.tokens, "-npl", work.batch, "--output-format", "jsonl",
        )  # fmt: skip
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return lines[0]["speed_tg"]


def version(program):
    """Its two lines on version and compiler, as one."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return ", ".join((done.stdout + done.stderr).strip().splitlines()[:2])


def build_options(folder):
    """Which instructions it was built for, from the build directory around `bin`: the programs do not say."""
    cache = Path(folder).resolve().parent / "CMakeCache.txt"
    if not cache.exists():
        return "build options unknown"
    options = r"^(GGML_(?:NATIVE|F16C|FMA|AVX\w*|AMX\w*|OPENMP)):BOOL=ON$"
    return " ".join(re.findall(options, cache.read_text(), re.MULTILINE))
