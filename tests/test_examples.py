"""Every example runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_docs import ROOT

SMALL = [
    "--steps",
    "40",
    "--direction-steps",
    "40",
    "--dialogues",
    "400",
    "--test-prompts",
    "4",
    "--batch",
    "4",
    "--width",
    "16",
    "--blocks",
    "2",
    "--heads",
    "2",
    "--intermediate",
    "32",
    "--vocabulary",
    "400",
    "--layer",
    "1",
]
# By example: its arguments, what it prints, what it writes.
RUNS: dict[str, tuple[list[str], str, list[str]]] = {
    "chat_apps.py": (
        ["--lm-studio", "models"],
        "ollama create demo",
        ["chat-apps/demo-F16.Modelfile", "chat-apps/demo-F16.run.sh", "models/aird-mlx/demo-GGUF/demo-F16.gguf"],
    ),
    "quickstart.py": ([], "written to", ["demo-wanda-0.6-repaired/report.json"]),
    "stages.py": ([], "repaired", []),
    "train_demo.py": ([*SMALL, "--out", "trained"], "parameters", ["trained/model.safetensors"]),
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(RUNS)


@pytest.mark.parametrize(
    "name", [name if name == "chat_apps.py" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(RUNS)]
)
def test_example_runs(tmp_path: Path, name: str) -> None:
    arguments, said, files = RUNS[name]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert [file for file in files if not (tmp_path / file).exists()] == []
