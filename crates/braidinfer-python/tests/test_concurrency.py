"""One model, many threads, tasks and processes; and Ctrl-C."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from braidinfer import LLM

STORIES = [f"Once upon a time, {who}" for who in ("a dog", "a cat", "Tom", "Lily", "the sun", "a tree", "a boy", "rain")]


def told(llm):
    return [result.token_ids for result in llm.generate(STORIES, max_tokens=12, temperature=0)]


def test_eight_threads(llm):
    expected = told(llm)

    def one(index):
        story = STORIES[index % len(STORIES)]
        if index % 2:
            return [token.token_id for token in llm.stream(story, max_tokens=12, temperature=0)]
        return llm.generate(story, max_tokens=12, temperature=0).token_ids

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(64)))
    assert answers == [expected[index % len(STORIES)] for index in range(64)]


def test_sixty_four_tasks(llm):
    expected = told(llm)

    async def one(index):
        story = STORIES[index % len(STORIES)]
        if index % 2:
            return [token.token_id async for token in llm.stream(story, max_tokens=12, temperature=0)]
        return (await llm.generate_async(story, max_tokens=12, temperature=0)).token_ids

    async def all_of_them():
        return await asyncio.gather(*(one(index) for index in range(64)))

    assert asyncio.run(all_of_them()) == [expected[index % len(STORIES)] for index in range(64)]


def test_a_cancelled_task_makes_room():
    narrow = LLM(max_sequences=1)

    async def endless():
        async for _ in narrow.stream("Once", ignore_eos=True):
            started.set()

    async def cancelled():
        task = asyncio.create_task(endless())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await narrow.generate_async("Once", max_tokens=3)

    async def run():
        global started
        started = asyncio.Event()
        return await cancelled()

    assert len(asyncio.run(run()).token_ids) == 3


def test_other_threads_run_while_it_computes(llm):
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    llm.generate(STORIES * 4, max_tokens=40, ignore_eos=True)
    done.set()
    thread.join()
    assert len(ticks) > 20


def run(program):
    """Runs it as from a terminal: a program that is started in the background ignores Ctrl-C."""
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = heed + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "call", ["llm.generate('Once', ignore_eos=True, n=100)", "list(llm.stream('Once', ignore_eos=True, n=100))"]
)
def test_ctrl_c_ends_an_answer_and_not_the_program(call):
    done = run(
        f"""
        import os, signal, threading
        from braidinfer import LLM

        llm = LLM(max_sequences=1)
        for _ in range(2):  # as in a notebook, again and again
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                {call}
            except KeyboardInterrupt:
                print("interrupted")
        print(len(llm.generate("Once", max_tokens=3).token_ids))
        """
    )
    assert done.stdout.split() == ["interrupted", "interrupted", "3"], done.stderr


def test_a_copy_of_the_process_says_what_it_lacks():
    done = run(
        """
        import asyncio
        import os
        from braidinfer import LLM

        llm = LLM()
        asyncio.run(llm.generate_async("Once", max_tokens=1))
        stream = llm.stream("Once", max_tokens=1)
        child = os.fork()
        if child == 0:
            try:
                llm.generate("Once", max_tokens=1)
            except RuntimeError as error:
                print("fork" in str(error), flush=True)
            try:
                list(stream)
            except RuntimeError as error:
                print("fork" in str(error), flush=True)
            own = LLM()
            print(len(asyncio.run(own.generate_async("Once", max_tokens=2)).token_ids), flush=True)
            llm.close()
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert done.stdout.split() == ["True", "True", "2", "0"], done.stderr


def test_programs_end_as_they_should():
    """The engine's threads go on while the interpreter ends."""
    program = """
        import asyncio
        from braidinfer import LLM

        llm = LLM()

        async def main():
            async for token in llm.stream("Once", max_tokens=10):
                pass
            try:
                await asyncio.wait_for(llm.generate_async("Once", n=100), 0.02)
            except asyncio.TimeoutError:
                pass
            unread = llm.stream("Once", ignore_eos=True)
            await unread.__anext__()

        asyncio.run(main())
        """
    for _ in range(15):
        done = run(program)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_event_loop_is_not_blocked_by_the_engine(llm):
    async def main():
        longest, last, done = 0.0, time.monotonic(), False

        async def watch():
            nonlocal longest, last
            while not done:
                await asyncio.sleep(0.001)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        watching = asyncio.create_task(watch())
        # Steps of a full prompt for each of many answers.
        busy = [asyncio.create_task(llm.generate_async([7] * 300 + [index], max_tokens=2)) for index in range(40)]
        begun = time.monotonic()
        await asyncio.gather(*busy)
        done = True
        await watching
        return longest, time.monotonic() - begun

    longest, whole = asyncio.run(main())
    assert longest < whole / 2


def test_ctrl_c_ends_what_is_computed_between_steps():
    done = run(
        """
        import os, signal, threading
        from braidinfer import LLM

        llm = LLM()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                llm.logits([5] * 400, all_positions=True)
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert done.stdout.split() == ["interrupted"], done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read as Linux tells it")
def test_models_leave_nothing_behind():
    def memory():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def create_and_drop(times):
        for index in range(times):
            llm = LLM(kernels="standard")
            llm.generate("Once", max_tokens=1)
            if index % 2:
                llm.close()

    create_and_drop(20)
    before, threads = memory(), threading.active_count()
    create_and_drop(60)
    assert memory() - before < 32 << 20
    assert threading.active_count() == threads


def test_signals_are_pythons_own():
    done = run(
        """
        from braidinfer import LLM

        LLM().generate("Once", max_tokens=1)
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    )
    assert done.stdout.split() == ["True"], done.stderr
