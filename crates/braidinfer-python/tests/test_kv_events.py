"""What subscribers learn of the prefix cache."""

import socket

import pytest

from braidinfer import LLM


def test_it_is_published_where_it_is_asked_for(llm):
    with LLM(kv_events="127.0.0.1:0") as publishing:
        host, _, port = publishing.kv_events.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as subscriber:
            # The greeting of ZeroMQ's protocol.
            assert subscriber.recv(10)[0] == 0xFF
        with pytest.raises(OSError, match=f"kv_events: 127.0.0.1:{port}"):
            LLM(kv_events=publishing.kv_events)
    assert llm.kv_events is None
    with pytest.raises(ValueError, match="kv_events: expected an address such as"):
        LLM(kv_events="5557")
