"""The embedded demo: a small safety-tuned chat model and the language it was trained on.

``MODEL_PATH`` is a folder that ``mlx_lm.load`` reads; ``examples/train_demo.py`` made it. Nothing is loaded at
import.
"""

from __future__ import annotations

from pathlib import Path

MODEL_PATH: Path = Path(__file__).parent / "model"
"""Folder of the packaged model: config, weights, tokenizer and chat template."""
