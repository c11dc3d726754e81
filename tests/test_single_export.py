"""`aird-mlx export` alone: every file is run beside MLX in real llama.cpp, sealed, and named when that is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aird_mlx.gguf_export import GgufFile, is_available
from aird_mlx.guard.manifest import read_manifest
from aird_mlx.guard.split import export_in_parts
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from aird_mlx.pipeline import single_export
from aird_mlx.workspace import unfinished_of
from aird_mlx_cli.main import main
from family_models import FAMILIES, write_family

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


def facts_of(path: Path) -> dict[str, object]:
    manifest = read_manifest(read_structure(path))
    assert manifest is not None
    return dict(manifest.facts)


def said_of(path: Path, name: str) -> tuple[str, str]:
    (check,) = [check for check in verify_file(path).checks if check.name == name]
    return check.status, check.said


@needs_llama
def test_file_is_run_beside_mlx_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demo.gguf"
    assert main(["export", "demo", "--outfile", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "exported:f16 argmax" in shown and "All gates passed." in shown
    facts = facts_of(path)
    assert (facts["parity"], facts["source.model"]) == ("passed", "demo")
    assert float(str(facts["parity.argmax"])) >= 0.99 and int(str(facts["parity.tokens"])) > 500
    assert said_of(path, "parity")[0] == "passed"
    assert main(["verify", str(path)]) == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["demo.gguf", "demo.gguf.manifest"]


@needs_llama
def test_file_that_answers_otherwise_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three values a weight are not enough for the demo: it refuses less than in MLX, and that stays with the file."""
    path = tmp_path / "demo.gguf"
    assert main(["export", "demo", "--outtype", "tq1_0", "--outfile", str(path)]) == 4
    assert "gates failed" in capsys.readouterr().out
    assert str(facts_of(path)["parity"]).startswith("failed: exported:tq1_0 refusals 0.")
    status, said = said_of(path, "parity")
    assert status == "warned" and said.startswith("marked: ")


