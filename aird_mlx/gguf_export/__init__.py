"""From a model folder to a GGUF file that llama.cpp runs, and the check that it runs the same.

`metadata` reads the config, `tokenizer` the vocabulary, `tensors` the weights; `writer` puts them in one file;
`runtime` runs it in llama.cpp (optional package llama-cpp-python) and `parity` compares it with MLX. Nothing runs at
import. Not called ``gguf``, which is the name of the package that reads these files back.
"""

from aird_mlx.gguf_export.parity import Parity, check_parity
from aird_mlx.gguf_export.runtime import LlamaRuntime, is_available
from aird_mlx.gguf_export.writer import GgufFile, check_exportable, export_gguf

__all__ = ["GgufFile", "LlamaRuntime", "Parity", "check_exportable", "check_parity", "export_gguf", "is_available"]
