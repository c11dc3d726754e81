"""A GGUF file running in llama.cpp: token ids, logits at every position, answers to many prompts at once.

Uses the low-level interface of llama-cpp-python (an optional package), because the high-level one neither batches
several sequences nor is quiet. Computes on the CPU by default with a float32 cache and without flash attention, so
that a difference from MLX is a difference of the file. Knows nothing about MLX.
Source: ``llama.h`` and ``examples/batched`` of llama.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from aird_mlx.errors import ParityError
from aird_mlx.gguf_export.context import Context
from aird_mlx.gguf_export.generation import continue_prompts, make_chooser
from aird_mlx.gguf_export.residual import ResidualTap
from aird_mlx.libllama import last_errors, last_reason, load_library

MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
PARAMETERS_PER_THREAD = 8_000_000


class LlamaRuntime:
    """A model file opened in llama.cpp; a context manager that frees it.

    Args:
        path: the GGUF file.
        n_ctx: most tokens of one sequence, prompt and answer together.
        n_batch: most tokens decoded in one call.
        parallel: most sequences that `generate` runs at once.
        gpu_layers: blocks computed on the GPU; 0 keeps everything on the CPU, -1 takes all.
        vocab_only: read the tokenizer and the metadata, no weights; then only `tokenize` and `metadata` work.
        n_threads: threads of llama.cpp; by default one for every 8 million parameters, at most one per core. They
            wait for each other by spinning, which costs small models more than it brings, and on a busy machine
            very much more.
        lora: an adapter file that is added to the weights.
        layers: where `residuals` reads the residual stream: inputs of these blocks, from 1 to the last block.

    Raises:
        DependencyError: llama-cpp-python is not installed.
        ParityError: llama.cpp refuses the file.
    """

    def __init__(
        self,
        path: Path,
        n_ctx: int = 2048,
        n_batch: int = 512,
        *,
        parallel: int = 16,
        gpu_layers: int = 0,
        vocab_only: bool = False,
        n_threads: int | None = None,
        lora: Path | None = None,
        layers: Collection[int] = (),
    ) -> None:
        self.path = Path(path)
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.parallel = min(parallel, MOST_SEQUENCES, n_batch)
        self._library = load_library()
        self.tap = ResidualTap(self._library, layers) if layers else None
        if not self.path.is_file():
            raise ParityError(f"llama.cpp: there is no file {self.path}; a GGUF file is needed. Check the path.")
        settings = self._library.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        settings.vocab_only = vocab_only
        if b"AMX_INT8 = 1" in self._library.llama_print_system_info() and hasattr(settings, "use_extra_bufts"):
            settings.use_extra_bufts = False  # its AMX kernels end the process (ggml-org/llama.cpp#20824)
        last_errors().clear()
        self._model: Any = self._library.llama_model_load_from_file(str(self.path).encode(), settings)
        if not self._model:
            raise ParityError(
                f"llama.cpp: refuses {self.path} ({last_reason()}); a file it can run is needed. Export it again."
            )
        self._vocab = self._library.llama_model_get_vocab(self._model)
        parameters = self._library.llama_model_n_params(self._model)
        self.n_threads = n_threads or max(1, min(os.cpu_count() or 1, parameters // PARAMETERS_PER_THREAD))
        self.vocab_size: int = self._library.llama_vocab_n_tokens(self._vocab)
        self.hidden: int = self._library.llama_model_n_embd(self._model)
        self.blocks: int = self._library.llama_model_n_layer(self._model)
        self._lora = None if lora is None else self._load_lora(lora)
        self._context = self.new_context()

    def __enter__(self) -> LlamaRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def new_context(self, *, tapped: bool = True) -> Context:
        """Another context of the model, to be freed before it; ``tapped``: `tap` sees what it computes."""
        look = self.tap.callback if tapped and self.tap is not None else None
        return Context(
            self._library,
            self._model,
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            look=look,
            lora=self._lora,
        )

    def _load_lora(self, lora: Path) -> Any:
        """An adapter for this model; freed with it."""
        last_errors().clear()
        adapter = self._library.llama_adapter_lora_init(self._model, str(lora).encode())
        if not adapter:
            reason = last_reason()
            self._library.llama_model_free(self._model)
            raise ParityError(
                f"llama.cpp: refuses the adapter {lora} with {self.path} ({reason}); one made for this file is needed. "
                "Export it again."
            )
        return adapter

    def close(self) -> None:
        """Free the context and the model; safe to call twice."""
        self._context.free()
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None

    def tokenize(self, text: str, parse_special: bool = True, add_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any text; a rendered chat prompt for example.
            parse_special: special tokens written in the text become their ids.
            add_special: add bos and eos as the file says.
        """
        data = text.encode("utf-8")
        room = len(data) + 8
        while True:
            ids = (self._library.llama_token * room)()
            count = self._library.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that are no UTF-8 become U+FFFD.

        The pieces one after another, as programs on top of llama.cpp stream them: its own way to put a text together
        takes away spaces before punctuation, in code too.
        """
        library, vocab, rest = self._library, self._vocab, list(ids)
        begins = library.llama_vocab_get_add_bos(vocab) and rest[:1] == [library.llama_vocab_bos(vocab)]
        if begins:
            del rest[0]
        if library.llama_vocab_get_add_eos(vocab) and rest[-1:] == [library.llama_vocab_eos(vocab)]:
            del rest[-1]
        pieces = [self._piece(token, self._adds_space and at == 0 and not begins) for at, token in enumerate(rest)]
        return b"".join(pieces).decode("utf-8", errors="replace")

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether `tokenize` puts a space before a text."""
        told = self.metadata("tokenizer.ggml.add_space_prefix")
        return self.metadata("tokenizer.ggml.model") in ("llama", "bert") if told is None else told == "true"

    def _piece(self, token: int, without_space: bool) -> bytes:
        """The bytes a token stands for; none if it is special."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(self._vocab, token, buffer, room, int(without_space), False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    @functools.cached_property
    def end_tokens(self) -> list[int]:
        """The tokens that end an answer, as the file says."""
        return [token for token in range(self.vocab_size) if self._library.llama_vocab_is_eog(self._vocab, token)]

    @functools.cached_property
    def control_texts(self) -> list[str]:
        """How the tokens are written that steer the model and stand for no text, as turns' beginnings and ends."""
        library, vocab = self._library, self._vocab
        tokens = [token for token in range(self.vocab_size) if library.llama_vocab_is_control(vocab, token)]
        texts = [library.llama_vocab_get_text(vocab, token).decode("utf-8", errors="replace") for token in tokens]
        return [text for text in texts if text]

    def special_text(self, name: str) -> str:
        """How the special token ``bos`` or ``eos`` is written; "" if the file has none."""
        token = getattr(self._library, f"llama_vocab_{name}")(self._vocab)
        return "" if token < 0 else str(self._library.llama_vocab_get_text(self._vocab, token).decode("utf-8"))

    def metadata(self, key: str) -> str | None:
        """The value of a metadata key as text, None if the file has no such key (arrays cannot be read)."""
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._library.llama_model_meta_val_str(
                self._model, key.encode(), ctypes.cast(buffer, ctypes.c_char_p), size
            )
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode("utf-8", errors="replace")
            size = length + 1

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Run one sequence and return the logits of the token after each of its tokens.

        Args:
            ids: 1 to ``n_ctx`` token ids.

        Returns:
            ``[token, vocab]`` float32.

        Raises:
            ParityError: the sequence is empty, too long, or llama.cpp fails on it.
        """
        self._check_lengths([ids], 0)
        self._context.open(1, self.n_ctx)
        rows = []
        for start in range(0, len(ids), self.n_batch):
            chunk = [
                (int(token), start + offset, 0, True) for offset, token in enumerate(ids[start : start + self.n_batch])
            ]
            rows.append(self._context.decode(chunk))
        return np.concatenate(rows)

    def residuals(self, ids: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Run one sequence and read the residual stream on the way.

        Args:
            ids: 1 to ``n_batch`` token ids.

        Returns:
            Logits ``[vocab]`` after the last token, and by layer the residual stream ``[token, hidden]``, float32. A
            layer is missing where llama.cpp names this architecture's blocks otherwise.

        Raises:
            ParityError: as for `logits`, or the sequence is longer than ``n_batch``.
        """
        assert self.tap is not None, "open the runtime with layers"
        self._check_lengths([ids], 0)
        if len(ids) > self.n_batch:
            raise ParityError(
                f"llama.cpp: {len(ids)} tokens at once; n_batch is {self.n_batch}. Open it with a larger n_batch."
            )
        self._context.open(1, self.n_ctx)
        self.tap.clear()
        last = len(ids) - 1
        logits = self._context.decode([(int(token), at, 0, at == last) for at, token in enumerate(ids)])
        return logits[0], self.tap.rows(self.hidden)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Collection[int],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[int]]:
        """Continue every prompt, ``parallel`` prompts at a time.

        Args:
            prompts: token ids, each prompt non-empty.
            max_new_tokens: length of an answer that no stop token ended.
            stop_ids: an answer ends before any of these.
            temperature: 0 takes the likeliest token; above, tokens are drawn from ``softmax(logits / temperature)``.
            seed: of the draws.
            progress: called with (prompts done, prompts).

        Returns:
            One list of new token ids per prompt, in the order of the prompts, without the stop token. The same
            call gives the same answers; another batch size can round differently.

        Raises:
            ParityError: a prompt is empty or does not leave room for its answer, or llama.cpp fails.
        """
        if not prompts:
            return []
        self._check_lengths(prompts, max_new_tokens)
        if max_new_tokens < 1:
            return [[] for _ in prompts]
        return continue_prompts(
            self._context,
            prompts,
            max_new_tokens,
            set(stop_ids),
            parallel=self.parallel,
            n_batch=self.n_batch,
            choose=make_chooser(temperature, seed),
            progress=progress,
        )

    def _check_lengths(self, sequences: Sequence[Sequence[int]], new_tokens: int) -> None:
        longest = max(len(ids) for ids in sequences)
        if min(len(ids) for ids in sequences) == 0:
            raise ParityError("llama.cpp: a sequence has no tokens; at least one is needed. Leave it out.")
        if longest + new_tokens > self.n_ctx:
            raise ParityError(
                f"llama.cpp: {longest} tokens and {new_tokens} new ones; n_ctx is {self.n_ctx}. "
                "Open it with a larger n_ctx."
            )
        for ids in sequences:
            if not 0 <= min(ids) <= max(ids) < self.vocab_size:  # llama.cpp would only say "invalid token"
                raise ParityError(
                    f"llama.cpp: token ids from {min(ids)} to {max(ids)}; the file has {self.vocab_size} tokens. "
                    "Use the ids of this model's tokenizer."
                )
