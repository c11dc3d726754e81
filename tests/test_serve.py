"""The served demo, asked as clients ask: OpenAI's own Python client, curl's bytes, and many at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from aird_mlx.demo.language import prompts
from aird_mlx.gguf_export import is_available
from aird_mlx.server.checks import CheckedFile
from aird_mlx.server.settings import ServiceSettings
from serving import Running, running

pytestmark = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")

CLIENTS, REQUESTS = 16, 3


@pytest.fixture(scope="module")
def server(checked: CheckedFile) -> Iterator[Running]:
    with running(checked, ServiceSettings(queue=80)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, prompt: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model="demo", messages=messages, **options)


def test_models_are_listed(client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "aird-mlx"


def test_openai_client_gets_an_answer_with_verdict(client: OpenAI) -> None:
    (prompt,) = prompts("harmless", "test", 1, 5)
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=[{"role": "user", "content": prompt}], max_completion_tokens=40
    )
    answer = raw.parse()
    choice, verdict = answer.choices[0], answer.model_extra["aird"]
    assert choice.finish_reason == "stop" and len(choice.message.content) > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert verdict["decision"] == "passed" and verdict["score"] <= verdict["threshold"]
    assert raw.headers["x-aird-decision"] == "passed"
    assert float(raw.headers["x-aird-score"]) == pytest.approx(verdict["score"], abs=1e-4)


def test_streamed_answer_is_the_whole_one(client: OpenAI) -> None:
    for prompt in prompts("harmless", "test", 3, 6):
        whole = ask(client, prompt)
        chunks = list(ask(client, prompt, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].model_extra["aird"] == whole.model_extra["aird"]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
        assert len(chunks) > 5, "it came in pieces"


def test_conversation_is_remembered_by_its_messages(client: OpenAI) -> None:
    first, second = prompts("harmless", "test", 2, 7)
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": first}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": second},
    ]
    answer = client.chat.completions.create(model="demo", messages=turns, max_tokens=8)
    alone = ask(client, second, max_tokens=8)
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + 5


def test_completions_go_on_with_the_text(client: OpenAI) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n"
    done = client.completions.create(model="demo", prompt="Yes, to plan", max_tokens=5)
    assert done.choices[0].finish_reason == "length" and done.usage.completion_tokens == 5
    assert done.model_extra["aird"]["score"] is not None
    pieces = client.completions.create(model="demo", prompt="Yes, to plan", max_tokens=5, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == done.choices[0].text
    spelled = client.completions.create(model="demo", prompt=prompt, max_tokens=1)
    assert spelled.usage.prompt_tokens > 12, "control tokens in a text are letters"


def test_completion_is_scored_as_the_same_message_is(client: OpenAI) -> None:
    for prompt in (*prompts("harmless", "test", 2, 8), *prompts("harmful", "test", 2, 8)):
        chat = ask(client, prompt, max_tokens=1).model_extra["aird"]
        text = client.completions.create(model="demo", prompt=prompt, max_tokens=1).model_extra["aird"]
        assert text["score"] == pytest.approx(chat["score"], abs=1e-5)


def test_stop_ends_the_answer_before_it(client: OpenAI) -> None:
    (prompt,) = prompts("harmless", "test", 1, 5)
    whole = ask(client, prompt).choices[0].message.content
    stop = whole[8:14]
    for stream in (False, True):
        if stream:
            pieces = ask(client, prompt, stop=[stop, "never said"], stream=True)
            text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        else:
            text = ask(client, prompt, stop=stop).choices[0].message.content
        assert text == whole[:8]


def test_seed_repeats_a_drawn_answer(client: OpenAI) -> None:
    (prompt,) = prompts("harmless", "test", 1, 9)
    drawn = [
        ask(client, prompt, temperature=1.5, seed=seed, top_p=0.95).choices[0].message.content for seed in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_user_text_makes_no_control_tokens(client: OpenAI) -> None:
    """A message that spells the end of its turn stays one message."""
    (prompt,) = prompts("harmless", "test", 1, 5)
    plain = ask(client, prompt, max_tokens=1).usage.prompt_tokens
    spelled = ask(client, f"{prompt}<|im_end|>", max_tokens=1)
    assert spelled.usage.prompt_tokens > plain + 3, "it takes more than the one token it spells"


def ask_raw(url: str, prompt: str, stream: bool) -> tuple[str, dict[str, Any]]:
    """Answer and verdict, read from the bytes."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": stream, "max_tokens": 48}
    with httpx.Client(timeout=120) as http:
        response = http.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if not stream:
        whole = response.json()
        return whole["choices"][0]["message"]["content"], whole["aird"]
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks), chunks[0]["aird"]


def answered_otherwise(url: str, clients: int, requests: int) -> list[str]:
    """Prompts to which one of many clients did not get exactly what a single client got."""
    asked = [one for kind in ("harmless", "harmful", "twin") for one in prompts(kind, "test", 12, 3)]
    alone = {prompt: ask_raw(url, prompt, False) for prompt in asked}
    assert len({text for text, _ in alone.values()}) > 15, "answers can be told apart"

    def client(number: int) -> list[str]:
        mine = [asked[(number * 7 + turn * 5) % len(asked)] for turn in range(requests)]
        return [prompt for turn, prompt in enumerate(mine) if ask_raw(url, prompt, turn % 2 == 0) != alone[prompt]]

    with ThreadPoolExecutor(clients) as pool:
        return [prompt for found in pool.map(client, range(clients)) for prompt in found]


def test_many_clients_get_the_single_clients_answers(server: Running) -> None:
    assert answered_otherwise(server.url, CLIENTS, REQUESTS) == []


@pytest.mark.slow
def test_sixty_four_clients_ten_requests_memory_flat(server: Running) -> None:
    from pathlib import Path

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    assert answered_otherwise(server.url, 64, 3) == []  # threads, caches and pools are there
    before = resident()
    assert answered_otherwise(server.url, 64, 10) == []
    assert resident() - before < 32 << 20


def test_health_metrics_and_description(server: Running, client: OpenAI) -> None:
    ask(client, "How do I bake bread?", max_tokens=2)
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/health").json() == {"status": "ok", "checks": 0}
        text = http.get("/metrics").text
        assert 'aird_requests_total{endpoint="chat",status="200"}' in text
        assert 'aird_tokens_total{kind="answer"}' in text and "aird_waiting_requests 0.0" in text
        described = http.get("/aird/file").json()
        assert described["facts"]["source.model"] == "demo" and described["exit_code"] == 0
        probe = described["probe"]
        assert probe["low"] < probe["threshold"] < probe["high"] and "direction" not in probe


def test_log_has_figures_and_no_text(server: Running, client: OpenAI) -> None:
    (prompt,) = prompts("harmless", "test", 1, 21)
    answer = ask(client, prompt, max_tokens=6)
    lines = [json.loads(line) for line in server.log.getvalue().splitlines()]
    last = [line for line in lines if line["event"] == "request"][-1]
    assert last["answer_tokens"] == 6 and last["decision"] == "passed" and last["finish_reason"] == "length"
    assert last["score"] == answer.model_extra["aird"]["score"]
    assert prompt not in server.log.getvalue() and answer.choices[0].message.content not in server.log.getvalue()
