"""Writes every fixture with `braidinfer quantize`, loads it in llama.cpp and compares greedy tokens.

    python quantized.py --braidinfer PROGRAM [--type TYPE ...] [MODEL ...]

A file that `quantize` refuses or comments on is listed with the reason: GGUF cannot describe it, or llama.cpp does not
heed what it says. Every other file has to load; for f32 and f16 the greedy tokens have to be equal.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TYPES = ["f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]
EXACT = {"f32", "f16"}
LINE = re.compile(r"(\d+) tokens\s+max diff\s+(\S+)\s+KL\s+(\S+)\s+best\s+(\d+)/(\d+)\s+greedy (same|DIFFERENT)")


def quantize(program, model, path, kind):
    """Why llama.cpp cannot be expected to agree; None if it can."""
    done = subprocess.run([program, "quantize", model, path, "--type", kind, "--force"], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    if done.returncode:
        return lines[-1].replace(f"{ROOT}/", "")
    return next((line.removeprefix("note: ") for line in lines if "llama.cpp" in line), None)


def compare(program, path):
    script = Path(__file__).with_name("compare.py")
    done = subprocess.run([sys.executable, script, "--braidinfer", program, path], capture_output=True, text=True)
    return [LINE.search(line).groups() for line in done.stdout.splitlines() if LINE.search(line)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--braidinfer", required=True)
    parser.add_argument("--type", nargs="*", default=TYPES, dest="types")
    parser.add_argument("models", nargs="*", type=Path)
    arguments = parser.parse_args()
    models = arguments.models or sorted((ROOT / "tests/fixtures/models").iterdir())
    models = arguments.models or [*models, ROOT / "crates/braidinfer-cli/demo-model"]
    wrong, reasons = [], {}
    print("| type | files | load | positions with the same best token | equal greedy continuations | largest KL |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.types:
            files = loaded = best = positions = same = prompts = 0
            largest = 0.0
            for model in models:
                path = str(Path(folder) / f"{model.name}.gguf")
                reason = quantize(arguments.braidinfer, str(model), path, kind)
                if reason:
                    reasons[model.name] = reason
                    continue
                files += 1
                rows = compare(arguments.braidinfer, path)
                loaded += bool(rows)
                best += sum(int(row[3]) for row in rows)
                positions += sum(int(row[4]) for row in rows)
                same += sum(row[5] == "same" for row in rows)
                prompts += len(rows)
                largest = max([largest, *(float(row[2]) for row in rows)])
                if not rows or kind in EXACT and any(row[5] != "same" for row in rows):
                    wrong.append(f"{model.name} {kind}")
            print(f"| {kind} | {files} | {loaded} | {best} of {positions} | {same} of {prompts} | {largest:.1e} |", flush=True)
    print()
    for name, reason in sorted(reasons.items()):
        print(f"- {name}: {reason}")
    print("\nnot as they should be:", ", ".join(wrong) or "none")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
