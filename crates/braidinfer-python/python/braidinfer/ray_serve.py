"""OpenAI's API on Ray Serve, with as many replicas as are asked for.

    from ray import serve
    from braidinfer.ray_serve import Server

    serve.run(Server.options(num_replicas=2, ray_actor_options={"num_cpus": 8}).bind("Qwen/Qwen3-0.6B"))

On the command line: `serve run braidinfer.ray_serve:app model=Qwen/Qwen3-0.6B`.

Each replica starts `braidinfer serve` and passes requests and answers on as they are, because everything that server does (tools,
schemas, embeddings, refusals by name, an end for clients that leave) then holds here, too, and is written once.

Other deployments ask by a handle; fields are those of the HTTP API:

    handle = serve.get_app_handle("default")
    answer = await handle.chat.remote(messages=[{"role": "user", "content": "Hello!"}], max_tokens=50)
    async for chunk in handle.options(stream=True).stream.remote(prompt="Once upon a time"):
        print(chunk["choices"][0]["text"], end="")

Whoever leaves over HTTP, or calls `cancel()` of what a handle gave, ends what is computed for it. If a replica or its server is
killed, what it had taken breaks off or gets the status 500, and Ray Serve starts another one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from os import PathLike, fspath
from urllib.parse import quote

import aiohttp
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from yarl import URL

_KEY = "BRAIDINFER_API_KEY"
_CHAT, _COMPLETIONS, _EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
# The replica alone talks to its server, over the machine itself.
_FIXED = ("host", "port", "tls_cert", "tls_key", "public_without_key")
# Of one connection, not of what is passed on.
_HOP_BY_HOP = {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_ADDRESS = re.compile(r" is served at (http://[0-9.]+:[0-9]+)")
# Ray Serve adds these, too.
_ADDED = frozenset({"date", "x-request-id"})
# A replica that is killed cannot end its server. The server ends itself once nobody holds its standard input.
_PROGRAM = """
import os, sys, threading
from braidinfer.__main__ import main
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.exit(main("serve"))
"""


@serve.deployment(max_ongoing_requests=64)
class Server:
    """A model behind OpenAI's API, over HTTP and by a handle.

    `model` is that of `braidinfer.LLM`; `options` are the flags of `braidinfer serve` with `_` for `-`: `max_sequences=32`,
    `no_prefix_cache=True`. If left out, `threads` are the CPUs that Ray gives the replica, and `max_sequences` is 64, as many as
    Ray sends it. With keys (`api_key_file`, or `BRAIDINFER_API_KEY` in the environment) requests over HTTP need one of them, and
    each is a client of its own; without keys, all who ask are one client.
    """

    def __init__(self, model: str | PathLike | None = None, **options):
        self._is_stopping = threading.Event()
        options = {"threads": _assigned_cpus(), "max_sequences": 64, "log_format": "none", **options}
        has_keys = "api_key" in options or "api_key_file" in options
        self._key = os.environ.get(_KEY) or (secrets.token_hex() if has_keys else None)
        self._process = _start([*_flags(options), *(["--", fspath(model)] if model else [])], self._key)
        self._address = _address(self._process)
        self._connections: aiohttp.ClientSession | None = None
        threading.Thread(target=_copy, args=(self._process.stderr,), daemon=True).start()
        threading.Thread(target=_end_with, args=(self._process, self._is_stopping), daemon=True).start()

    def __del__(self):
        # Ray Serve calls this before it stops a replica, and then ends its processes.
        self._is_stopping.set()

    async def __call__(self, request: Request) -> Response:
        """Passes on what is asked over HTTP, whatever it is, and the answer."""
        path = request.scope["path"][len(request.scope.get("root_path", "")) :]
        target = f"{quote(path)}?{request.url.query}" if request.url.query else quote(path)
        try:
            answer = await self._send(request.method, target, await request.body(), _passed_on(request.headers))
        except aiohttp.ClientError as error:
            reason = {
                "message": f"the model's server does not answer: {error}",
                "type": "server_error",
                "param": None,
                "code": None,
            }
            return JSONResponse({"error": reason}, 503)
        return StreamingResponse(_parts(answer), answer.status, _passed_on(answer.headers, but=_ADDED))

    async def chat(self, **fields) -> dict:
        """A chat completion."""
        return await self._ask(_CHAT, fields)

    async def complete(self, **fields) -> dict:
        """A completion."""
        return await self._ask(_COMPLETIONS, fields)

    async def embed(self, **fields) -> dict:
        """Embeddings."""
        return await self._ask(_EMBEDDINGS, fields)

    async def stream(self, **fields) -> AsyncIterator[dict]:
        """The chunks of a chat completion, if there are `messages`, or of a completion."""
        answer = await self._post(_CHAT if "messages" in fields else _COMPLETIONS, {**fields, "stream": True})
        try:
            async for line in _lines(answer):
                if line == b"data: [DONE]":
                    return
                if line.startswith(b"data: "):
                    yield _chunk(line)
            raise RuntimeError("the stream ended before the answer did")
        finally:
            answer.close()

    async def check_health(self) -> None:
        """Raises an exception where only another replica helps; Ray Serve then starts one."""
        answer = await self._send("GET", "/health")
        text = (await answer.read()).decode()
        if answer.status != 200:
            raise RuntimeError(text)

    async def _ask(self, path: str, fields: Mapping) -> dict:
        if fields.get("stream"):
            raise ValueError("stream: expected the method `stream` of the handle in place of this field")
        answer = await self._post(path, fields)
        return json.loads(await answer.read())

    async def _post(self, path: str, fields: Mapping) -> aiohttp.ClientResponse:
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        answer = await self._send("POST", path, json.dumps(fields).encode(), headers)
        if answer.status != 200:
            raise _exception(answer.status, json.loads(await answer.read()))
        return answer

    async def _send(self, method: str, target: str, body: bytes = b"", headers: Mapping | None = None) -> aiohttp.ClientResponse:
        if self._connections is None:
            # A connection that is kept could end as a request is written to it.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            unlimited = aiohttp.ClientTimeout(total=None, sock_connect=30)
            self._connections = aiohttp.ClientSession(connector=connector, timeout=unlimited, auto_decompress=False)
        added = ("accept", "accept-encoding", "content-type", "user-agent")
        url = URL(self._address + target, encoded=True)
        return await self._connections.request(
            method, url, data=body or None, headers=headers, skip_auto_headers=added, allow_redirects=False
        )


def app(options: dict) -> serve.Application:
    """For `serve run` and configuration files: `options` are the arguments of `Server`."""
    # On a command line all values are texts.
    return Server.bind(**{name: {"true": True, "false": False}.get(str(value).lower(), value) for name, value in options.items()})


def _assigned_cpus() -> int:
    """As many threads as whole CPUs, and one where there is only a part of one."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)))


