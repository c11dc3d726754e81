"""A chat model: where its files are, loading and saving them, and its blocks, linears and taps.

Loading and running are mlx-lm's. This package knows nothing about refusals, pruning or prompts.
"""

from aird_mlx.architectures import context_length
from aird_mlx.model.calls import BlockCall, record_calls
from aird_mlx.model.chat_model import QUANTIZED, ChatModel, StoredWeight, Tap, is_linear, submodule
from aird_mlx.model.exact import exact_logits
from aird_mlx.model.files import COMPANION_FILES, RWKV_VOCABULARY, TOKENIZERS, load, read_network, save
from aird_mlx.model.find import DEMO_FOLDER, find_folder, network_error, read_config
from aird_mlx.model.memory import loaded_bytes, needs_streaming, peak_memory, usable_memory
from aird_mlx.model.shards import ShardFolder
from aird_mlx.model.stream import BlockStream
from aird_mlx.model.writers import check_writers, first_of_each_kind

__all__ = [
    "COMPANION_FILES",
    "DEMO_FOLDER",
    "QUANTIZED",
    "RWKV_VOCABULARY",
    "TOKENIZERS",
    "BlockCall",
    "BlockStream",
    "ChatModel",
    "ShardFolder",
    "StoredWeight",
    "Tap",
    "check_writers",
    "context_length",
    "exact_logits",
    "find_folder",
    "first_of_each_kind",
    "is_linear",
    "load",
    "loaded_bytes",
    "needs_streaming",
    "network_error",
    "peak_memory",
    "read_config",
    "read_network",
    "record_calls",
    "save",
    "submodule",
    "usable_memory",
]
