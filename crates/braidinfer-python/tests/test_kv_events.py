"""What subscribers learn of the prefix cache."""

import pytest

from braidinfer import LLM

zmq = pytest.importorskip("zmq")
msgpack = pytest.importorskip("msgpack")


def test_subscribers_learn_which_blocks_are_kept():
    subscriber = zmq.Context.instance().socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    subscriber.setsockopt(zmq.RCVTIMEO, 500)
    with LLM(kv_events="127.0.0.1:0") as llm:
        subscriber.connect(f"tcp://{llm.kv_events}")
        # A subscription takes effect some time after it was made.
        for first in range(50):
            prompt = [first + 1] * 17
            llm.generate([prompt], max_tokens=1)
            try:
                topic, number, payload = subscriber.recv_multipart()
                break
            except zmq.Again:
                pass
        time, events, rank = msgpack.unpackb(payload)
        (hash_,) = events[0][1]
        assert (topic, len(number), rank) == (b"", 8, 0)
        assert events == [["BlockStored", [hash_], None, prompt[:16], llm.block_size, None, None]]
        assert llm.generate([prompt], max_tokens=1)[0].num_cached_tokens == 16
    subscriber.close(0)


def test_an_address_that_is_none_or_taken_is_refused(llm):
    assert llm.kv_events is None
    with LLM(kv_events="127.0.0.1:0") as publishing:
        with pytest.raises(OSError, match=f"kv_events: {publishing.kv_events}"):
            LLM(kv_events=publishing.kv_events)
    with pytest.raises(ValueError, match="kv_events: expected an address such as"):
        LLM(kv_events="5557")
    with pytest.raises(ValueError, match="kv_events: expected a prefix cache"):
        LLM(kv_events="127.0.0.1:0", prefix_cache=False)
