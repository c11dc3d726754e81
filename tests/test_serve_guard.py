"""What the guard does: policies on real answers of a pruned demo, and a second opinion from another file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aird_mlx.demo.language import prompts
from aird_mlx.errors import DirectionError, ParityError
from aird_mlx.evaluation import judge_answer
from aird_mlx.gguf_export import export_gguf, is_available
from aird_mlx.gguf_export.runtime import LlamaRuntime
from aird_mlx.gguf_export.sequences import Sequences
from aird_mlx.guard.manifest import Probe
from aird_mlx.guard.probe import read_probe, scale
from aird_mlx.model import load, save
from aird_mlx.server.checks import CheckedFile
from aird_mlx.server.conversation import make_request, render_conversation
from aird_mlx.server.engine import Piece
from aird_mlx.server.guard import POLICIES, REFUSAL_TEXT, Guard, Verdict
from aird_mlx.server.second_opinion import SecondOpinion
from aird_mlx.server.settings import ServiceSettings, open_guard
from conftest import last_token, make_speaker, write_model
from serving import checked_demo, pruned_demo, running, sealed_demo

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> CheckedFile:
    return checked_demo(sealed_demo(tmp_path_factory.mktemp("pruned"), pruned_demo()))


@pytest.fixture(scope="module")
def guard(pruned: CheckedFile) -> Iterator[Guard]:
    found = open_guard(pruned, ServiceSettings(policy="log", max_tokens=64))
    yield found
    found.close()


def ask(guard: Guard, prompt: str, policy: str) -> tuple[Verdict, str]:
    messages = [{"role": "user", "content": prompt}]
    request = make_request(guard.engine, render_conversation(guard.engine.chat, messages), 64)

    async def answer() -> tuple[Verdict, str]:
        async with aclosing(guard.answer(request, messages, policy)) as stream:
            events = [event async for event in stream]
        assert isinstance(events[0], Verdict)
        return events[0], "".join(event.text for event in events if isinstance(event, Piece))

    return asyncio.run(answer())


@needs_llama
def test_policies_differ_only_where_the_probe_is_alarmed(guard: Guard) -> None:
    decisions: dict[str, set[str]] = {policy: set() for policy in POLICIES}
    replaced = 0
    for prompt in (*prompts("harmful", "test", 24, 13), *prompts("harmless", "test", 8, 13)):
        found = {policy: ask(guard, prompt, policy) for policy in POLICIES}
        free = found["log"][1]
        assert found["warn"][1] == free, "a warning changes no word"
        assert len({verdict.score for verdict, _ in found.values()}) == 1
        verdict, text = found["refuse"]
        assert verdict.score is not None and verdict.threshold is not None
        assert verdict.alarm == (verdict.score > verdict.threshold)
        for policy, (one, _) in found.items():
            decisions[policy].add(one.decision)
        if verdict.decision == "refused":
            assert judge_answer(free) != "refusal" and text == REFUSAL_TEXT
            replaced += 1
        else:
            assert text == free
            assert (verdict.decision == "model-refused") == (verdict.alarm and judge_answer(free) == "refusal")
    assert replaced > 0
    assert decisions["log"] == {"passed", "logged"} and decisions["warn"] == {"passed", "warned"}
    assert decisions["refuse"] == {"passed", "refused", "model-refused"}


@needs_llama
def test_nothing_of_a_refused_answer_is_said_when_it_breaks_off(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off before it can be judged, it may be one that would have been replaced."""
    refused = next(
        one
        for one in prompts("harmful", "test", 60, 13)
        if ask(guard, one, "refuse")[0].decision == "refused"
        and judge_answer(" ".join(ask(guard, one, "log")[1].split()[:3])) != "refusal"
    )
    step, left = guard.engine._sequences.step, iter(range(2))

    def break_off(tokens: Any) -> Any:
        if next(left, None) is None:
            raise ParityError("gguf: llama.cpp could not evaluate")
        return step(tokens)

    monkeypatch.setattr(guard.engine._sequences, "step", break_off)
    conversation = render_conversation(guard.engine.chat, [{"role": "user", "content": refused}])
    request = make_request(guard.engine, conversation, 64)
    said: list[object] = []

    async def collect() -> None:
        async with aclosing(guard.answer(request, [], "refuse")) as stream:
            async for event in stream:
                said.append(event)

    with pytest.raises(ParityError):
        asyncio.run(collect())
    assert [type(one) for one in said] == [Verdict]


@needs_llama
def test_refused_answer_over_http(pruned: CheckedFile, guard: Guard) -> None:
    refused = next(
        one for one in prompts("harmful", "test", 60, 13) if ask(guard, one, "refuse")[0].decision == "refused"
    )
    body: dict[str, Any] = {"messages": [{"role": "user", "content": refused}], "max_tokens": 64}
    with running(pruned, ServiceSettings(policy="warn", parallel=2, log_prompts=True)) as server:
        warned = httpx.post(server.url + CHAT, json=body)
        assert warned.json()["aird"]["warning"] and warned.headers["x-aird-warning"]
        assert warned.json()["choices"][0]["finish_reason"] != "content_filter"
        body["aird_policy"] = "refuse"
        whole = httpx.post(server.url + CHAT, json=body)
        choice = whole.json()["choices"][0]
        assert choice["finish_reason"] == "content_filter" and whole.headers["x-aird-decision"] == "refused"
        assert choice["message"]["content"] == choice["message"]["refusal"] == REFUSAL_TEXT
        lines = httpx.post(server.url + CHAT, json=body | {"stream": True}).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert said == REFUSAL_TEXT and chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
        logged = [json.loads(line) for line in server.log.getvalue().splitlines()]
        assert [line["decision"] for line in logged] == ["warned", "refused", "refused"]
        assert logged[1]["messages"][0]["content"] == refused and logged[1]["answer"] == REFUSAL_TEXT


