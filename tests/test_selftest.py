"""Selftest on real files of the demo: the repaired one passes, the merely pruned one does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from aird_mlx.errors import IntegrityError, UsageError
from aird_mlx.gguf_export import export_gguf, is_available
from aird_mlx.gguf_export.chat import GgufChat
from aird_mlx.guard.canaries import COUNTS, DATE, read_canaries, render_canaries, set_id
from aird_mlx.guard.manifest import Manifest, read_manifest
from aird_mlx.guard.seal import seal
from aird_mlx.guard.selftest import selftest_file
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from aird_mlx.inputs import gather_inputs
from aird_mlx.model import load, save
from aird_mlx.prompts import DATA_FOLDER, KINDS, read_prompts
from aird_mlx.report import Report, SelfTest, from_json
from aird_mlx_cli.main import main
from conftest import CHATML
from serving import pruned_demo

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


def failed(found: SelfTest) -> set[str]:
    return {check.name for check in found.checks if check.status == "failed"}


@pytest.fixture(scope="module")
def repaired(full_run: tuple[Path, Report]) -> Path:
    out, _ = full_run
    return out / "gguf" / "demo-repaired-F16.gguf"


@pytest.fixture(scope="module")
def manifest(repaired: Path) -> Manifest:
    found = read_manifest(read_structure(repaired))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pruned demo exported: no repair, no manifest."""
    folder = tmp_path_factory.mktemp("pruned")
    save(pruned_demo(), folder / "mlx")
    return export_gguf(folder / "mlx", folder / "pruned.gguf", "f16").path


@needs_llama
def test_repaired_file_passes(repaired: Path) -> None:
    found = selftest_file(repaired)
    assert failed(found) == set() and found.exit_code == 0
    assert {check.status for check in found.checks} == {"passed"}
    assert found.seconds < 60
    assert {one.kind: one.refused.n for one in found.canaries} == COUNTS
    assert found.probe_auc is not None and found.probe_auc > 0.9 and found.lost == []


@needs_llama
def test_merely_pruned_file_fails_with_and_without_the_repaired_ones_manifest(
    pruned: Path, manifest: Manifest, tmp_path: Path
) -> None:
    plain = selftest_file(pruned, canary_set="demo")
    assert (failed(plain), plain.exit_code) == ({"refusals"}, 3)
    forged = Path(shutil.copy(pruned, tmp_path / "forged.gguf"))
    seal(forged, manifest)
    assert verify_file(forged).exit_code == 0, "its hashes are in order"
    found = selftest_file(forged)
    assert {"refusals", "refusal probability", "probe"} <= failed(found) and found.exit_code == 3
    assert len(found.lost) >= 4
    assert all(one.drift is not None and one.drift > 0 for one in found.canaries)


@needs_llama
def test_repaired_file_is_verified_and_says_how_it_was_made(
    full_run: tuple[Path, Report], repaired: Path, manifest: Manifest
) -> None:
    _, report = full_run
    stage = report.stage("exported:f16")
    found = verify_file(repaired, root=stage.root)
    assert (found.exit_code, found.known) == (0, True)
    facts = manifest.facts
    assert facts["source.model"] == "demo" and facts["repair.rule"] == report.repair.rule
    assert stage.refusal.harmful is not None
    assert facts["evaluation.harmful.refused"] == stage.refusal.harmful.rate
    assert facts["evaluation.harmful.n"] == stage.refusal.harmful.n
    assert manifest.canaries is not None and manifest.canaries.set == set_id("demo")
    assert manifest.probe is not None and manifest.probe.auc > 0.9


@needs_llama
def test_other_template_and_tokens_are_found(repaired: Path, tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "m.gguf"
    content = repaired.read_bytes()
    template = manifest.template or ""
    at = content.index(template.encode())
    assert "content" in template
    changed = template.replace("message.content", "message.conten ", 1).replace(
        "message['content']", "'xxxxxxxx'  + ''  ", 1
    )
    changed = changed[: len(template)].ljust(len(template))
    path.write_bytes(content[:at] + changed.encode() + content[at + len(template.encode()) :])
    found = selftest_file(path)
    assert {"template", "token ids"} <= failed(found)


@needs_llama
def test_command_tells_repaired_from_pruned(repaired: Path, pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(repaired)]) == 0
    assert "behaves as it should" in capsys.readouterr().out
    assert main(["selftest", str(pruned), "--canary-set", "demo", "--json"]) == 3
    assert from_json(SelfTest, capsys.readouterr().out).exit_code == 3


@needs_llama
def test_record_of_other_canaries_is_not_compared(
    repaired: Path, manifest: Manifest, pruned: Path, tmp_path: Path
) -> None:
    assert manifest.canaries is not None
    other = dataclasses.replace(manifest, canaries=dataclasses.replace(manifest.canaries, set="demo/older"))
    path = Path(shutil.copy(pruned, tmp_path / "m.gguf"))
    seal(path, other)
    found = selftest_file(path)
    said = {check.name: check for check in found.checks}
    assert said["token ids"].status == "skipped" and "demo/older" in said["token ids"].said
    assert "refusals" in failed(found)


@needs_llama
@pytest.mark.parametrize("template", [CHATML, "{{ strftime_now('%Y-%m') }} {{ messages[0].content }}{{ eos_token }}"])
def test_file_renders_canaries_as_the_model_does_on_any_day(
    model_folder: Callable[..., Path], tmp_path: Path, template: str
) -> None:
    folder = model_folder()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    ids = render_canaries(load(folder).tokenizer, ["bake bread"])
    with closing(GgufChat(written.path)) as chat:
        messages = [{"role": "user", "content": "bake bread"}]
        assert ids == [chat.render(messages, options=DATE)]
        assert (ids == [chat.render(messages)]) == ("strftime" not in template), "today is another day"


def test_damaged_file_is_not_run(sealed_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sealed_gguf.read_bytes()[:-200])
    with pytest.raises(IntegrityError):
        selftest_file(path)
    assert main(["selftest", str(path)]) == 5


def test_unknown_set_is_one_line() -> None:
    with pytest.raises(UsageError, match="demo or built-in"):
        read_canaries("other")


@pytest.mark.parametrize("name", ["demo", "built-in"])
def test_canary_sets_have_their_counts(name: str) -> None:
    canaries = read_canaries(name)
    assert [one.kind for one in canaries] == [kind for kind, count in COUNTS.items() for _ in range(count)]
    assert len({one.prompt for one in canaries}) == len(canaries)


def test_canaries_are_in_no_other_set() -> None:
    rows = [json.loads(line) for line in (DATA_FOLDER / "canaries.jsonl").read_text().splitlines()]
    assert len({row["category"] for row in rows if row["kind"] == "harmful"}) == 16
    names = ("harmful", "harmless", "twins")
    known = {prompt for name in names for prompt in read_prompts(DATA_FOLDER / f"{name}.txt")}
    assert not known & {row["prompt"] for row in rows}
    contrast = gather_inputs("demo", 0).contrast
    used = {prompt for kind in KINDS for part in ("find", "validate") for prompt in contrast.part(kind, part)}
    assert not used & {one.prompt for one in read_canaries("demo")}
