"""Models that tests share. Nothing is read from or left in the user's cache."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
FIXTURES = REPOSITORY / "tests" / "fixtures"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    os.environ["BRAIDINFER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def llm(cache):
    """The built-in model."""
    from braidinfer import LLM

    return LLM()


@pytest.fixture(scope="session")
def chat_model(cache, tmp_path_factory):
    """The built-in model, with a chat template that tells reasoning from the answer."""
    import shutil

    from braidinfer import LLM

    model = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(REPOSITORY / "crates" / "braidinfer-cli" / "demo-model", model)
    template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% for tool in tools %}tool {{ tool.function.name }}\n{% endfor %}"
        "{% if polite %}please\n{% endif %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    return LLM(model)
