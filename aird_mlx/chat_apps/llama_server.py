"""llama-server: a ``preset.ini`` section, and a ``run.sh`` that verifies the file before it is served.

Source: llama.cpp's ``docs/preset.md`` and ``common/preset.cpp`` (keys are options without dashes, no quotes).
"""

from __future__ import annotations

import re
import shlex

from aird_mlx.gguf_export.chat_facts import ChatFacts

_OPTIONS = {"temperature": "temp", "top_p": "top-p", "top_k": "top-k", "min_p": "min-p",
            "repetition_penalty": "repeat-penalty"}  # fmt: skip


def not_in_a_preset(path: str) -> str:
    """The characters of a path at which a preset's value would end: it has no quotes; empty if it can be written.

    >>> not_in_a_preset("/models/c#/tiny.gguf")
    '#'
    """
    return "".join(dict.fromkeys(character for character in path if character in ";#\r\n"))


def write_preset(name: str, path: str, facts: ChatFacts) -> str:
    """A preset for ``llama-server --models-preset``.

    Args:
        name: of the model, as clients ask for it.
        path: of the GGUF file or its first part, absolute: the server does not look beside the preset. None of
            `not_in_a_preset`.
        facts: of the model.

    >>> print(write_preset("tiny", "/models/tiny.gguf", ChatFacts(None, "", "", False, (), 512)), end="")
    version = 1
    <BLANKLINE>
    [tiny]
    model = /models/tiny.gguf
    ctx-size = 512
    jinja = true
    """
    lines = ["version = 1", "", f"[{re.sub(r'[^A-Za-z0-9_.:-]', '-', name)}]", f"model = {path}"]
    lines += [f"{key} = {value}" for key, value in _options(facts).items()]
    return "\n".join(lines) + "\n"


def write_run_script(name: str, file_name: str, facts: ChatFacts) -> str:
    """A shell script beside the GGUF file that verifies it, where aird-mlx is installed, and then serves it.

    Args:
        name: its own, without the ending.
        file_name: of the GGUF file, or of its first part.
        facts: of the model.
    """
    options = " ".join(f"--{key}" if value == "true" else f"--{key} {value}" for key, value in _options(facts).items())
    file = shlex.quote(f"./{file_name}")
    return f"""#!/bin/sh
# Verifies {file_name} (aird-mlx verify) and serves it with llama-server on this machine only.
# Further options are passed on, for example: {name}.run.sh --port 8081
set -eu
cd "$(dirname "$0")"
if command -v aird-mlx >/dev/null; then
    aird-mlx verify {file}
else
    echo "aird-mlx is not installed: the file is served without being verified" >&2
fi
exec llama-server --model {file} {options} "$@"
"""


def _options(facts: ChatFacts) -> dict[str, str]:
    found = {"ctx-size": str(facts.context_length), "jinja": "true"}
    return found | {_OPTIONS[key]: f"{value:g}" for key, value in facts.sampling.items() if key in _OPTIONS}
