"""The memory llama.cpp computes in: opened for so many sequences of some length, then given batches of tokens.

A float32 cache without flash attention, one for each sequence. Knows tokens, positions and logits, no text.
Source: ``llama.h`` and ``examples/batched`` of llama.cpp.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from aird_mlx.errors import ParityError
from aird_mlx.libllama import last_errors, last_reason


class Context:
    """At most one context of an opened model at a time; `open` it before anything is decoded.

    Args:
        library: the module llama_cpp.
        model: its pointer; must outlive this.
        n_batch: most tokens decoded in one call.
        n_threads: threads of llama.cpp.
        look: ``cb_eval`` of every context, None for none; must live as long as this does.
        lora: an adapter of the model that every context adds, None for none.
    """

    def __init__(self, library: Any, model: Any, *, n_batch: int, n_threads: int, look: Any, lora: Any = None) -> None:
        self._library = library
        self._model = model
        self._n_batch = n_batch
        self._n_threads = n_threads
        self._look = look
        self._lora = lora
        self._vocab_size: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._context: Any = None
        self._size = (0, 0)
        self._state: Any = b""  # room for a sequence on its way to another context

    def open(self, sequences: int, length: int) -> None:
        """Have an empty context for so many sequences of that length; keep the one there is if it is large enough."""
        open_sequences, open_length = self._size
        if self._context and open_sequences == sequences and open_length >= length:
            self.clear()
            return
        self.free()
        settings = self._library.llama_context_default_params()
        settings.n_ctx = length * sequences
        settings.n_seq_max = sequences
        settings.n_batch = settings.n_ubatch = self._n_batch
        settings.n_threads = settings.n_threads_batch = self._n_threads
        settings.type_k = settings.type_v = self._library.GGML_TYPE_F32
        settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.kv_unified = False  # one cache per sequence: attention does not read the others'
        settings.no_perf = True
        if self._look is not None:
            settings.cb_eval = self._look
        last_errors().clear()
        self._context = self._library.llama_init_from_model(self._model, settings)
        if not self._context:
            raise ParityError(
                f"llama.cpp: cannot open a context of {sequences} x {length} tokens "
                f"({last_reason()}); memory for it is needed. Use a smaller n_ctx."
            )
        if self._lora is not None:
            pointers, scales = (type(self._lora) * 1)(self._lora), (ctypes.c_float * 1)(1.0)
            self._library.llama_set_adapters_lora(self._context, pointers, 1, scales)
        self._size = (sequences, length)

    def clear(self) -> None:
        """Forget what was decoded."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def forget(self, sequence: int) -> None:
        """Drop what was decoded of one sequence."""
        self._library.llama_memory_seq_rm(self._library.llama_get_memory(self._context), sequence, -1, -1)

    def copy_sequence(self, sequence: int, target: Context) -> None:
        """Let another context of the same model, opened for as many sequences, go on where one of this one's stands.

        Raises:
            ParityError: there is no room in it.
        """
        library = self._library
        size = library.llama_state_seq_get_size(self._context, sequence)
        if size > len(self._state):
            self._state = (ctypes.c_uint8 * (2 * size))()
        state = self._state
        target.forget(sequence)
        read = library.llama_state_seq_get_data(self._context, state, size, sequence)
        if not read or not library.llama_state_seq_set_data(target._context, state, read, sequence):
            raise ParityError(
                f"llama.cpp: {size} bytes of a sequence's state were not taken over ({last_reason()}); room in the "
                "other context is needed. Use a larger n_ctx."
            )

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]], *, keep_lock: bool = False) -> np.ndarray:
        """Run a batch of (token, position, sequence, wants logits); logits of those that want them, in order.

        ``keep_lock``: other Python threads wait until it is done. For a short batch of a watched context that is
        faster: ``look`` is Python, and would wait for the interpreter's lock at every node.
        """
        library = self._library
        run = _locked_decode(library) if keep_lock else library.llama_decode
        batch = library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for row, (token, position, sequence, wanted) in enumerate(tokens):
                batch.token[row] = token
                batch.pos[row] = position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = wanted
            last_errors().clear()
            status = run(self._context, batch)
        finally:
            library.llama_batch_free(batch)
        if status != 0:
            raise ParityError(
                f"llama.cpp: llama_decode returned {status} ({last_reason()}); "
                "0 is success. Use a larger n_ctx or fewer sequences."
            )
        outputs = sum(wanted for *_, wanted in tokens)
        if not outputs:
            return np.zeros((0, self._vocab_size), dtype=np.float32)
        pointer = library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(outputs, self._vocab_size)).copy()

    def free(self) -> None:
        """Close it; safe to call twice."""
        self._state = b""
        if self._context:
            self._library.llama_free(self._context)
            self._context = None


@functools.cache
def _locked_decode(library: Any) -> Any:
    """``llama_decode`` called with the interpreter's lock held."""
    decode = ctypes.PyDLL(library.llama_cpp._lib._name).llama_decode
    decode.argtypes, decode.restype = library.llama_decode.argtypes, ctypes.c_int32
    return decode
