"""Writes golden files one case to a line, escaped so that invisible characters show in a diff."""

import json
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "text"


def compact(value) -> str:
    """ASCII JSON, except that U+2581 stays itself: it is visible, and escaping it doubles the files."""
    text = json.dumps(value, separators=(",", ":")).replace("\\u2581", "\u2581")
    assert json.loads(text) == value, "a backslash in front of U+2581 was misread"
    return text


def write_goldens(path: Path, head: dict, **case_lists: list[dict]) -> None:
    members = [f"{compact(key)}: {compact(value)}" for key, value in head.items()]
    for key, cases in case_lists.items():
        if cases:
            lines = ",\n".join(compact(case) for case in cases)
            members.append(f"{compact(key)}: [\n{lines}\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(members) + "\n}\n", encoding="utf-8", newline="\n")
