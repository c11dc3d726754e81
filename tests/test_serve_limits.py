"""What a server does not let itself be made to do: bad bodies, strangers, crowds, clients that leave, its own end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from aird_mlx.errors import AirdError, ParityError, UsageError
from aird_mlx.gguf_export import is_available
from aird_mlx.server.checks import CheckedFile, check_file
from aird_mlx.server.run import serve
from aird_mlx.server.settings import ServiceSettings
from aird_mlx_cli.main import main
from serving import Running, running

pytestmark = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
# Drawn at this temperature, the demo's answers never end by themselves before they are this long.
LONG: dict[str, Any] = HI | {"temperature": 2.0, "seed": 4, "max_tokens": 400}


@pytest.fixture(scope="module")
def server(checked: CheckedFile) -> Iterator[Running]:
    with running(checked, ServiceSettings(parallel=1, queue=1, max_request_bytes=20_000)) as found:
        yield found


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def with_message(**changes: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"} | changes]}


@pytest.mark.parametrize(
    ("content", "status", "param", "said"),
    [
        (b"", 400, None, "no JSON"),
        (b"{", 400, None, "no JSON"),
        (b"[]", 400, None, "a JSON list"),
        (b'{"messages": NaN}', 400, None, "NaN"),
        (b'{"messages": "\xff"}', 400, None, "no UTF-8"),
        (b"[" * 15_000, 400, None, "nested"),
        (b'{"messages": "' + b"a" * 20_000 + b'"}', 413, None, "longer than 20000"),
        ({}, 400, "messages", "required"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "Hi"}, 400, "messages", "list"),
        (with_message(role="tool"), 400, "messages.0.role", "'user'"),
        (with_message(content=None), 400, "messages.0.content", "string"),
        (with_message(content=[{"type": "image_url"}]), 400, "messages.0.content", "type text"),
        (with_message(content="\ud800"), 400, "messages.0.content", "half of a character"),
        (with_message(content="word " * 700), 400, None, "the context 512"),
        (HI | {"model": "gpt-4"}, 404, "model", "'demo' is served"),
        (HI | {"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 1"),
        (HI | {"max_tokens": 1.5}, 400, "max_tokens", "integer"),
        (HI | {"max_completion_tokens": 0}, 400, "max_completion_tokens", "greater"),
        (HI | {"temperature": -0.1}, 400, "temperature", "greater"),
        (HI | {"temperature": "hot"}, 400, "temperature", "number"),
        (HI | {"top_p": 0}, 400, "top_p", "greater"),
        (HI | {"seed": 2**70}, 400, "seed", "9223372036854775807"),
        (HI | {"stop": [""]}, 400, "stop.0", "at least 1"),
        (HI | {"n": 2}, 400, "n", "not supported"),
        (HI | {"n": True}, 400, "n", "not supported"),
        (HI | {"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        (HI | {"logprobs": True}, 400, "logprobs", "not supported"),
        (HI | {"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        (HI | {"aird_policy": "none"}, 400, "aird_policy", "'log'"),
        (HI | {"aird_policy": "log"}, 400, "aird_policy", "weaker"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_body_is_openais_error(
    http: httpx.Client, content: bytes | dict[str, Any], status: int, param: str | None, said: str
) -> None:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = http.post(CHAT, content=encoded, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert said in error["message"] and "Traceback" not in response.text and "\n" not in error["message"]
    assert error["param"] == param


def test_other_methods_paths_and_types_are_errors_too(http: httpx.Client) -> None:
    found = [http.get(CHAT), http.post("/v1/nothing"), http.get("/v1/models/other"), http.post(CHAT, content=b"{}")]
    assert [one.status_code for one in found] == [405, 404, 404, 415]
    assert all(one.json()["error"]["message"] for one in found)
    empty = http.post("/v1/completions", json={"prompt": ""})
    assert empty.status_code == 400 and empty.json()["error"]["param"] == "prompt"


def test_options_without_effect_are_passed_over(http: httpx.Client) -> None:
    neutral = {"n": 1, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "tools": [], "metadata": {"a": "b"}}
    assert http.post(CHAT, json=HI | neutral | {"max_tokens": 1}).status_code == 200


def test_answer_is_cut_where_the_context_ends(http: httpx.Client) -> None:
    found = http.post(CHAT, json=with_message(content="word " * 400) | {"max_tokens": 10_000, "temperature": 2.0})
    assert found.status_code == 200
    assert found.json()["usage"]["total_tokens"] <= 512


def test_page_of_another_site_is_turned_away(http: httpx.Client) -> None:
    for host, status in (("evil.example", 403), ("localhost:99", 200), ("[::1]:8", 200), ("[", 403)):
        assert http.get("/health", headers={"host": host}).status_code == status


def metric(http: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def requests(server: Running) -> list[dict[str, Any]]:
    """What was logged of requests so far."""
    lines = [json.loads(line) for line in server.log.getvalue().splitlines()]
    return [line for line in lines if line["event"] == "request" and "decision" in line]


def wait_until(condition: Any, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.01)


def test_full_queue_is_503_with_retry_after(http: httpx.Client, server: Running) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: httpx.post(server.url + CHAT, json=LONG, timeout=120), range(8)))
    full = [one for one in found if one.status_code == 503]
    assert full and len(found) - len(full) >= 2, "one is answered, one waits"
    assert all(one.status_code in (200, 503) for one in found)
    assert all(int(one.headers["retry-after"]) >= 1 for one in full)
    assert full[0].json()["error"]["code"] == "queue_full"
    assert len({one.text.split('"message"')[1] for one in found if one.status_code == 200}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_stops_its_generation(
    http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    whole = http.post(CHAT, json=LONG).json()["usage"]["completion_tokens"]
    step = server.engine._sequences.step

    def take_time(tokens: Any) -> Any:
        time.sleep(0.02)  # so that leaving is noticed before the end, however busy the machine
        return step(tokens)

    monkeypatch.setattr(server.engine._sequences, "step", take_time)
    cancelled, written = metric(http, "aird_cancelled_total"), server.engine.written
    logged, failed = len(requests(server)), metric(http, "aird_failed_total")
    body = json.dumps(LONG | {"stream": stream}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as one:
        one.sendall(head.encode() + b"\r\n" + body)
        wait_until(lambda: metric(http, "aird_active_answers") == 1)
        if stream:
            assert one.recv(10)
    wait_until(lambda: metric(http, "aird_cancelled_total") == cancelled + 1)
    wait_until(lambda: metric(http, "aird_active_answers") == 0)
    assert server.engine.written - written < whole, "it was never finished"
    wait_until(lambda: len(requests(server)) > logged)
    line = requests(server)[-1]
    assert (line["status"], line["finish_reason"]) == (200 if stream else 499, "cancelled")
    assert line["decision"] == "passed" and metric(http, "aird_failed_total") == failed
    assert http.post(CHAT, json=HI | {"max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_answer_that_breaks_off_is_failed_and_not_cancelled(
    http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fail(_: Any) -> Any:
        raise ParityError("gguf: llama.cpp could not evaluate")

    counters = [f"aird_{name}_total" for name in ("failed", "cancelled")]
    failed, cancelled = (metric(http, name) for name in counters)
    monkeypatch.setattr(server.engine._sequences, "step", fail)
    response = http.post(CHAT, json=LONG | {"stream": stream})
    assert response.status_code == (200 if stream else 500)
    said = response.text.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(said)["error"]["code"] == "generation_failed", "the last that the client hears"
    assert [metric(http, name) for name in counters] == [failed + 1, cancelled]
    line = requests(server)[-1]
    assert (line["status"], line["finish_reason"]) == (response.status_code, "failed")
    assert "could not evaluate" in line["error"] and line["decision"] == "passed"


def test_key_is_asked_for(checked: CheckedFile) -> None:
    with running(checked, ServiceSettings(parallel=1, api_key="s3cret-ü")) as server:
        url = server.url
        for key in ("x", "other", "s3cret-", "s3cret-\u00fcx"):
            found = httpx.post(url + CHAT, json=HI, headers={"authorization": f"Bearer {key}".encode()})
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/health").status_code == httpx.get(url).status_code == 200
        right = {"authorization": "Bearer s3cret-ü".encode()}
        assert httpx.post(url + CHAT, json=HI | {"max_tokens": 1}, headers=right).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()


def test_other_hosts_need_a_key(checked: CheckedFile) -> None:
    for host in ("0.0.0.0", "::", "example.org"):
        with pytest.raises(UsageError, match="API key"):
            serve(checked, ServiceSettings(host=host))


def test_taken_port_is_one_line(checked: CheckedFile) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AirdError, match="cannot listen on 127"):
            serve(checked, ServiceSettings(port=taken.getsockname()[1]))


def test_failed_checks_stop_the_command(demo_gguf: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "m.gguf"
    content = bytearray(demo_gguf.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    assert main(["serve", str(damaged), "--allow-unverified"]) == 5
    assert main(["chat", str(damaged)]) == 5
    assert main(["serve", str(tiny_gguf)]) == 2
    damaged.write_bytes(b"no gguf at all")
    assert main(["serve", str(damaged)]) == 5
    assert main(["serve", str(tmp_path / "missing.gguf")]) == 1


def test_file_without_probe_cannot_refuse(tiny_gguf: Path) -> None:
    found = check_file(tiny_gguf, allow_unverified=True)
    assert found.is_allowed and found.exit_code == 3
    with pytest.raises(UsageError, match="no probe"), running(found, ServiceSettings(policy="refuse")):
        pass
    with running(found, ServiceSettings(parallel=2, ctx_size=64)) as server:
        asked = {"messages": HI["messages"], "max_tokens": 3}
        answer = httpx.post(server.url + CHAT, json=asked).json()
        assert answer["aird"]["decision"] == "unscored" and answer["aird"]["score"] is None
        refused = httpx.post(server.url + CHAT, json=asked | {"aird_policy": "refuse"})
        assert refused.status_code == 400 and "needs a probe" in refused.text


def start(path: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`aird-mlx serve` as a process, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aird_mlx_cli", "serve", str(path), "--port", "0", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"Listening on (\S+)", line)
        if found:
            return process, found[1]
    raise AssertionError(f"it ended with {process.wait()}")


def test_stopped_server_ends_its_streams_and_exits_with_0(demo_gguf: Path) -> None:
    process, url = start(demo_gguf, "--grace", "60", "--parallel", "1")
    try:
        with httpx.stream("POST", url + CHAT, json=LONG | {"stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(60) == 0
        assert process.stderr is not None
        said = process.stderr.read()
        assert '"event": "stop"' in said and "Traceback" not in said
    finally:
        process.kill()
        process.wait()
