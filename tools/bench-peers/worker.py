"""One engine with one model in one process, so that memory and threads of one engine never meet another's.

Reads a task as JSON from standard input and prints, as its last line, an answer as JSON. Started by run.py.
"""

import json
import sys
from pathlib import Path

import engines
from engines.engine import Settings, Unavailable
from work import Work, refused


def describe(engine):
    engine.available()
    return engine.describe()


def measure(engine, task):
    """A figure for each piece of work; one that fails does not take the others with it."""
    work = [Work(**item) for item in task["work"]]
    try:
        engine.available()
        engine.load(Path(task["models"]), task["model"], task["weights"])
    except Exception as error:
        return [refused(one_line(error))] * len(work)
    return [figure(engine, item) for item in work]


def figure(engine, work):
    try:
        return engine.measure(work)
    except Exception as error:
        return refused(one_line(error))


def one_line(error):
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


def main():
    task = json.load(sys.stdin)
    try:
        engine = engines.create(task["engine"], Settings(**task["settings"]))
        if "work" in task:
            answer = {"figures": [figure.as_json() for figure in measure(engine, task)]}
        else:
            answer = {"description": describe(engine), "weights": engine.weights}
    except Unavailable as error:
        answer = {"unavailable": str(error)}
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
