"""The command line that comes with the package, and the check under its old names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES

from braidinfer import LLM, __version__
from braidinfer.utils.kernel_compatibility import FusedKernelCompatibilityChecker, check_model_compatibility

PROGRAM = Path(sys.executable).with_name("braidinfer")


def run(*arguments, program=(PROGRAM,), code=0):
    done = subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_it_is_the_same_program(llm):
    assert run("--version").strip() == f"braidinfer {__version__}"
    story = json.loads(run("run", "--raw", "Once upon a time", "--temperature", 0, "--json"))
    assert story["ids"] == llm.generate("Once upon a time", temperature=0).token_ids
    assert run("run", "Once", "-n", 1, program=(sys.executable, "-m", "braidinfer"))
    run("run", "--top-p", "7", "Once", code=3)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found as Linux shows them")
def test_chats_are_rendered_by_workers(chat_model):
    """In processes of their own, which a Python starts."""
    chat_model.apply_chat_template([{"role": "user", "content": "Hello"}])
    children = Path("/proc/self/task").glob("*/children")
    processes = [Path("/proc", child, "cmdline").read_bytes() for file in children for child in file.read_text().split()]
    assert any(b"_braidinfer" in process for process in processes)


@pytest.mark.parametrize("model", sorted((FIXTURES / "models").iterdir()), ids=lambda path: path.name)
def test_fixtures_give_the_ids_of_the_program(model):
    prompts = json.loads((model / "expected.json").read_text())["prompts"]
    ids = prompts[0]["ids"]
    python = LLM(model).generate(ids, max_tokens=8, temperature=0, ignore_eos=True)
    typed = ",".join(map(str, ids))
    answer = json.loads(run("run", model, "--ids", typed, "-n", 8, "--temperature", 0, "--ignore-eos", "--json"))
    assert (answer["prompt_ids"], answer["ids"]) == (ids, python.token_ids)


def test_a_check_gives_the_documented_status():
    model = FIXTURES / "models" / "qwen3-extreme"
    can_use, result = check_model_compatibility(model, depth="brief")
    assert can_use == (result.status != "INCOMPATIBLE") and result.status in ("COMPATIBLE", "WARNING", "INCOMPATIBLE")
    assert 0 <= result.score <= 1 and result.reason and result.measured
    assert json.loads(json.dumps(result.report))["status"] == result.status
    static = FusedKernelCompatibilityChecker(depth="static").check_model(model)
    assert static.measured is None and static.predicted
    loaded = LLM(model)
    assert FusedKernelCompatibilityChecker().check_model(loaded).report == loaded.compatibility
    with pytest.raises(ValueError, match="depth"):
        check_model_compatibility(model, depth="deep")


def test_the_check_as_a_module(tmp_path):
    model = FIXTURES / "models" / "llama"
    module = (sys.executable, "-m", "braidinfer.utils.check_compatibility_cli")
    text = run(model, "--verbose", "--export", tmp_path / "report.json", program=module)
    assert "COMPATIBLE" in text
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "COMPATIBLE"
    run(tmp_path / "nowhere", program=module, code=3)


def test_kernels_by_their_old_names():
    assert LLM(model_kwargs={"use_custom_kernels": True}).compatibility
    assert LLM(model_kwargs={"use_custom_kernels": False}).kernels == "standard"
    forced = LLM(model_kwargs={"use_custom_kernels": True, "force_custom_kernels": True})
    assert forced.kernels == "fused" and forced.compatibility is None
