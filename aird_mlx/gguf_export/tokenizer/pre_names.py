"""Which of the names for one pre-tokenizer llama.cpp's converter writes: told by the ids of a fixed text.

Several names stand for splitting in the same way (`pre_types`); they say which model a vocabulary is of, and whether
spaces before punctuation go when text is put together again. Source: ``get_vocab_base_pre`` in ``conversion/base.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tokenizers import Tokenizer

TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multi"
    "ple emojis concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3."
    "..3 \u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601 ?\u6211"
    "\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e ------======= \u043d\u0435\u0449\u043e \u043d\u0430 \u0411"
    "\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438 ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he'"
    "s there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
# How the sha256 of its ids begins: how the vocabulary splits (`pre_types`), and what it is called.
NAMES = {
    "9d032fcbd5501f4a": ("llama-bpe", "falcon3"),
    "a6b57017d60e6edb": ("llama-bpe", "falcon-h1"),
    "60476e1243776c4f": ("llama-bpe", "falcon-h1"),
    "3eda48b4c4dc7de7": ("llama-bpe", "falcon-h1"),
    "48f8e02c0359c0bb": ("llama-bpe", "falcon-h1"),
    "0e9433cbbb161f89": ("llama-bpe", "pixtral"),
    "f6791d196f87ce6b": ("llama-bpe", "midm-2.0"),
    "9e454714343b69b9": ("llama-bpe", "lfm2"),
    "169bf0296a13c4d9": ("llama-bpe", "lfm2"),
    "a1336059768a55c9": ("llama-bpe", "glm4"),
    "9ca2dd618e8afaf0": ("llama-bpe", "glm4"),
    "cdf5f35325780597": ("llama-bpe", "glm4"),
    "877081d19cf6996e": ("deepseek-v3", "deepseek-v3"),  # without its bos, it is joyai-llm's
    "bba3b3366b646dbd": ("deepseek-v3", "hunyuan-dense"),
    "e6ddf9c6686791c1": ("deepseek-v3", "hy_v4"),
    "b4b8ca1f9769494f": ("deepseek-v3", "joyai-llm"),
    "fcace8b9cac38ce8": ("gpt-2", "phi-2"),
    "ad851be1dba641f2": ("gpt-2", "gigachat"),
    "b0a6b1c0bd5998eb": ("gpt-2", "a.x-4.0"),
    "a1e163ecab2e718a": ("gpt-2", "mellum"),
    "b6dc8df998e1cfbd": ("gpt-2", "olmo"),
    "b53802fb28e26d64": ("gpt-2", "jais"),
    "2085e1638f6c377a": ("gpt-2", "exaone4"),
    "1994ffd01900cfb3": ("gpt-2", "trillion"),
    "53e325976a6e1423": ("gpt-2", "granite-docling"),
    "35d91631860c815f": ("smollm", "starcoder"),
    "6221ad2852e85ce9": ("smollm", "refact"),
    "9c2227e4dd922002": ("smollm", "command-r"),
    "7b3e7548e4308f52": ("smollm", "codeshell"),
    "4e2b24cc4770243d": ("smollm", "exaone"),
    "1431a23e583c9743": ("smollm", "minerva-7b"),
    "9dcf830ee9990cdb": ("smollm", "mellum2"),
    "b3f499bb4255f8ca": ("qwen2", "deepseek-r1-qwen"),
    "4a2e2abae11ca2b8": ("qwen2", "kormo"),
    "32d85c31273f8019": ("qwen2", "stablelm2"),
    "d4c8f286ea6b520b": ("qwen2", "megrez"),
    "7e57df22b1fe23a7": ("qwen2", "hunyuan"),
    "66b8d4e19ab16c3b": ("qwen2", "grok-2"),
    "16389f0a1f51ee53": ("qwen2", "solar-open"),
    "c136ed14d01c2745": ("dbrx", "smaug-bpe"),
    "b6e8e1518dc4305b": ("dbrx", "chatglm-bpe"),
    "81d72c7348a9f0eb": ("dbrx", "chatglm-bpe"),
    "c7ea5862a53e4272": ("bloom", "poro-chat"),
    "bc01ce58980e1db4": ("bloom", "gpt3-finnish"),
    "d353350c764d8c3b": ("gpt-4o", "llama4"),
    "e4d54df1ebc1f2b9": ("gpt-4o", "kanana2"),
    "f728162c1315c26e": ("gpt-4o", "talkie"),
    "f4f37b6c8eb9ea29": ("gpt-4o", "minimax-m2"),
    "52df12b4c8d4176e": ("tiny_aya", "cohere2moe"),
}


def name_of(known: str, tokenizer: Tokenizer, bos: int | None = None) -> str:
    """The converter's name for a byte-level BPE.

    Args:
        known: how it splits, a key of `pre_types.PRE_TOKENIZERS`.
        tokenizer: the whole of it.
        bos: the id that goes before every text, which the post-processor may leave to the settings.

    Returns:
        Another name for that, where the converter knows this very vocabulary; else ``known``.
    """
    usual, bare = (tokenizer.encode(TEXT, add_special_tokens=adds_special).ids for adds_special in (True, False))
    around = usual if bos is None or usual[:1] == [bos] else [bos, *usual]
    found = (NAMES.get(_fingerprint(ids)) for ids in (around, usual, bare))
    return next((name for splits, name in filter(None, found) if splits == known), known)


def _fingerprint(ids: Sequence[int]) -> str:
    return hashlib.sha256(str(list(ids)).encode()).hexdigest()[:16]
