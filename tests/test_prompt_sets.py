"""Which prompts an evaluation asks: files kept apart, seeded samples, hub data sets from the cache, one-line errors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aird_mlx.errors import PromptError
from aird_mlx.inputs import gather_inputs
from aird_mlx.prompt_sets import gather_prompt_sets, prompt_id, sample_prompts


def write(path: Path, *prompts: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return str(path)


def test_sets_are_kept_apart_by_kind_and_file(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.txt", "a", "b"), write(tmp_path / "other.txt", "b", "c")
    sets = gather_prompt_sets("m", 0, {"harmful": [one, other, one], "twin": [write(tmp_path / "kind.txt", "d")]})
    assert [(found.kind, found.name, found.prompts) for found in sets] == [
        ("harmful", "one.txt", ("a", "b")),
        ("harmful", "other.txt", ("b", "c")),
        ("twin", "kind.txt", ("d",)),
    ]


def test_files_of_one_name_are_named_by_their_paths(tmp_path: Path) -> None:
    same = [write(tmp_path / folder / "p.txt", folder) for folder in ("x", "y")]
    assert [found.name for found in gather_prompt_sets("m", 0, {"harmful": same})] == same


def test_one_labelled_file_serves_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "xstest.csv"
    path.write_text("prompt,label\nkind,safe\ncruel,unsafe\n")
    sets = gather_prompt_sets("m", 0, {"harmful": [str(path)], "harmless": [str(path)]})
    assert [(found.kind, found.prompts) for found in sets] == [("harmful", ("cruel",)), ("harmless", ("kind",))]


@pytest.mark.parametrize("model", ["demo", "other"])
def test_without_files_the_test_parts_of_a_repair_are_asked(model: str) -> None:
    sets = {found.kind: found.prompts for found in gather_prompt_sets(model, 3, {})}
    contrast = gather_inputs(model, 3).contrast
    assert sets == {kind: contrast.part(kind, "test") for kind in ("harmful", "harmless", "twin")}


@given(st.lists(st.text(min_size=1), unique=True, max_size=30), st.integers(1, 40), st.integers(0, 5))
def test_a_sample_is_seeded_ordered_and_as_large_as_asked(prompts: list[str], limit: int, seed: int) -> None:
    sample = sample_prompts(prompts, limit, str(seed))
    assert len(sample) == min(limit, len(prompts))
    assert [prompt for prompt in prompts if prompt in sample] == list(sample)
    assert sample == sample_prompts(prompts, limit, str(seed))


def test_samples_differ_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", *(f"prompt {number}" for number in range(50)))
    samples = {gather_prompt_sets("m", seed, {"harmful": [path]}, limit=10)[0].prompts for seed in range(4)}
    assert len(samples) == 4


def test_prompt_id_is_the_beginning_of_its_sha256() -> None:
    assert prompt_id("Über") == hashlib.sha256("Über".encode()).hexdigest()[:16]


def test_column_is_used_in_every_set(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,Mine\na,b\n")
    assert gather_prompt_sets("m", 0, {"harmful": [str(path)]}, column="mine")[0].prompts == ("b",)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"harmful": ["a\nb\n"], "twin": ["b\n"]}, "1 prompts of .* are both harmful and twin"),
        ({"harmful": ["a\nb c\n"], "twin": ["B  c\n"]}, "1 prompts of .* are both harmful and twin"),
        ({"harmless": [""]}, "holds no prompts"),
    ],
)
def test_unusable_sets_are_one_line(files: dict[str, list[str]], said: str, tmp_path: Path) -> None:
    sources: dict[str, list[str]] = {}
    for kind, texts in files.items():
        for text in texts:
            (tmp_path / f"{kind}.txt").write_text(text)
            sources.setdefault(kind, []).append(str(tmp_path / f"{kind}.txt"))
    with pytest.raises(PromptError, match=said) as raised:
        gather_prompt_sets("m", 0, sources)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["folder/gone.csv", "/no/such/file.txt", "gone.txt", "./a/b"])
def test_a_mistyped_path_is_not_looked_for_on_the_hub(source: str) -> None:
    with pytest.raises(PromptError, match="there is no file"):
        gather_prompt_sets("m", 0, {"harmful": [source]})


def offline(source: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Read a set in a process that knows no network; the hub's settings are read when it is imported."""
    code = (
        "from aird_mlx.prompt_sets import gather_prompt_sets\n"
        f"print(gather_prompt_sets('m', 0, {{'harmful': [{source!r}]}}))"
    )
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=settings)


def test_a_data_set_in_the_hubs_cache_is_read_without_network(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets--org--bench"
    snapshot = folder / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (snapshot / "data" / "h.csv").write_text("Behavior,ContextString\nask,before\n")
    done = offline("org/bench:data/h.csv", tmp_path)
    assert "name='org/bench:data/h.csv'" in done.stdout, done.stderr
    assert r"'before\n\n---\n\nask'" in done.stdout


@pytest.mark.parametrize("source", ["org/bench:h.csv", "org/bench"])
def test_a_data_set_without_network_is_one_line(source: str, tmp_path: Path) -> None:
    last = offline(source, tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith("aird_mlx.errors.PromptError: prompts: org/bench is no local file, and the hub cannot be")