def _flags(options: Mapping) -> list[str]:
    flags = []
    for name, value in options.items():
        if name in _FIXED:
            raise ValueError(f"{name}: expected flags of `braidinfer serve` but for {', '.join(_FIXED)}")
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags += [f"{flag}={one}" for one in (value if isinstance(value, (list, tuple)) else [value])]
    return flags


def _start(arguments: list[str], key: str | None) -> subprocess.Popen:
    command = [sys.executable, "-c", _PROGRAM, "--port=0", *arguments]
    environment = {**os.environ, **({_KEY: key} if key else {})}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment)


def _address(process: subprocess.Popen) -> str:
    """Where the server listens, once the model is ready."""
    lines = []
    for line in process.stderr:
        sys.stderr.write(line)
        if found := _ADDRESS.search(line):
            return found[1]
        lines.append(line)
    raise RuntimeError(f"braidinfer serve ended with {process.wait()}: {''.join(lines[-10:]).strip()}")


def _copy(lines) -> None:
    for line in lines:
        sys.stderr.write(line)


def _end_with(process: subprocess.Popen, is_stopping: threading.Event) -> None:
    """Ends the replica with its server: Ray Serve notices that at once, and a failed health check only after three of them."""
    code = process.wait()
    if is_stopping.is_set():
        return
    sys.stderr.write(f"braidinfer serve ended with {code}; this replica ends with it\n")
    sys.stderr.flush()
    os._exit(1)


def _passed_on(headers: Mapping, but: frozenset = frozenset()) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP | but}


async def _parts(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """An answer as it comes. If this ends early, so does what the server computes for it."""
    try:
        async for part in answer.content.iter_any():
            yield part
    finally:
        answer.close()


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for part in answer.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line


def _chunk(line: bytes) -> dict:
    chunk = json.loads(line[len(b"data: ") :])
    if "error" in chunk:
        raise _exception(500, chunk)
    return chunk


def _exception(status: int, body: Mapping) -> Exception:
    return (ValueError if status == 400 else RuntimeError)(f"{status}: {body['error']['message']}")
