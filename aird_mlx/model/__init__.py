"""A chat model: where its files are, loading and saving them, and its blocks, linears and taps.

Loading and running are mlx-lm's. This package knows nothing about refusals, pruning or prompts.
"""

from aird_mlx.model.chat_model import ChatModel, StoredWeight, Tap, context_length
from aird_mlx.model.files import COMPANION_FILES, load, read_network, save
from aird_mlx.model.find import DEMO_FOLDER, find_folder, network_error, read_config

__all__ = [
    "COMPANION_FILES",
    "DEMO_FOLDER",
    "ChatModel",
    "StoredWeight",
    "Tap",
    "context_length",
    "find_folder",
    "load",
    "network_error",
    "read_config",
    "read_network",
    "save",
]
