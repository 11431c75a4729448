"""ik_llama.cpp, a fork of llama.cpp with kernels of its own, through its `llama-bench` and `llama-batched-bench`."""

import json
import re

from engines import llama_cpp
from engines.program import output
from work import WEIGHTS

# Weights repacked on loading, in both programs.
REPACK = "-rtr"


class Adapter(llama_cpp.Adapter):
    weights = {name: name for name in WEIGHTS}
    option = "--ik-llama-cpp (or IK_LLAMA_CPP_BIN)"
    # Its llama-bench does not say.
    version_program = "llama-batched-bench"
    flags = "llama-bench -r 1 -rtr 1 and llama-batched-bench -rtr -no-fa (which fails with flash attention), defaults otherwise"

    def folder(self):
        return self.settings.ik_llama_cpp

    def one_sequence(self, work):
        # It has no depth to decode at, but decodes after a prompt.
        if work.phase == "prefill":
            amounts = ("-p", work.tokens, "-n", 0)
        else:
            amounts = ("-p", 0, "-n", 0, "-gp", f"{work.context},{work.tokens}")
        text = output(
            self.program("llama-bench"), "-m", self.file, "-t", self.settings.threads, "-r", 1, "-o", "json",
            REPACK, 1, *amounts,
        )  # fmt: skip
        # Its warnings are in the midst of the JSON.
        return json.loads(re.sub(r"^WARNING.*$", "", text, flags=re.MULTILINE))[0]["avg_ts"]

    def several_sequences(self, work):
        length = work.batch * (work.context + work.tokens)
        text = output(
            self.program("llama-batched-bench"), "-m", self.file, "-t", self.settings.threads, "-c", length,
            "-npp", work.context, "-ntg", work.tokens, "-npl", work.batch, REPACK, "-no-fa", merged=True,
        )  # fmt: skip
        # Columns: prompt, generated, sequences, cache, then seconds and tokens per second of prompt and of decoding.
        rows = re.findall(r"^\|\s*\d+\s*\|.*$", text, re.MULTILINE)
        return float(rows[0].split("|")[8])
