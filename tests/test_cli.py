"""The command line's contract: words, exit codes, one line per error, and only JSON on stdout with --json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from aird_mlx import asking, reference
from aird_mlx.gguf_export import is_available
from aird_mlx_cli import options
from aird_mlx_cli.main import aird_mlx, main
from conftest import write_model

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
COMMAND = [sys.executable, "-m", "aird_mlx_cli"]


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload, no-any-return]


def parse_repair(*arguments: str) -> dict[str, object]:
    """What `repair` would be called with."""
    with aird_mlx.commands["repair"].make_context("repair", list(arguments)) as context:
        return dict(context.params)


def check_one_line(code: int, expected: int, captured: str) -> str:
    """An error is one line on stderr that starts with ``error:``; returns it."""
    assert code == expected, captured
    assert captured.count("\n") == 1, captured
    assert captured.startswith("error: ")
    assert "Traceback" not in captured
    return captured


def test_help_takes_little_longer_than_its_libraries() -> None:
    """On a free machine that is a third of a second; with mlx it would be four times as long."""

    def seconds(*arguments: str) -> float:
        start = time.monotonic()
        assert subprocess.run([sys.executable, *arguments], capture_output=True).returncode == 0
        return time.monotonic() - start

    ratios = [seconds("-m", "aird_mlx_cli", "--help") / seconds("-c", "import click, rich.console") for _ in range(3)]
    assert min(ratios) < 3


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    from aird_mlx import __version__

    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["repair"], "MODEL is missing"),
        (["repair", "demo", "--sparsity", "1.5"], "--sparsity"),
        (["repair", "demo", "--sparsity", "1"], "--sparsity"),
        (["repair", "demo", "--sparsity", "-0.1"], "--sparsity"),
        (["repair", "demo", "--sparsity", "half"], "--sparsity"),
        (["repair", "demo", "--sparsity", "nan"], "sparsity"),
        (["repair", "demo", "--prune-method", "sparsegtp"], "--prune-method"),
        (["repair", "demo", "--pattern", "two-four"], "pattern"),
        (["repair", "demo", "--pattern", "4:2"], "pattern"),
        (["repair", "demo", "--pattern", "0:0"], "pattern"),
        (["repair", "demo", "--rule", "ablate"], "--rule"),
        (["repair", "demo", "--gguf", "q4_k"], "--gguf"),
        (["repair", "demo", "--gguf", "none", "--gguf", "f16"], "none"),
        (["repair", "demo", "--limit", "0"], "--limit"),
        (["repair", "demo", "--max-over-refusal", "-1"], "--max-over-refusal"),
        (["repair", "demo", "--max-over-refusal", "101"], "--max-over-refusal"),
        (["repair", "demo", "--max-over-refusal", "nan"], "--max-over-refusal"),
        (["repair", "demo", "--max-perplexity", "0"], "--max-perplexity"),
        (["repair", "demo", "--max-perplexity", "-1"], "--max-perplexity"),
        (["repair", "demo", "--max-perplexity", "nan"], "--max-perplexity"),
        (["repair", "demo", "--controls", "all"], "all"),
        (["repair", "demo", "--model", "other"], "--model"),
        (["repair", "demo", "--no-such-option"], "--no-such-option"),
        (["repair", "demo", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (["ablate", "demo"], "ablate"),
        (["export", "somewhere", "--outtype", "q8_0,q4_k_x"], "--outtype"),
        (["eval"], "MODEL is missing"),
        (["eval", "demo", "--attack", "jailbreak"], "--attack"),
        (["eval", "demo", "--attack", "suffix"], "--suffixes"),
        (["eval", "demo", "--window", "1"], "--window"),
        (["eval", "demo", "--no-refusals"], "nothing to measure"),
        (["eval", "demo", "--dense", "demo"], "--text"),
        (["eval", "demo", "--judge-style", "vote"], "--judge-style"),
        (["eval", "some.gguf", "--tasks", "boolq"], "--tasks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage_error_is_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    assert said in check_one_line(code, 2, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["repair", "/no/such/dir"],
        ["export", "/no/such/dir"],
        ["report", "/no/such/dir"],
        ["repair", "demo", "--harmful", "/no/such/file.txt"],
        ["eval", "/no/such/dir"],
        ["eval", "demo", "--harmful", "/no/such/file.txt"],
        ["eval", "demo", "--suffixes", "/no/such/file.txt", "--attack", "suffix"],
        ["eval", "demo", "--judge-model", "/no/such/judge"],
        ["eval", "demo", "--against", "/no/such/file.json"],
        ["eval", "demo", "--text", "/no/such/file.txt"],
    ],
    ids=" ".join,
)
def test_wrong_path_is_one_line_and_exit_1(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    assert "/no/such/" in check_one_line(code, 1, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_unknown_hub_id_is_one_line_without_network(tmp_path: Path) -> None:
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = run("repair", "no-such-owner/no-such-model", "--out", str(tmp_path / "out"), env=offline)
    assert "no-such-owner/no-such-model" in check_one_line(done.returncode, 1, done.stderr)
    assert not (tmp_path / "out").exists()


def test_existing_output_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    code = main(["repair", "demo", "--out", str(tmp_path)])
    assert str(tmp_path) in check_one_line(code, 1, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_printed_on_stdout_when_json_run_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "/no/such/dir", "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_config_sets_options_and_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'model = "demo"\nsparsity = 0.6\nprune-method = "magnitude"\ngguf = ["f32", "q8_0"]\nallow-dense = true\n'
    )
    given = parse_repair("--config", str(path), "--sparsity", "0.4")
    assert given["sparsity"] == 0.4
    assert (given["prune_method"], given["gguf"], given["allow_dense"]) == ("magnitude", ("f32", "q8_0"), True)
    assert given["model"] == "demo"
    assert parse_repair("--config", str(path))["sparsity"] == 0.6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sparsty = 0.5", "'sparsty'"),
        ("[repair]\nsparsity = 0.5", "'repair'"),
        ("sparsity = ", "cannot read"),
        ("sparsity = 2.0", "sparsity"),
        ('limit = "many"', "limit"),
        ('gguf = ["q4_k"]', "gguf"),
        ("sparsity = [1, 2]", "sparsity = [1, 2]; a number is needed"),
        ("sparsity = true", "sparsity = True; a number"),
        ("sparsity = nan", "sparsity = nan; a number"),
        ("limit = 2020-01-01", "limit = datetime.date(2020, 1, 1); a whole number"),
        ("limit = 4.5", "limit = 4.5; a whole number"),
        ("limit = true", "limit = True; a whole number"),
        ("resume = 3", "resume = 3; true or false"),
        ("controls = 3", "controls = 3; true or false"),
        ('max-perplexity = "low"', "max-perplexity = 'low'; a number"),
        ("max-over-refusal = 200", "max-over-refusal"),
        ("harmful = 3", "harmful = 3; a text"),
        ("out = 3", "out = 3; a text"),
        ('harmful = ["a.txt"]', "harmful = ['a.txt']; a text"),
        ("gguf = [16]", "gguf = [16]; a text, or a list of texts, is needed"),
        ("model = 1", "model = 1; a text"),
    ],
)
def test_bad_config_is_one_line(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    code = main(["repair", "demo", "--config", str(path)])
    line = check_one_line(code, 2, capsys.readouterr().err)
    assert said in line
    assert " = " not in said or str(path) in line


def test_limits_of_a_repair_are_set_by_option_or_config(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("max-over-refusal = 5\nmax-perplexity = 1.1\ncontrols = true\n")
    given = parse_repair("demo", "--config", str(path), "--max-perplexity", "0.9")
    assert (given["max_over_refusal"], given["max_perplexity"], given["controls"]) == (5.0, 0.9, True)


def test_model_on_the_command_line_wins_over_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "/no/such/config-model"\n')
    assert main(["repair", "/no/such/argument", "--config", str(path)]) == 1
    assert "/no/such/argument" in capsys.readouterr().err


def test_list_of_one_in_the_config_needs_no_brackets(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('gguf = "q8_0"\nsparsity = 0\n')
    given = parse_repair("demo", "--config", str(path))
    assert (given["gguf"], given["sparsity"]) == (("q8_0",), 0.0)


@pytest.mark.parametrize("word", ["--model", "--hf-path"])
def test_model_has_the_names_of_mlx_lm(word: str) -> None:
    assert parse_repair(word, "somewhere")["model"] == "somewhere"


def test_defaults_are_those_of_the_library() -> None:
    from dataclasses import MISSING, fields

    from aird_mlx.pipeline import RepairSettings

    parameters = {parameter.name: parameter for parameter in aird_mlx.commands["repair"].params}
    given = parse_repair("demo")
    for setting in fields(RepairSettings):
        if setting.name in ("model", "dry_run"):
            continue
        assert setting.name in parameters, f"no option sets {setting.name}"
        assert setting.default is not MISSING
        assert given[setting.name] == setting.default, setting.name


def test_defaults_of_eval_are_those_of_the_library() -> None:
    from dataclasses import fields

    from aird_mlx.evaluate import EvaluationSettings

    with aird_mlx.commands["eval"].make_context("eval", ["demo"]) as context:
        given = dict(context.params)
    for setting in fields(EvaluationSettings):
        if setting.name != "model":
            assert given[setting.name] in (setting.default, None), setting.name


def test_eval_prints_tables_or_json_and_writes_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "e.json"
    assert main(["eval", "demo", "--limit", "6", "--attack", "prefill", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "harmful prompts: demo, n = 6" in shown.out
    assert "done  ask harmful demo prefill" in shown.err
    assert main(["eval", "demo", "--limit", "6", "--attack", "prefill", "--against", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found, written = json.loads(printed.out), json.loads(out.read_text())
    assert found["sets"] == written["sets"]
    assert {change["change"]["p_value"] for change in found["changes"]} == {1.0}


def test_eval_without_network_is_one_line(tmp_path: Path) -> None:
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = run("eval", "demo", "--harmful", "org/name:file.csv", env=offline)
    assert "org/name" in check_one_line(done.returncode, 1, done.stderr)
    done = run("eval", "demo", "--judge-model", "org/judge", env=offline)
    assert "org/judge" in check_one_line(done.returncode, 1, done.stderr)


def test_gguf_none_writes_no_file() -> None:
    assert parse_repair("demo", "--gguf", "none")["gguf"] == ()
    assert parse_repair("demo")["gguf"] == ("f16",)
    assert parse_repair("demo", "--gguf", "f32", "--gguf", "f32")["gguf"] == ("f32",)


@pytest.mark.parametrize("name", sorted(aird_mlx.commands))
def test_command_is_at_most_25_lines(name: str) -> None:
    import ast
    import inspect

    callback = aird_mlx.commands[name].callback
    assert callback is not None
    function = ast.parse(inspect.getsource(inspect.unwrap(callback))).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert function.end_lineno is not None
    assert function.end_lineno - function.body[0].lineno + 1 <= 25


def test_no_option_can_remove_refusals() -> None:
    words = {word for command in aird_mlx.commands.values() for option in command.params for word in option.opts}
    assert not [word for word in words if "ablat" in word or "uncensor" in word or "bypass" in word]


def test_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "No space left" in check_one_line(done.returncode, 1, done.stderr)


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [*COMMAND, "repair", "--help"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == ""


@pytest.mark.slow
def test_interrupt_is_one_line_and_leaves_no_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "repair", "demo", "--out", str(out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    while not (tmp_path / "out.partial" / "timings.json").exists():  # a stage is kept, so the next is under way
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert first.startswith("done")
    assert process.returncode == 130
    assert (
        error.strip().splitlines()[-1].startswith(f"error: interrupted: the finished stages are kept in {out}.partial")
    )
    assert "Traceback" not in error
    assert not out.exists()


@needs_llama
def test_llama_cpp_s_quantizer_is_interrupted_too(tmp_path: Path) -> None:
    """It runs in C, and calls back for its log: what a signal raised there was dropped, and the export went on."""
    folder = write_model(tmp_path / "model", "llama", hidden_size=512, intermediate_size=2048)
    out = tmp_path / "out" / "model.gguf"
    words = ["export", str(folder), "--outtype", "iq3_s", "--no-check", "--outfile", str(out)]
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/*/*.exact")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.5)  # written, and being quantized
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130 and error.strip().splitlines()[-1].startswith("error: interrupted")
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signal_before_a_finished_stage_leaves_nothing_and_advises_nothing(
    sent: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "repair", "demo", "--out", str(tmp_path / "new" / "out")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "new" / "out.partial" / "settings.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.strip() == f"error: {word}."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outfile", [".", "/", "folder"])
def test_export_to_a_folder_is_one_line(
    outfile: str,
    model_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    code = main(["export", str(model_folder()), "--outfile", outfile])
    assert f"--outfile {outfile!r} is a folder" in check_one_line(code, 2, capsys.readouterr().err)


def test_closed_stdout_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m aird_mlx_cli --version >&-", shell=True, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_choose_model_takes_either() -> None:
    context = click.Context(click.Command("repair"))
    assert options.choose_model(context, "a", None) == "a"
    assert options.choose_model(context, None, "b") == "b"
    assert options.choose_model(context, "c", "c") == "c"


def test_model_that_never_refuses_is_one_line(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--limit", "4", "--max-new-tokens", "4", "--gguf", "none"]
    code = main(["repair", str(model_folder()), *arguments, "--json"])
    assert "no refusal to repair" in check_one_line(code, 1, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk" * 100), "safetensors"),
        (lambda folder: edit_json(folder / "config.json", model_type="zamba9"), "zamba9"),
        (lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=None), "template"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
    ids=["no config", "bad config", "no weights", "truncated", "junk", "unknown type", "no template", "no tokenizer"],
)
def test_damaged_model_is_one_line(
    damage: Callable[[Path], object],
    said: str,
    model_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = model_folder()
    damage(folder)
    code = main(["repair", str(folder), "--out", str(tmp_path / "out"), "--limit", "4"])
    assert said in check_one_line(code, 1, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", ""),
        ("blank.txt", "\n \n"),
        ("bad.jsonl", "{"),
        ("other.jsonl", '{"x": 1}\n'),
        ("bad.csv", "a,b\n1,2\n"),
    ],
)
def test_bad_prompt_file_is_one_line(
    name: str, content: str, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    code = main(["repair", str(model_folder()), "--harmful", str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert name in check_one_line(code, 1, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_pattern_that_does_not_divide_the_width_is_one_line(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["repair", str(model_folder()), "--pattern", "2:5", "--out", str(tmp_path / "out")])
    assert "2:5" in check_one_line(code, 2, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_dry_run_says_what_would_be_done(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["repair", str(model_folder()), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments) == 0
    assert "step 1" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["out"] == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_writes_a_file_that_gguf_reads(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gguf

    code = main(["export", str(model_folder()), "--outfile", str(tmp_path / "tiny-{ftype}.gguf"), "--outtype", "f32"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert str(tmp_path / "tiny-f32.gguf") in captured.out
    reader = gguf.GGUFReader(tmp_path / "tiny-f32.gguf")
    assert "token_embd.weight" in {tensor.name for tensor in reader.tensors}


def test_export_writes_what_chat_programs_need(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [str(model_folder()), "--outfile", str(tmp_path / "out" / "tiny-{ftype}.gguf")]
    code = main(["export", *place, "--chat-apps", "--lm-studio", str(tmp_path / "models")])
    printed = capsys.readouterr().out
    assert code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    made = ("gguf", "gguf.manifest", "Modelfile", "preset.ini", "run.sh")
    assert names == {f"tiny-f16.{end}" for end in made}
    (found,) = (tmp_path / "models").rglob("*.gguf")
    assert found.relative_to(tmp_path / "models").parts[0] == "aird-mlx"
    assert str(found) in printed
    assert "tiny-f16.Modelfile" in printed


@pytest.mark.parametrize(("command", "tokens"), [("repair", reference.MAX_NEW_TOKENS), ("eval", asking.MAX_NEW_TOKENS)])
def test_help_says_how_long_answers_are_that_rates_are_judged_on(command: str, tokens: int) -> None:
    (option,) = (one for one in aird_mlx.commands[command].params if one.name == "max_new_tokens")
    assert isinstance(option, click.Option) and option.help is not None
    assert f"[default: {tokens}" in option.help
