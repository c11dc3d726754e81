"""Tokenizers: from a model folder to the vocabulary keys of a GGUF file.

`read` finds out which kind a tokenizer is: `byte_level` (whose splitting rule `pre_tokenizer` names, one of
`pre_types`), `sentencepiece_bpe`, `unigram` or `wordpiece`, from ``tokenizer.json`` or, by `sentencepiece_model`,
from ``tokenizer.model``; or `rwkv`, from a file of its own. What llama.cpp cannot express is refused, or noted where
it touches only unusual text.
`vocabulary` is what comes out, with the roles of `special`, the tokens of `added` and the `templates`.
"""

from aird_mlx.gguf_export.tokenizer.pre_tokenizer import identify_pre_tokenizer
from aird_mlx.gguf_export.tokenizer.read import read_vocabulary
from aird_mlx.gguf_export.tokenizer.special import read_end_ids
from aird_mlx.gguf_export.tokenizer.templates import read_chat_templates
from aird_mlx.gguf_export.tokenizer.vocabulary import Vocabulary, add_vocabulary

__all__ = [
    "Vocabulary",
    "add_vocabulary",
    "identify_pre_tokenizer",
    "read_chat_templates",
    "read_end_ids",
    "read_vocabulary",
]
