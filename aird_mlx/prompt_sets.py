"""The prompt sets of an evaluation: files, data sets on the hub, or the built-in test part; kept apart by name.

Nothing is split here: all of a file is asked, or a sample of it by seed. Knows no model; for the demo, its language.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import PromptError
from aird_mlx.inputs import gather_inputs
from aird_mlx.model import network_error
from aird_mlx.prompts import KINDS, read_prompts, same_words

READABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")


@dataclass(frozen=True)
class PromptSet:
    """Different prompts of one kind, at least one; no other of that kind in a run has its ``name``."""

    name: str
    kind: str
    prompts: tuple[str, ...]


def prompt_id(prompt: str) -> str:
    """The first 16 hex digits of the prompt's sha256: names it in results without repeating it."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:16]


def gather_prompt_sets(
    model: str,
    seed: int,
    sources: Mapping[str, Sequence[str]],
    *,
    column: str | None = None,
    limit: int | None = None,
) -> list[PromptSet]:
    """Read every set; without any source, the test parts that `repair` reports on (for ``demo`` of its language).

    Args:
        model: ``demo`` or anything else.
        seed: of the sample, and of the built-in split.
        sources: by kind, files or hub data sets (``org/name`` or ``org/name:file.csv``).
        column: where the prompts are; see `read_prompts`.
        limit: sample at most this many prompts of each set.

    Raises:
        PromptError: a set that cannot be found or used, or a prompt that is both harmful and not.
    """
    sets = []
    if any(sources.values()):
        given = [(kind, source) for kind in KINDS for source in dict.fromkeys(sources.get(kind, ()))]
        paths = [find_prompt_file(source) for _, source in given]
        names = _names([source for _, source in given])
        for (kind, _), path, name in zip(given, paths, names, strict=True):
            sets.append(PromptSet(name, kind, tuple(read_prompts(path, kind, column=column))))
    else:
        contrast = gather_inputs(model, seed).contrast
        name = "demo" if model == "demo" else "built-in"
        sets = [PromptSet(name, kind, contrast.part(kind, "test")) for kind in KINDS]
    _check_disjoint(sets)
    return [PromptSet(one.name, one.kind, sample_prompts(one.prompts, limit, f"{seed}:{one.name}")) for one in sets]


def sample_prompts(prompts: Sequence[str], limit: int | None, seed: str) -> tuple[str, ...]:
    """At most ``limit`` of the prompts by seed, in their order.

    >>> sample_prompts(["a", "b", "c"], 2, "0") == sample_prompts(["a", "b", "c"], 2, "0")
    True
    """
    if limit is None or limit >= len(prompts):
        return tuple(prompts)
    return tuple(prompts[index] for index in sorted(random.Random(seed).sample(range(len(prompts)), limit)))


def _names(sources: Sequence[str]) -> list[str]:
    """File names where they tell the sources apart, else the sources as given."""
    short = {source: Path(source).name if Path(source).exists() else source for source in sources}
    count = Counter(short.values())
    return [short[source] if count[short[source]] == 1 else source for source in sources]


def _check_disjoint(sets: Sequence[PromptSet]) -> None:
    harmful = {same_words(prompt) for one in sets if one.kind == "harmful" for prompt in one.prompts}
    for one in sets:
        both = sum(same_words(prompt) in harmful for prompt in one.prompts)
        if both and one.kind != "harmful":
            raise PromptError(
                f"prompts: {both} prompts of {one.name} are both harmful and {one.kind}; each belongs to one kind. "
                "Remove them from one file."
            )


def find_prompt_file(source: str) -> Path:
    """A local file as it is; ``org/name`` or ``org/name:path/in/it.csv`` from the hub's data sets (or their cache).

    Raises:
        PromptError: neither is there, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    repository, _, file = source.partition(":")
    if path.exists() or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        return path
    if not file and path.suffix.lower() in READABLE:
        return path  # folder/file.csv that is not there: a mistyped path, not a data set
    return _download(repository, file)


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        if not file:
            there = HfApi().list_repo_files(repository, repo_type="dataset")
            readable = [name for name in there if name.lower().endswith(READABLE)]
            if len(readable) != 1:
                raise PromptError(
                    f"prompts: the data set {repository} has {len(readable)} files that can be read "
                    f"({', '.join(readable[:5]) or 'none'}); one is needed. Name it: {repository}:FILE."
                )
            file = readable[0]
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, network_error()) as error:
        raise PromptError(
            f"prompts: {repository} is no local file, and the hub cannot be reached ({type(error).__name__}); a file "
            "or a connection is needed. Check the spelling, or download the file."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PromptError(
            f"prompts: {repository}{':' if file else ''}{file} is neither a local file nor a data set's file on the "
            f"hub ({type(error).__name__}); one of them is needed. Check the spelling."
        ) from error