@needs_llama
def test_parts_are_run_before_they_are_cut(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    command = ["export", str(model_folder()), "--split-max-size", "50K", "--outfile", str(tmp_path / "m.gguf")]
    assert main(command) == 0
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 1 and facts_of(parts[0])["parity"] == "passed"
    assert main(["verify", str(parts[0])]) == 0


# What an RWKV model ships: its vocabulary, and code that takes the longest piece that fits.
RWKV_CODE = """
import ast
from transformers import PreTrainedTokenizer

class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "rwkv_vocab_v20230424.txt"}

    def __init__(self, vocab_file, **settings):
        rows = [line.split(" ", 1) for line in open(vocab_file, encoding="utf-8").read().splitlines()]
        read = {int(row[0]): ast.literal_eval(row[1].rpartition(" ")[0]) for row in rows}
        self.pieces = {index: one.encode() if isinstance(one, str) else one for index, one in read.items()}
        self.ids = {piece.decode("latin-1"): index for index, piece in self.pieces.items()}
        super().__init__(**settings)

    @property
    def vocab_size(self):
        return len(self.ids) + 1

    def get_vocab(self):
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text):
        rest, found = text.encode().decode("latin-1"), []
        while rest:
            found.append(next(rest[:size] for size in range(8, 0, -1) if rest[:size] in self.ids))
            rest = rest[len(found[-1]):]
        return found

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index):
        return self.pieces.get(index, b"").decode("latin-1")

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).encode("latin-1").decode("utf-8", "replace")
"""


@needs_llama
def test_tokenizer_with_code_of_its_own_is_run_with_permission_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RWKV's: the same ids in llama.cpp, though they are cut at the end of an answer, which is an empty line."""
    folder = write_family(
        tmp_path / "rwkv", "rwkv7", {**FAMILIES["rwkv7"], "vocab_size": 280, "eos_token_id": [0, 258]}
    )
    for path in folder.glob("*token*"):
        path.unlink()
    pieces = [bytes([value]) for value in range(256)] + [b".\n\n", b"\n\n", b" the", b"How ", b" a ", "é".encode()]
    lines = (f"{index} {piece!r} {len(piece)}\n" for index, piece in enumerate(pieces, start=1))
    (folder / "rwkv_vocab_v20230424.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "own_tokenizer.py").write_text(RWKV_CODE, encoding="utf-8")
    settings = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own_tokenizer.OwnTokenizer", None]},
        "eos_token": "\n\n",
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}assistant:",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert main(["export", str(folder), "--outfile", str(tmp_path / "unasked.gguf")]) == 0
    assert "which was not run" in " ".join(capsys.readouterr().out.split())
    path = tmp_path / "asked.gguf"
    assert main(["export", str(folder), "--trust-remote-code", "--outfile", str(path)]) == 0
    assert "All gates passed." in capsys.readouterr().out
    assert facts_of(path)["parity"] == "passed"


def test_model_without_chat_template_is_written_and_not_run(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder()
    for path in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if path.suffix == ".json":
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings.pop("chat_template", None)
            path.write_text(json.dumps(settings), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    path = tmp_path / "m.gguf"
    assert main(["export", str(folder), "--outfile", str(path)]) == 0
    assert "not run in llama.cpp beside MLX" in capsys.readouterr().out
    assert "template" in str(facts_of(path)["parity"])


def test_no_check_runs_nothing(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert main(["export", str(model_folder()), "--no-check", "--outfile", str(path)]) == 0
    assert facts_of(path)["parity"] == "not run: --no-check was given"
    assert said_of(path, "parity") == ("skipped", "it was not run beside MLX when written: --no-check was given")


def test_model_that_does_not_fit_is_not_run(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_export, "usable_memory", lambda: 1000)
    monkeypatch.setattr(single_export, "is_available", lambda: True)
    path = tmp_path / "m.gguf"
    assert main(["export", str(model_folder()), "--outfile", str(path)]) == 0
    assert "GB in MLX" in str(facts_of(path)["parity"])


CHAT = ("--chat-apps",)
PARTS = ("--split-max-tensors", "9")


@pytest.mark.parametrize(
    ("there", "outfile", "options", "said"),
    [
        ("b/m-q8_0.gguf", "b/m-{ftype}.gguf", (), "gguf: {} exists already; a new file"),
        ("b/m-q8_0-00001-of-00003.gguf", "b/m-{ftype}.gguf", PARTS, "gguf: {} exists already; a name without parts"),
        ("b/m-q8_0.Modelfile", "b/m-{ftype}.gguf", CHAT, "chat-apps: {} exists already; a new file"),
        ("b/m-q8_0.preset.ini", "b/m-{ftype}.gguf", CHAT, "chat-apps: {} exists already; a new file"),
        ("b/m-q8_0.run.sh", "b/m-{ftype}.gguf", (*CHAT, *PARTS), "chat-apps: {} exists already; a new file"),
        ("b/q8_0", "b/{ftype}/m.gguf", (), "{} is a file); a writable place is needed. Choose another --outfile"),
        (
            "tree",
            "b/m-{ftype}.gguf",
            ("--lm-studio", "tree"),
            "{} is a file); a writable place is needed. Choose another --lm-studio",
        ),
        (
            "tree/aird-mlx/llama-0-GGUF/m-q8_0.gguf",
            "b/m-{ftype}.gguf",
            ("--lm-studio", "tree"),
            "lm-studio: {} exists already; a new place",
        ),
        (
            "tree/aird-mlx/llama-0-GGUF/m-q8_0-00001-of-00003.gguf",
            "b/m-{ftype}.gguf",
            ("--lm-studio", "tree", *PARTS),
            "gguf: {} exists already; a name without parts",
        ),
        (None, "b/{ftype}/m.gguf", ("--lm-studio", "tree"), "is where two of the files would go; a name for each"),
    ],
)
def test_clash_of_a_later_file_is_found_before_the_first_is_written(
    there: str | None,
    outfile: str,
    options: tuple[str, ...],
    said: str,
    model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = model_folder()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if there is not None:
        Path(there).parent.mkdir(parents=True, exist_ok=True)
        Path(there).write_text("the user's")
    command = ["export", str(folder), "--no-check", "--outtype", "f16,q8_0", "--outfile", outfile, *options]
    assert main(command) == (1 if there else 2)
    error = capsys.readouterr().err
    assert said.format(there) in error and error.count("\n") == 1
    assert [str(one) for one in Path().rglob("*") if one.is_file()] == ([there] if there else [])


@pytest.mark.parametrize("limit", [None, 20_000])
def test_stopped_while_it_is_checked_nothing_is_left(
    limit: int | None, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    def stop(written: GgufFile) -> None:
        assert written.path.is_file()
        raise KeyboardInterrupt

    outfile = tmp_path / "new" / "m.gguf"
    with pytest.raises(KeyboardInterrupt):
        export_in_parts(model_folder(), outfile, "f16", max_size=limit, finish=stop)
    assert not outfile.parent.exists()


def test_what_a_killed_run_left_is_replaced(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    left, own = unfinished_of(tmp_path / "m.gguf"), tmp_path / "m.gguf.partial"
    left.mkdir()
    (left / "m.gguf").write_bytes(b"half")
    own.write_bytes(b"the user's")
    written = export_in_parts(model_folder(), tmp_path / "m.gguf", "f16")
    assert written.path == tmp_path / "m.gguf" and written.size_bytes == written.path.stat().st_size
    assert not left.exists() and own.read_bytes() == b"the user's"
