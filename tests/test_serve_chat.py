"""`aird-mlx chat` as a user types: the guard's verdict before each answer, and a conversation that is kept."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from aird_mlx.demo.language import prompts
from aird_mlx.gguf_export import is_available
from aird_mlx.server.sampling import choose_token
from aird_mlx.server.text import TextStream
from aird_mlx_cli.main import main
from aird_mlx_cli.render_guard import printable

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


@needs_llama
def test_chat_in_the_terminal(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = prompts("harmless", "test", 2, 5)
    lines = [first, "", second, "/new", second, "word " * 600, first, "/quit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(demo_gguf), "--max-tokens", "40"]) == 0
    shown = capsys.readouterr()
    said = shown.out.split("Ctrl-C stops an answer.\n")[1]
    answers = [part.split("\n", 1)[1] for part in said.split("[passed ")[1:]]
    assert len(answers) == 4 and all(answers)
    assert "the context 512" in shown.err and "Traceback" not in shown.err
    assert "behaves as it should" in shown.out and "alarm above" in said


def test_terminal_obeys_no_answer() -> None:
    assert printable("a\x1b[2J\nb\u202e") == "a\\x1b[2J\nb\\x202e"


def spell(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["", "plain", "Grüße, 日本 🙂!", "ab\u0000c"])
@pytest.mark.parametrize("stop", [[], ["zz"], ["日"]])
def test_streamed_text_is_the_whole_text(text: str, stop: list[str]) -> None:
    stream = TextStream(spell, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == (text.split(stop[0])[0] if stop else text)
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_are_no_character_are_not_held_for_ever() -> None:
    stream = TextStream(spell)
    pieces = [stream.push(0xFF) for _ in range(20)]
    assert any(pieces) and "".join(pieces) + stream.finish() == "\ufffd" * 20


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    random = np.random.default_rng(0)
    for temperature, top_p, expected in ((1.0, 1.0, [0.5, 0.3, 0.15, 0.05]), (1.0, 0.79, [0.625, 0.375, 0, 0])):
        drawn = [choose_token(logits, temperature, top_p, random) for _ in range(8000)]
        shares = np.bincount(drawn, minlength=4) / len(drawn)
        np.testing.assert_allclose(shares, expected, atol=0.02)
    assert choose_token(logits, 0.0, 1.0, random) == 0