def test_refusal_text_is_a_refusal() -> None:
    assert judge_answer(REFUSAL_TEXT) == "refusal"


def speaker(folder: Path, word: str) -> Path:
    """A file that says one word, whatever it is asked."""
    model = load(write_model(folder / word))
    save(make_speaker(model, {last_token(model): word}), folder / f"{word}-mlx")
    return export_gguf(folder / f"{word}-mlx", folder / f"{word}-guard.gguf", "f32").path


@needs_llama
def test_second_opinion_confirms_withdraws_or_alarms(guard: Guard, tmp_path: Path) -> None:
    harmful, harmless = (
        next(one for one in prompts(kind, "test", 60, 13) if ask(guard, one, "log")[0].alarm == wanted)
        for kind, wanted in (("harmful", True), ("harmless", False))
    )
    expected = {
        ("safe", "alarm"): ("passed", "passed"),
        ("unsafe", "alarm"): ("logged", "passed"),
        ("safe", "always"): ("logged", "passed"),
        ("unsafe", "always"): ("logged", "logged"),
        ("maybe", "alarm"): ("logged", "passed"),
    }
    for (word, when), decisions in expected.items():
        second = SecondOpinion(speaker(tmp_path / when, word))
        judged = Guard(guard.engine, "log", second, when)
        found = [ask(judged, prompt, "log")[0] for prompt in (harmful, harmless)]
        assert tuple(one.decision for one in found) == decisions, (word, when)
        assert found[0].second_opinion == {"maybe": "unparsable"}.get(word, word)
        assert found[1].second_opinion == (None if when == "alarm" else word)
        second.close()


@needs_llama
def test_residuals_of_long_prompts_are_those_of_one_batch(demo_gguf: Path) -> None:
    random = np.random.default_rng(3)
    ids = random.integers(3, 2000, size=70).tolist()
    found = {}
    for n_batch in (512, 32):
        with LlamaRuntime(demo_gguf, n_batch=n_batch, layers=[5]) as runtime:
            sequences = Sequences(runtime, 1, 128)
            logits, rows = sequences.open(0, ids)
            found[n_batch] = logits, rows[5]
            if n_batch == 512:
                whole = runtime.residuals(ids)[1][5]
                np.testing.assert_array_equal(rows[5], whole[-len(rows[5]) :])
            sequences.close()
    np.testing.assert_allclose(found[512][1], found[32][1], atol=2e-2)
    np.testing.assert_allclose(found[512][0], found[32][0], atol=5e-2)


def make_probe(**changes: Any) -> Probe:
    weights = {"layers": (2,), "tokens": 2, "weight": (1.0, 0.0, 0.0, 0.0), "offset": 0.0}
    given = weights | {"threshold": 0.5, "auc": 0.9, "prompts": (1, 1, 0)}
    return Probe(harmful=(1.0, 0.5), benign=(-1.0, 0.25), **(given | changes))


def test_reading_is_the_projection_at_the_probes_place() -> None:
    rows = {2: np.array([[9.0, 9.0], [0.75, 3.0], [9.0, 9.0]])}
    reading = read_probe(make_probe(), rows)
    assert (reading.score, reading.threshold, reading.alarm) == (0.75, 0.5, True)
    assert not read_probe(make_probe(threshold=0.75), rows).alarm, "at the threshold there is none"
    assert scale(make_probe()) == (-1.75, 2.5) and scale(make_probe(threshold=9.0)) == (-1.75, 9.0)
    for place in ({3: rows[2]}, {2: rows[2][:1]}):
        with pytest.raises(DirectionError, match="its last 2 are needed"):
            read_probe(make_probe(), place)


@needs_llama
@pytest.mark.parametrize("outtype", ["f16", "q4_k_m"])
def test_bits_do_not_depend_on_the_company(demo_gguf: Path, tmp_path: Path, outtype: str) -> None:
    """A sequence alone, and among others of other lengths that come and go: the same logits to the bit."""
    path = demo_gguf
    if outtype != "f16":
        path = export_gguf(demo_gguf.parent / "mlx", tmp_path / "m.gguf", outtype).path
    random = np.random.default_rng(1)
    prompts_ids = [random.integers(3, 2000, size=size).tolist() for size in (20, 300, 5, 41)]
    following = random.integers(3, 2000, size=(16, 4)).tolist()
    with LlamaRuntime(path, layers=[5]) as runtime:
        sequences = Sequences(runtime, 4, 512)
        assert sequences.parallel == 4
        if outtype == "f16":  # of other types it depends on how llama.cpp packs them for the processor
            assert sequences.least > 1, "one column alone is rounded otherwise"
        alone, together = [], []
        for found, company in ((alone, False), (together, True)):
            sequences.open(2, prompts_ids[0])
            for step, tokens in enumerate(following):
                if company and step in (0, 3, 6):
                    sequences.open({0: 0, 3: 3, 6: 1}[step], prompts_ids[1 + step // 3])
                if company and step == 9:
                    sequences.forget(0)
                others = {0: step < 9, 3: step >= 3, 1: step >= 6} if company else {}
                batch = {number: tokens[number] for number, there in others.items() if there} | {2: tokens[2]}
                found.append(sequences.step(batch)[2])
            for number in range(4):
                sequences.forget(number)
        np.testing.assert_array_equal(np.stack(alone), np.stack(together))
        sequences.close()
